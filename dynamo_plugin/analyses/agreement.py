"""Whether distances between networks agree: those of the embedding, and pairwise metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._permutation import permutation_test
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.errors import DuplicateName, InvalidInput, UnknownName, suggest
from dynamo_plugin.metrics import PairwiseDistances, pairwise
from dynamo_plugin.metrics import metric as metric_by_name
from dynamo_plugin.registry.interfaces import OF_EMBEDDING

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["AgreementResult", "agreement"]

OwnDistance: TypeAlias = Literal["theta", "pullback", "functional"]

OWN: tuple[OwnDistance, ...] = ("theta", "pullback", "functional")

FEWEST = 4
"""Models below which distances have too few pairs to agree or not."""


@dataclass(frozen=True, slots=True, eq=False)
class AgreementResult(TableResult):
    """Correlations between distances of the same models; made by `agreement`.

    The table has one row per two kinds of distance: `first`, `second`, `pearson` (the statistic of
    Mantel) and `spearman` over the pairs of models, each with a `_p`.
    """

    disagreements: pd.DataFrame
    """The pairs of models on which two kinds of distance differ most: `first_distance`,
    `second_distance`, `first`, `second` (models), `first_rank`, `second_rank` (from 0, the nearest
    pair, to 1, the farthest) and `difference` of the ranks, largest first for every two kinds."""
    correlations: pd.DataFrame
    """Square, labelled with the kinds of distance: Spearman's."""
    models: int
    """How many there are."""
    permutations: int
    """Orders of the models that were looked at."""
    exact: bool
    """Whether these are all there are."""
    name: ClassVar[str] = "agreement"
    reference: ClassVar[str] = "Mantel 1967, Cancer Research 27, 209"

    def summary(self) -> dict[str, JSON]:
        """Return the correlations of every two kinds of distance."""
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "models": self.models,
                "permutations": self.permutations,
                "exact": self.exact,
                "agreement": self.table.to_dict(orient="records"),
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return a heat map of the rank correlations."""
        import plotly.graph_objects as go

        names = [plot_text(name) for name in self.correlations.columns]
        values = self.correlations.to_numpy()
        figure = go.Figure(
            go.Heatmap(
                x=names,
                y=names,
                z=values,
                zmin=-1,
                zmax=1,
                colorscale="RdBu",
                text=np.vectorize("{:.2f}".format)(values),
                texttemplate="%{text}",
                hovertemplate="%{y} and %{x}<br>rank correlation %{z:.3f}<extra></extra>",
            )
        )
        return style_figure(figure).update_yaxes(autorange="reversed", automargin=True)


@analysis
def agreement(
    embedding: ModelEmbedding,
    *,
    distances: Sequence[OwnDistance] = OWN,
    metrics: Sequence[str | PairwiseDistances] = ("cka", "procrustes", "svcca"),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    site: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    rows: int | None = 5000,
    shown: int = 5,
    permutations: int = 999,
    max_exact: int = 20_000,
    seed: int = 0,
) -> AgreementResult:
    """Compare the distances of an embedding with each other and with pairwise metrics.

    Distances share models, so that their pairs are not independent: p-values are those of Mantel
    1967 (Cancer Research 27, 209), from other orders of the models, and one-sided: over all orders
    if there are at most `max_exact`, otherwise (1 + number at least as large) / (1 + permutations)
    (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585). They are not corrected for the number of
    comparisons.

    Parameters
    ----------
    embedding
        At least four models.
    distances
        Kinds of distance of the embedding; see `ModelEmbedding.distances`.
    metrics
        Names of metrics, which are computed from the embedded population, or of the embedding where
        they compare what it holds (`theta`, or a plugin's); or results of `pairwise` that hold its
        models.
    options
        From the name of a metric to its options.
    site, rows
        As in `pairwise`, of metrics of the population that compare states or outputs.
    shown
        Pairs of models on which two kinds of distance differ most, to list.
    permutations
        Random orders of the models.
    max_exact
        Largest number of orders that are enumerated; 0 never enumerates.
    seed
        Of the orders.

    Returns
    -------
    AgreementResult

    Raises
    ------
    InvalidInput
        If there are too few models or kinds of distance, all distances of a kind are equal, or an
        option does not fit.
    UnknownName
        If there is no such metric, or a comparison lacks a model.
    DuplicateName
        If two kinds of distance have one name.
    """
    models = len(embedding.ids)
    if models < FEWEST:
        raise InvalidInput(
            f"Distances agree or not over pairs of models: {FEWEST} or more are needed, this "
            f"embedding has {models}."
        )
    for what, value, least in (
        ("permutations", permutations, 1), ("max_exact", max_exact, 0), ("shown", shown, 0)
    ):  # fmt: skip
        if value < least:
            raise InvalidInput(f"{what} must be at least {least}, got {value}.")
    squares = _squares(embedding, distances, metrics, options or {}, site=site, rows=rows)
    names = list(squares)
    if len(names) < 2:
        raise InvalidInput(f"Expected two or more kinds of distance, got {names}.")
    upper = np.triu_indices(models, 1)
    pairs = np.stack([square[upper] for square in squares.values()])
    for name, values in zip(names, pairs, strict=True):
        if not np.ptp(values) > 1e-12 * np.abs(values).max():
            raise InvalidInput(
                f"All distances {name!r} are equal, so that they agree with nothing. Leave that "
                "kind out."
            )
    ranks = np.stack([rankdata(values) for values in pairs])
    standard = np.stack([_standardised(pairs), _standardised(ranks)])
    whole = np.zeros((2, len(names), models, models))
    whole[:, :, upper[0], upper[1]] = whole[:, :, upper[1], upper[0]] = standard
    first, second = np.triu_indices(len(names), 1)

    def statistics(orders: NDArray[np.int64]) -> NDArray[np.float64]:
        """(order, model) to (2 kinds of correlation x two kinds of distance, order)."""
        moved = whole[:, :, orders[:, upper[0]], orders[:, upper[1]]]
        found = np.einsum("cfp,csop->cfso", standard, moved)[:, first, second]
        flat: NDArray[np.float64] = found.reshape(-1, len(orders))
        return flat

    test = permutation_test(
        statistics,
        np.arange(models),
        permutations=permutations,
        max_exact=max_exact,
        seed=seed,
        width=models * len(names),
    )
    pearson, spearman = test.observed.reshape(2, -1)
    pearson_p, spearman_p = test.p_values.reshape(2, -1)
    table = pd.DataFrame(
        {
            "first": [names[place] for place in first],
            "second": [names[place] for place in second],
            "pearson": pearson,
            "pearson_p": pearson_p,
            "spearman": spearman,
            "spearman_p": spearman_p,
        }
    )
    correlations = pd.DataFrame(standard[1] @ standard[1].T, index=names, columns=names)
    return AgreementResult(
        table,
        _disagreements(embedding.ids, names, ranks, upper, shown),
        correlations,
        models,
        test.labellings,
        test.exact,
    )


def _squares(
    embedding: ModelEmbedding,
    distances: Sequence[OwnDistance],
    metrics: Sequence[str | PairwiseDistances],
    options: Mapping[str, Mapping[str, Any]],
    *,
    site: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None,
    rows: int | None,
) -> dict[str, NDArray[np.float64]]:
    """Return kind of distance to (model, model), in the order of the embedding."""
    if isinstance(distances, str) or isinstance(metrics, str):
        raise InvalidInput("distances and metrics are lists of names; write ['theta'], ['cka'].")
    asked = [metric for metric in metrics if isinstance(metric, str)]
    for name in options:
        if name not in asked:
            raise UnknownName(f"options name the metric {name!r}. {suggest(name, asked)}")
    found: dict[str, NDArray[np.float64]] = {}
    for kind in distances:
        _check_new(kind, found)
        found[kind] = embedding.distances(kind).to_numpy()
    for metric in metrics:
        name = metric if isinstance(metric, str) else metric.metric
        _check_new(name, found)
        compared = metric
        if isinstance(compared, str):
            chosen = metric_by_name(compared, **options.get(compared, {}))
            recorded = chosen.reads not in OF_EMBEDDING
            compared = pairwise(
                embedding,
                chosen,
                site=site if recorded else None,
                rows=rows if recorded else None,
                progress=False,
            )
        missing = [model for model in embedding.ids if model not in compared.ids]
        if missing:
            raise UnknownName(
                f"The comparison by {name!r} has no model {missing[0]!r}. Compare the models of "
                "the embedding."
            )
        places = [compared.ids.index(model) for model in embedding.ids]
        found[name] = compared.symmetric_distances()[np.ix_(places, places)]
    return found


def _check_new(name: str, found: Mapping[str, object]) -> None:
    if name in found:
        raise DuplicateName(f"Two kinds of distance are called {name!r}. Give one of them.")


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of mean 0 and norm 1."""
    centred = values - values.mean(1, keepdims=True)
    unit: NDArray[np.float64] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit


def _disagreements(
    ids: Sequence[str],
    names: Sequence[str],
    ranks: NDArray[np.float64],
    upper: tuple[NDArray[np.int64], ...],
    shown: int,
) -> pd.DataFrame:
    shares = (ranks - 1) / (ranks.shape[1] - 1)
    models = np.array(ids, dtype=object)
    parts = []
    for first, second in combinations(range(len(names)), 2):
        apart = shares[first] - shares[second]
        order = np.argsort(-np.abs(apart), kind="stable")[:shown]
        parts.append(
            pd.DataFrame(
                {
                    "first_distance": names[first],
                    "second_distance": names[second],
                    "first": models[upper[0][order]],
                    "second": models[upper[1][order]],
                    "first_rank": shares[first, order],
                    "second_rank": shares[second, order],
                    "difference": apart[order],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
