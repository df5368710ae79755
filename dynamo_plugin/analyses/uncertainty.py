"""How much of where networks lie depends on the seed of the fit, and on the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from dynamo_plugin.analyses._ellipses import Ellipse, outlines
from dynamo_plugin.analyses._fits import Fits, FitSource, gather_fits
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._permutation import share_reaching
from dynamo_plugin.analyses._procrustes import (
    align_configurations,
    chance_reliability,
    reliability,
)
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses._stability import (
    distances_of,
    model_rows,
    nearest,
    rank_correlations,
)
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["UncertaintyResult", "uncertainty"]

FEWEST = 4
"""Models below which distances have too few pairs to agree or not."""

REFITS = 4
"""Made where no fits are given."""

LARGEST_RATIO = 10
"""Of the extents of the two axes, up to which the plot draws them at one scale."""

MOST_NAMES = 20
"""Models up to which the plot writes their names beside them."""


@dataclass(frozen=True, slots=True, eq=False)
class UncertaintyResult(TableResult):
    """Where each network lies over fits, and how surely; made by `uncertainty`.

    The table has one row per model and source of variation: `model`, `source` (`seeds` or
    `bootstrap`), `fits` (how many), `pc_1` and `pc_2` (mean position in the plane), `major` and
    `minor` (half axes of the 95 % ellipse), `angle` (degrees from the first axis of the plane to
    the major one, above -90 and up to 90), `spread` (root mean square distance from the mean
    position, all dimensions), `relative_spread` (by that of the mean positions from their centre),
    `neighbour_overlap` (Jaccard overlap of the nearest neighbours, mean over pairs of fits),
    `neighbour_overlap_chance` (of neighbours drawn at random), `nearest` (the model that most often
    is its nearest neighbour), `nearest_share` (of the fits in which it is) and `nearest_stable`
    (whether in all).
    """

    sources: pd.DataFrame
    """One row per source of variation: `source`, `fits`, `reliability` (share of the variance of a
    single fit that lies between models, an intraclass correlation), `reliability_chance` (its mean
    where models are permuted in all fits but one, and aligned again), `reliability_p` (share of
    such permutations that reach it), `relative_spread` (all models together), `rank_correlation`
    (Spearman's, of the distances between models, mean over pairs of fits), its least value
    `rank_correlation_min`, `neighbour_overlap`, `neighbour_overlap_chance`, and `nearest_stable`
    (share of the models)."""
    fits: pd.DataFrame
    """One row per fit: `fit`, `source` (`seeds`, `bootstrap`, or `reference` for an embedding that
    is no part of either), `seed`, and `scale` (factor that its thetas were multiplied by)."""
    pairs: pd.DataFrame
    """One row per two fits of one source: `source`, `first`, `second`, `rank_correlation`."""
    positions: NDArray[np.float64]
    """(fit, model, dimension): aligned thetas, centred, fits as in `fits`, models as in the
    embedding, whose own thetas only are centred."""
    axes: NDArray[np.float64]
    """(component, dimension), one or two: directions of the plane, the first principal components
    of the positions' mean over fits."""
    embeddings: dict[str, ModelEmbedding]
    """The fits by name, to be saved or analysed."""
    neighbours: int
    """How many nearest neighbours were compared."""
    ellipse: Ellipse
    """What the ellipses hold."""
    converged: bool
    """Whether the alignment came to an end."""
    name: ClassVar[str] = "uncertainty"
    reference: ClassVar[str] = (
        "Gower 1975, doi:10.1007/BF02291478; Efron 1979, doi:10.1214/aos/1176344552"
    )

    def summary(self) -> dict[str, JSON]:
        """Return the figures of every source of variation, and the models that vary most."""
        worst = self.table.sort_values("relative_spread", ascending=False, kind="stable")
        rows = self.sources.to_dict(orient="records")
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "models": self.positions.shape[1],
                "neighbours": self.neighbours,
                "ellipse": self.ellipse,
                "converged": self.converged,
                "sources": {str(row.pop("source")): row for row in rows},
                "least_certain": worst[["model", "source", "relative_spread"]]
                .head(5)
                .to_dict(orient="records"),
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return the plane with every model's mean position and ellipse, one colour per source."""
        import plotly.graph_objects as go

        figure = go.Figure()
        colours = {"seeds": "#4269d0", "bootstrap": "#e8820c"}
        for source, rows in self.table.groupby("source", sort=False):
            colour = colours[str(source)]
            x, y = outlines(rows[["pc_1", "pc_2", "major", "minor", "angle"]].to_numpy())
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="lines",
                    line={"width": 1, "color": colour},
                    fill="toself",
                    opacity=0.45,
                    legendgroup=str(source),
                    showlegend=False,
                    hoverinfo="skip",
                )
            )
            names = [plot_text(model) for model in rows["model"]]
            labelled = len(rows) <= MOST_NAMES and source == self.table["source"].iloc[0]
            figure.add_trace(
                go.Scatter(
                    x=rows["pc_1"].to_numpy(),
                    y=rows["pc_2"].to_numpy(),
                    text=names,
                    customdata=rows[["relative_spread", "neighbour_overlap"]].to_numpy(),
                    mode="markers+text" if labelled else "markers",
                    textposition="top center",
                    textfont={"size": 10},
                    name=f"{source} ({rows['fits'].iloc[0]} fits)",
                    legendgroup=str(source),
                    marker={"size": 6, "color": colour},
                    hovertemplate="%{text}<br>relative spread %{customdata[0]:.3f}"
                    "<br>neighbour overlap %{customdata[1]:.2f}<extra>%{fullData.name}</extra>",
                )
            )
        what = "new fits, prediction" if self.ellipse == "prediction" else "fits, normal"
        figure.update_xaxes(title={"text": "component 1"})
        # Private dimensions are so small that at one scale they would be a line.
        extent = np.ptp(self.table[["pc_1", "pc_2"]].to_numpy(), axis=0)
        alike = extent[1] * LARGEST_RATIO > extent[0]
        figure.update_yaxes(title={"text": "component 2"}, scaleanchor="x" if alike else None)
        return style_figure(figure).update_layout(
            showlegend=True, legend={"title": {"text": f"95 % of {what}"}}
        )


