"""Paths of training runs through the embedding of their checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from dynamo_plugin.analyses._coordinates import Distance, model_coordinates
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses._runs import Runs, convergence_of, read_runs, step_reached
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.analyses.labels import LabelSource
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["TrainingTrajectoryResult", "training_trajectory"]

SMALLEST, LARGEST = 4.0, 13.0
"""Size of the markers of the first and the last checkpoint of a run."""

MOST_IN_LEGEND = 25
"""Runs up to which the plot has a legend."""

NONE = 1e-9
"""Share of the largest distance below which a distance is none."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingTrajectoryResult(TableResult):
    """Where each checkpoint of some training runs lies; made by `training_trajectory`.

    The table has one row per checkpoint, run after run in order of the steps: `model`, `run`,
    `step`, `order` (from 1), `pc_1`, `pc_2`, ... (coordinates on the leading principal components
    of all checkpoints), `moved` (distance from the checkpoint before; missing for the first),
    `path_length` (sum of these), `to_last` (distance from the last checkpoint of the run),
    `nearest_other` (the nearest checkpoint of another run), `nearest_other_run`,
    `nearest_other_step` and `nearest_other_distance`, missing where there is one run. Distances are
    those of all dimensions.
    """

    runs: pd.DataFrame
    """One row per run: `run`, `checkpoints`, `first_step`, `last_step`, `path_length`,
    `displacement` (from the first checkpoint to the last), `straightness` (displacement by path
    length, 1 for a straight path), `half_step` and `most_step` (steps at which the distance from
    the last checkpoint has first fallen by 50 and by 90 % of the displacement, straight lines
    between checkpoints), and `note`, which says why some are missing."""
    convergence: pd.DataFrame
    """One row per step that all runs have: `step`, `runs`, `mean_distance` (between runs, over
    pairs), `ratio` (by that at the first such step: below 1, runs have come together), `ratio_low`
    and `ratio_high` (95 % confidence) and `ratio_p` (two-sided, for a ratio of 1)."""
    convergence_note: str
    """Why some of that is missing; empty if nothing is."""
    explained: tuple[float, ...]
    """Share of the variance of all checkpoints along each component."""
    distance: Distance
    """Which distance between checkpoints was used."""
    name: ClassVar[str] = "training_trajectory"
    reference: ClassVar[str] = (
        "Cotler et al. 2023, arXiv:2302.14078; Arvesen 1969, doi:10.1214/aoms/1177697287"
    )

    def summary(self) -> dict[str, JSON]:
        """Return the figures of the runs together, and whether they come together."""
        straightness = self.runs["straightness"].dropna()
        last = self.convergence.tail(1).to_dict(orient="records")
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "checkpoints": len(self.table),
                "runs": len(self.runs),
                "distance": self.distance,
                "path_length_mean": self.runs["path_length"].mean(),
                "displacement_mean": self.runs["displacement"].mean(),
                "straightness_mean": straightness.mean() if len(straightness) else None,
                "common_steps": len(self.convergence),
                "convergence": last[0] if last else None,
                "convergence_note": self.convergence_note,
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return every run's path in the plane of the first two components.

        Markers grow with the step; runs differ in colour.
        """
        import plotly.colors
        import plotly.graph_objects as go

        figure = go.Figure()
        names = self.runs["run"].tolist()
        few = list(style_figure(go.Figure()).layout.colorway)
        colours = (
            few
            if len(names) <= len(few)
            else plotly.colors.sample_colorscale("Turbo", np.linspace(0.05, 0.95, len(names)))
        )
        second = "pc_2" if "pc_2" in self.table else None
        for colour, (run, rows) in zip(
            colours, self.table.groupby("run", sort=False), strict=False
        ):
            sizes = np.linspace(SMALLEST, LARGEST, len(rows)) if len(rows) > 1 else [LARGEST]
            figure.add_trace(
                go.Scatter(
                    x=rows["pc_1"].to_numpy(),
                    y=rows[second].to_numpy() if second else np.zeros(len(rows)),
                    text=[plot_text(model) for model in rows["model"]],
                    customdata=rows["step"].to_numpy(),
                    name=plot_text(run),
                    mode="lines+markers",
                    line={"width": 1.5, "color": colour},
                    marker={"size": list(sizes), "opacity": 0.85, "line": {"width": 0}},
                    hovertemplate="%{text}<br>step %{customdata:.6~g}<extra>%{fullData.name}"
                    "</extra>",
                )
            )
        figure.update_xaxes(title={"text": f"component 1 ({self.explained[0]:.0%})"})
        shown = f"({self.explained[1]:.0%})" if second else "(there is only one)"
        figure.update_yaxes(title={"text": f"component 2 {shown}"}, scaleanchor="x")
        return style_figure(figure).update_layout(
            showlegend=len(names) <= MOST_IN_LEGEND, legend={"title": {"text": "run"}}
        )


@analysis
def training_trajectory(
    embedding: ModelEmbedding,
    *,
    run: LabelSource,
    step: LabelSource,
    distance: Distance = "theta",
    components: int = 3,
) -> TrainingTrajectoryResult:
    """Follow training runs through the embedding of their checkpoints.

    The checkpoints of some runs are embedded as one population, so that their thetas lie in one
    space (Cotler et al. 2023, arXiv:2302.14078): a run is then a path. How long it is and how
    straight, when most of the way is done, and whether runs come together.

    Runs come together by the ratio of their mean distance at a step to that at the first step that
    all have. Its interval and p-value are those of a jackknife over runs of the logarithm, with
    Student's t (Arvesen 1969, doi:10.1214/aoms/1177697287): runs are taken for independent draws
    of all runs there might be, pairs of runs are not. With few runs it is approximate. Thetas of
    runs that had learned nothing yet differ as initial weights do.

    Parameters
    ----------
    embedding
        Of checkpoints.
    run
        Which run each is a checkpoint of: a metadata column, a mapping from model id, or one per
        model.
    step
        At which training step or epoch: the same, of numbers.
    distance
        `theta`: Euclidean, of thetas. `functional`: see `ModelEmbedding.distances`; the population
        is read, and coordinates are those of classical scaling (Torgerson 1952,
        doi:10.1007/BF02288916).
    components
        How many principal components to give, if there are so many.

    Returns
    -------
    TrainingTrajectoryResult

    Raises
    ------
    UnknownName
        If there is no such metadata column or model.
    InvalidInput
        If a run or step is missing, a step is no number, a run has two checkpoints of one step, no
        run has two checkpoints, all checkpoints lie at one place, or an option is out of range.
    """
    if components < 1:
        raise InvalidInput(f"components must be at least 1, got {components}.")
    runs = read_runs(embedding, run, step)
    coordinates, distances = model_coordinates(embedding, distance)
    if not (coordinates.std(0) > 1e-7 * np.abs(coordinates).max()).any():
        raise InvalidInput(
            f"All {len(coordinates)} checkpoints lie at one place, so that no run has a path. Fit "
            "longer, or with a smaller theta_decay."
        )
    pca = PCA(min(components, len(coordinates) - 1, coordinates.shape[1]), svd_solver="full")
    scores = pca.fit_transform(coordinates)
    convergence, note = convergence_of(runs, distances)
    paths = [_path(places, distances) for places in runs.checkpoints]
    return TrainingTrajectoryResult(
        _table(embedding.ids, runs, scores, distances, paths),
        pd.DataFrame(
            [
                _describe(name, runs.steps[places], path, NONE * float(distances.max()))
                for name, places, path in zip(runs.names, runs.checkpoints, paths, strict=True)
            ]
        ).astype(dict.fromkeys(("straightness", "half_step", "most_step"), "Float64")),
        convergence,
        note,
        tuple(pca.explained_variance_ratio_.tolist()),
        distance,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """Distances along one run, (checkpoint,) each."""

    moved: NDArray[np.float64]
    """From the one before; 0 for the first."""
    to_last: NDArray[np.float64]

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Of the path up to each checkpoint."""
        lengths: NDArray[np.float64] = np.cumsum(self.moved)
        return lengths


