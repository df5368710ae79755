"""The score on the task over a plane of thetas, and whether its best point beats the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._plane import Plane, PlaneSource, in_hull, read_plane
from dynamo_plugin.analyses._result import TableResult, plain, style_figure
from dynamo_plugin.analyses._scoring import Scores, TargetSource, TaskScorer, the_output
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["LandscapeResult", "landscape"]

FEWEST = 4
"""Samples: two to choose on, and two to report."""

BEST = "best grid point"
"""The candidate that the others are compared with."""


@dataclass(frozen=True, slots=True, eq=False)
class LandscapeResult(TableResult):
    """Scores of the networks at a grid of thetas; made by `landscape`.

    The table has one row per grid point, `x` fastest: `x` and `y` (coordinates in the plane, in
    units of theta), `chosen_score` and `chosen_se` (score and standard error on the samples that
    the best point is chosen on), `held_out_score` and `held_out_se` (on the others, which are held
    out from the choice), `in_hull` (whether its theta is a weighted mean of the networks' thetas),
    `in_projected_hull` (whether it is one of their projections onto the plane), `distance` (of its
    theta to the nearest network's) and `nearest` (that network).

    The score is accuracy or R2; the latter is relative to the mean of the targets over both
    halves of the samples.
    """

    candidates: pd.DataFrame
    """Networks to choose, each chosen on one half of the samples, one row each: `candidate` (the
    best grid point, the best one in the hull of the thetas, the mean theta, the best emulated
    network, the best network itself), `model` (where it is a network), `x` and `y` (where it is a
    grid point), `chosen_score`, `held_out_score`, `held_out_se`, `difference` (held-out score of
    the best grid point less this one's), `difference_se` (of the paired samples), and `note` (why
    figures are missing)."""
    networks: pd.DataFrame
    """One row per network: `model`, `x`, `y` (its projection), `plane_distance` (from the plane),
    and the scores of its emulation and its own: `emulated_chosen_score`, `emulated_chosen_se`,
    `emulated_held_out_score`, `emulated_held_out_se`, `own_chosen_score`, and so on."""
    thetas: pd.DataFrame
    """(grid point, embedding_dim): the thetas of the grid, indexed like the table."""
    plane: Plane
    """Where the grid lies."""
    score_kind: Literal["accuracy", "r2"]
    """What the scores are."""
    output_group: str
    """Which readout answers."""
    sample_counts: tuple[int, int]
    """Samples to choose on, and samples to report."""
    best: int
    """Row of the best grid point."""
    ties: int
    """Grid points that scored as high as the best one where it was chosen, itself among them."""
    name: ClassVar[str] = "landscape"
    reference: ClassVar[str] = (
        "Cotler et al. 2023, arXiv:2302.14078; planes through three networks: Garipov et al. 2018, "
        "arXiv:1802.10026"
    )

    def summary(self) -> dict[str, JSON]:
        """Return the best point, what it scores on samples it was not chosen on, and the others."""
        row = self.table.iloc[self.best]
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "score_kind": self.score_kind,
                "output_group": self.output_group,
                "grid_points": len(self.table),
                "networks": len(self.networks),
                "samples_to_choose_on": self.sample_counts[0],
                "held_out_samples": self.sample_counts[1],
                "best_point": {**row.to_dict(), "ties": self.ties},
                "candidates": self.candidates.to_dict(orient="records"),
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return the held-out score over the plane, the networks in it, and the best point."""
        from dynamo_plugin.analyses._landscape_plot import plot_landscape

        return style_figure(plot_landscape(self)).update_layout(
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"}
        )


@analysis
def landscape(
    embedding: ModelEmbedding,
    *,
    plane: PlaneSource = "components",
    resolution: int = 21,
    margin: float = 0.25,
    targets: TargetSource | None = None,
    output_group: str | None = None,
    samples: Literal["held_out", "all"] = "held_out",
    seed: int = 0,
    progress: bool = True,
) -> LandscapeResult:
    """Score the networks at a grid of thetas, and see whether the best of them beats the networks.

    Every theta is a network (Cotler et al. 2023, arXiv:2302.14078), between the embedded ones and
    beyond them. The best of many grid points is partly the luckiest. So the samples are divided at
    random into two halves: the best grid point, the best emulated network and the best network are
    chosen on one, and compared on the other, whichever way that falls. Of grid points that score
    the same where they are chosen, the one nearest the mean theta is taken.

    With `samples="all"` most samples are some that the meta-model has learned from.

    Parameters
    ----------
    embedding
        Its population is read.
    plane
        `components`: the two leading principal components of the thetas, through their mean. Three
        model ids: the plane through their thetas (Garipov et al. 2018, arXiv:1802.10026). Two
        directions (2, embedding_dim): the plane along them through the mean theta.
    resolution
        Grid points per axis, at least 2.
    margin
        How far the grid goes beyond the projections of the networks (of the three, where three
        are named), as a share of their extent, on every side.
    targets
        As in `average`; by default those captured with the inputs.
    output_group
        Which readout answers, and whose networks are looked at; may be left out where there is
        only one.
    samples
        `held_out`, the samples kept aside by the fit, or `all`; at least four.
    seed
        Of the division of the samples.
    progress
        Whether to show a bar on stderr.

    Returns
    -------
    LandscapeResult

    Raises
    ------
    InvalidInput
        If thetas span no plane, an option is out of range, there are no targets or they do not
        fit, there are too few samples, or outputs at the edge of the grid are not finite.
    UnknownName
        If there is no such model or output group.
    StoreNotFound
        If the population is no longer there.
    """
    if resolution < 2:
        raise InvalidInput(f"resolution must be at least 2 grid points per axis, got {resolution}.")
    if not 0 <= margin < np.inf:
        raise InvalidInput(f"margin must be a share of the extent, 0 or more, got {margin!r}.")
    if samples not in ("held_out", "all"):
        raise InvalidInput(f"samples must be 'held_out' or 'all', got {samples!r}.")
    group = the_output(embedding, output_group).group
    members = np.flatnonzero(np.array(embedding.output_groups) == group)
    ids = [embedding.ids[member] for member in members]
    thetas = embedding.thetas.double().numpy()[members]
    seen = read_plane(embedding, members, plane)
    scorer = TaskScorer(
        embedding,
        targets=targets,
        output_group=group,
        samples=None if samples == "held_out" else np.arange(len(embedding.population.lengths)),
    )
    chosen, held_out = _halves(len(scorer.samples), seed)
    points = seen.grid(resolution, margin)
    grid = seen.thetas(points)
    mean = thetas.mean(0)
    # In one call, so that grid, networks and mean run side by side: grid first, mean last.
    emulated = scorer.thetas(np.concatenate([grid, thetas, mean[None]]), progress=progress)
    every = Scores(
        emulated.kind,
        np.concatenate([emulated.gains, scorer.recorded(ids).gains]),
        emulated.weights,
    )
    halves = _Halves(every.of(chosen), every.of(held_out))
    if not min(halves.chosen.weights.sum(), halves.held_out.weights.sum()) > 0:
        raise InvalidInput(
            "R2 needs targets that vary on both halves of the samples; on one of them they are "
            "all equal to the mean. Use more samples."
        )
    in_projection = in_hull(points, seen.coordinates(thetas))
    inside = in_projection.copy()
    inside[in_projection] = in_hull(grid[in_projection], thetas)
    distances = np.linalg.norm(grid[:, None] - thetas, axis=2)
    nearest = distances.argmin(1)
    count, networks = len(grid), len(ids)
    table = pd.DataFrame(
        {
            "x": points[:, 0],
            "y": points[:, 1],
            **halves.columns("", slice(0, count)),
            "in_hull": inside,
            "in_projected_hull": in_projection,
            "distance": distances[np.arange(count), nearest],
            "nearest": np.array(ids, dtype=object)[nearest],
        }
    )
    own = count + networks + 1
    values = halves.chosen.values
    from_mean = np.linalg.norm(grid - mean, axis=1)
    best, ties = _best(values[:count], from_mean, np.ones(count, dtype=bool))
    found: dict[str, int | None] = {
        BEST: best,
        "best grid point in hull": _best(values[:count], from_mean, inside)[0]
        if inside.any()
        else None,
        "mean": count + networks,
        "best emulated network": count + int(values[count : count + networks].argmax()),
        "best network": own + int(values[own:].argmax()),
    }
    projected = seen.coordinates(thetas)
    frame = pd.DataFrame(
        {
            "model": ids,
            "x": projected[:, 0],
            "y": projected[:, 1],
            "plane_distance": np.linalg.norm(thetas - seen.thetas(projected), axis=1),
            **halves.columns("emulated_", slice(count, count + networks)),
            **halves.columns("own_", slice(own, None)),
        }
    )
    columns = [f"theta_{dimension}" for dimension in range(grid.shape[1])]
    return LandscapeResult(
        table,
        _candidates(found, halves, points, [*ids, None, *ids]),
        frame,
        pd.DataFrame(grid, columns=columns),
        seen,
        scorer.kind,
        group,
        (len(chosen), len(held_out)),
        best,
        ties,
    )


@dataclass(frozen=True, slots=True)
class _Halves:
    chosen: Scores
    """On the samples to choose on; networks are grid points, emulations, the mean, networks."""
    held_out: Scores

    def columns(self, prefix: str, rows: slice) -> dict[str, NDArray[np.float64]]:
        return {
            f"{prefix}{half}_{what}": values[rows]
            for half, scores in (("chosen", self.chosen), ("held_out", self.held_out))
            for what, values in (("score", scores.values), ("se", scores.standard_errors))
        }


def _halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of some samples to choose on, and which to report."""
    if count < FEWEST:
        raise InvalidInput(
            f"To choose on one half of the samples and report on the other takes {FEWEST} or more, "
            f"got {count}. Keep more aside with held_out=..., or use samples='all'."
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def _best(
    values: NDArray[np.float64], from_mean: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> tuple[int, int]:
    """Return the best of the allowed points, the nearest to the mean of several, and how many."""
    equal = np.flatnonzero(allowed & (values >= values[allowed].max() - 1e-12))
    return int(equal[from_mean[equal].argmin()]), len(equal)


def _candidates(
    found: dict[str, int | None],
    halves: _Halves,
    points: NDArray[np.float64],
    models: list[str | None],
) -> pd.DataFrame:
    """Return the frame of the candidates; `models` are those of the rows after the grid's."""
    best = found[BEST]
    assert best is not None
    differences, errors = halves.held_out.above(best)
    rows = []
    for candidate, place in found.items():
        if place is None:
            note = "no grid point lies in the hull of the thetas; a finer grid may have one"
            rows.append({"candidate": candidate, "model": None, "note": note})
            continue
        on_grid = place < len(points)
        rows.append(
            {
                "candidate": candidate,
                "model": None if on_grid else models[place - len(points)],
                "x": points[place, 0] if on_grid else None,
                "y": points[place, 1] if on_grid else None,
                "chosen_score": halves.chosen.values[place],
                "held_out_score": halves.held_out.values[place],
                "held_out_se": halves.held_out.standard_errors[place],
                "difference": 0.0 - differences[place],
                "difference_se": errors[place],
                "note": "",
            }
        )
    numbers = ["x", "y", "chosen_score", "held_out_score", "held_out_se"]
    numbers += ["difference", "difference_se"]
    ordered = pd.DataFrame(rows, columns=["candidate", "model", *numbers, "note"])
    return ordered.astype(dict.fromkeys(numbers, "Float64"))