@analysis
def uncertainty(
    embedding: ModelEmbedding,
    *,
    fits: FitSource | None = None,
    refits: int | None = None,
    bootstrap: int = 0,
    neighbours: int | None = None,
    scale: bool = True,
    ellipse: Ellipse = "normal",
    permutations: int = 199,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> UncertaintyResult:
    """Say how much the place of every network depends on the seed of the fit and on the samples.

    A theta says where a network lies among the others, up to what no fit determines: a
    translation, a rotation or reflection, and a size. So all fits are laid on their common mean
    by generalised Procrustes analysis (Gower 1975, doi:10.1007/BF02291478; turns by Schoenemann
    1966, doi:10.1007/BF02289451; scales by Ten Berge 1977, doi:10.1007/BF02294053), iterated until
    nothing changes, and not on the embedding, which is one of the fits and would then seem to be
    the truth. The frame is the embedding's all the same. What still differs is reported by source:

    - `seeds`: the embedding and fits with other seeds, which change initial values, the order of
      batches, and the split into training and held-out samples;
    - `bootstrap`: fits with the seed of the embedding on training samples drawn with replacement
      from its own (Efron 1979, doi:10.1214/aos/1176344552); its held-out samples stay unseen.

    Thetas that start along the components of the networks' states (`theta_init`) do so for every
    seed; fits from random starts (`theta_init="random"`) may vary more.

    An alignment has numbers of its own to choose, and makes fits look more alike than they are
    where there are few networks for many dimensions. How much that is, the reliability of fits
    with permuted networks, aligned likewise, shows. Neighbours and rank correlations need no
    alignment.

    Parameters
    ----------
    embedding
        At least four models. Its population is read if fits are made.
    fits
        Other fits of the same networks: embeddings or their folders, such as what
        `fit(population, seeds=5)` returned. The embedding itself, if it is among them, counts once.
        The number of dimensions may differ.
    refits
        How many fits to make with the settings of the embedding and the seeds that follow its own;
        None for 4 where none are given, else 0.
    bootstrap
        How many to make on bootstrap samples, 0 or at least 2.
    neighbours
        How many nearest neighbours to compare; None for 5, or half of the others if that is less.
    scale
        Whether the alignment matches sizes too.
    ellipse
        `normal`: 95 % of a normal distribution with the mean and covariance of the fits, which
        holds less of further fits where there are few, and is a line for two. `prediction`: where
        one further fit lies with 95 % confidence (Hotelling 1931, doi:10.1214/aoms/1177732979),
        from three fits on.
    permutations
        Random orders of the networks for the reliability that chance gives.
    seed
        Of bootstrap samples and permutations.
    device, progress
        As in `fit`, for the fits that are made.

    Returns
    -------
    UncertaintyResult

    Raises
    ------
    InvalidInput
        If there are too few models or fits, a fit is of other networks or there twice, all thetas
        of one are equal, or an option is out of range.
    StoreNotFound
        If a fit is not where it is said to be, or the population is no longer there.
    """
    if refits is None:
        refits = REFITS if fits is None else 0
    models = len(embedding.ids)
    k = min(5, max((models - 1) // 2, 1)) if neighbours is None else neighbours
    _check(models, refits, bootstrap, k, ellipse, permutations)
    if fits is not None and refits:
        raise InvalidInput("Fits with other seeds are given, and to be made. Leave out one.")
    found = gather_fits(
        embedding,
        fits=fits,
        refits=refits,
        bootstrap=bootstrap,
        least=3 if ellipse == "prediction" else 2,
        seed=seed,
        device=device,
        progress=progress,
    )
    thetas = found.thetas
    _check_thetas(found, thetas)
    aligned = align_configurations(thetas, scale=scale)
    positions, distances = aligned.positions, distances_of(thetas)
    plane = PCA(min(2, thetas.shape[2])).fit(positions.mean(0)).components_
    ranks = rank_correlations(distances)
    near = nearest(distances, k)
    names = list(found.embeddings)
    tables, sources, pairs = [], [], []
    for source, places in found.sources.items():
        rows = model_rows(embedding.ids, positions[places], plane, near[places], ellipse)
        rows.insert(1, "source", source)
        tables.append(rows)
        first, second = (np.array(places)[axis] for axis in np.triu_indices(len(places), 1))
        pairs.append(
            pd.DataFrame(
                {
                    "source": source,
                    "first": [names[place] for place in first],
                    "second": [names[place] for place in second],
                    "rank_correlation": ranks[first, second],
                }
            )
        )
        alone = align_configurations(thetas[places], scale=scale)
        observed = reliability(alone.positions)
        null = chance_reliability(thetas[places], scale=scale, permutations=permutations, seed=seed)
        sources.append(
            {
                "source": source,
                "fits": len(places),
                "reliability": float(observed),
                "reliability_chance": null.mean(),
                "reliability_p": share_reaching(observed[None], null[None], exact=False)[0],
                "relative_spread": np.sqrt((rows["relative_spread"] ** 2).mean()),
                "rank_correlation": ranks[first, second].mean(),
                "rank_correlation_min": ranks[first, second].min(),
                "neighbour_overlap": rows["neighbour_overlap"].mean(),
                "neighbour_overlap_chance": rows["neighbour_overlap_chance"].iloc[0],
                "nearest_stable": rows["nearest_stable"].mean(),
            }
        )
    return UncertaintyResult(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame(sources),
        _describe_fits(found, aligned.scales),
        pd.concat(pairs, ignore_index=True),
        positions,
        plane,
        found.embeddings,
        k,
        ellipse,
        aligned.converged,
    )


def _check(
    models: int, refits: int, bootstrap: int, neighbours: int, ellipse: str, permutations: int
) -> None:
    if models < FEWEST:
        raise InvalidInput(
            f"Fits agree or not over pairs of models: {FEWEST} or more are needed, this embedding "
            f"has {models}."
        )
    if refits < 0 or bootstrap < 0 or bootstrap == 1:
        raise InvalidInput(
            "refits must be at least 0, and bootstrap 0 or at least 2, for one fit does not vary; "
            f"got {refits} and {bootstrap}."
        )
    if not 1 <= neighbours < models - 1:
        raise InvalidInput(
            f"neighbours must be from 1 to {models - 2} for {models} models, so that there are "
            f"others to choose; got {neighbours}."
        )
    if ellipse not in ("normal", "prediction"):
        raise InvalidInput(f"ellipse must be 'normal' or 'prediction', got {ellipse!r}.")
    if permutations < 1:
        raise InvalidInput(f"permutations must be at least 1, got {permutations}.")


def _check_thetas(found: Fits, thetas: NDArray[np.float64]) -> None:
    for name, each in zip(found.embeddings, thetas, strict=True):
        if not (each.std(0) > 1e-7 * np.abs(each).max()).any():
            raise InvalidInput(
                f"The thetas of the fit {name!r} are all equal, so that it says nothing of where "
                "networks lie. Fit longer, or with a smaller theta_decay."
            )


def _describe_fits(found: Fits, scales: NDArray[np.float64]) -> pd.DataFrame:
    source_of = {place: source for source, places in found.sources.items() for place in places}
    return pd.DataFrame(
        {
            "fit": list(found.embeddings),
            "source": [source_of.get(place, "reference") for place in range(len(found.embeddings))],
            "seed": [fit.config.seed for fit in found.embeddings.values()],
            "scale": scales,
        }
    )