def _path(places: NDArray[np.int64], distances: NDArray[np.float64]) -> _Path:
    moved = np.concatenate([[0.0], distances[places[:-1], places[1:]]])
    return _Path(moved, distances[places, places[-1]])


def _table(
    ids: tuple[str, ...],
    runs: Runs,
    scores: NDArray[np.float64],
    distances: NDArray[np.float64],
    paths: list[_Path],
) -> pd.DataFrame:
    codes = runs.codes
    order = np.concatenate(runs.checkpoints)
    columns: dict[str, Any] = {
        "model": [ids[place] for place in order],
        "run": [runs.names[code] for code in codes[order]],
        "step": runs.steps[order],
        "order": np.concatenate([np.arange(len(each)) + 1 for each in runs.checkpoints]),
        **{f"pc_{number}": values for number, values in enumerate(scores[order].T, start=1)},
        "moved": np.concatenate([path.moved for path in paths]),
        "path_length": np.concatenate([path.lengths for path in paths]),
        "to_last": np.concatenate([path.to_last for path in paths]),
    }
    table = pd.DataFrame(columns).astype({"moved": "Float64"})
    table.loc[table["order"] == 1, "moved"] = pd.NA
    if len(runs.names) > 1:
        apart = np.where(codes[:, None] == codes, np.inf, distances)[order]
        nearest = apart.argmin(1)
        table["nearest_other"] = [ids[place] for place in nearest]
        table["nearest_other_run"] = [runs.names[code] for code in codes[nearest]]
        table["nearest_other_step"] = pd.array(runs.steps[nearest], dtype="Float64")
        table["nearest_other_distance"] = pd.array(apart.min(1), dtype="Float64")
    else:
        table["nearest_other"] = table["nearest_other_run"] = None
        table["nearest_other_step"] = pd.array([pd.NA] * len(table), dtype="Float64")
        table["nearest_other_distance"] = pd.array([pd.NA] * len(table), dtype="Float64")
    return table


def _describe(name: str, steps: NDArray[np.float64], path: _Path, none: float) -> dict[str, Any]:
    """Return the row of a run; distances up to `none` are none."""
    length, displacement = float(path.lengths[-1]), float(path.to_last[0])
    note, straightness, half, most = "", None, None, None
    if len(steps) < 2:
        note = "there is one checkpoint only"
    elif length <= none:
        note = "no checkpoint has moved"
    else:
        straightness = min(displacement / length, 1.0)
        if displacement <= none:
            note = "the last checkpoint lies where the first does"
        else:
            done = 1 - path.to_last / displacement
            half, most = (step_reached(steps, done, share) for share in (0.5, 0.9))
    return {
        "run": name,
        "checkpoints": len(steps),
        "first_step": steps[0],
        "last_step": steps[-1],
        "path_length": length,
        "displacement": displacement,
        "straightness": straightness,
        "half_step": half,
        "most_step": most,
        "note": note,
    }
