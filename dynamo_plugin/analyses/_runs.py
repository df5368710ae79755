"""Checkpoints of training runs: which run each is of, at which step, and whether runs converge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from dynamo_plugin.analyses.labels import LabelSource, read_labels
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["Runs", "convergence_of", "read_runs", "step_reached"]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The checkpoints of every run, in the order of their steps."""

    names: tuple[str, ...]
    """Of the runs."""
    checkpoints: tuple[NDArray[np.int64], ...]
    """Of every run, (checkpoint,) places of its models in the embedding, first step first."""
    steps: NDArray[np.float64]
    """(model,): the training step of each."""

    @property
    def codes(self) -> NDArray[np.int64]:
        """(model,): which run each is of."""
        found = np.empty(len(self.steps), np.int64)
        for run, places in enumerate(self.checkpoints):
            found[places] = run
        return found

    @property
    def common_steps(self) -> list[float]:
        """The steps at which every run has a checkpoint, in order."""
        shared = set.intersection(*(set(self.steps[each].tolist()) for each in self.checkpoints))
        return sorted(shared)

    def at(self, step: float) -> NDArray[np.int64]:
        """Return (run,): places of the checkpoints at a step that all runs have."""
        return np.array(
            [each[np.flatnonzero(self.steps[each] == step)[0]] for each in self.checkpoints]
        )


def read_runs(embedding: ModelEmbedding, run: LabelSource, step: LabelSource) -> Runs:
    """Return which run every model is a checkpoint of, and of which step.

    Raises
    ------
    UnknownName
        If there is no such metadata column or model.
    InvalidInput
        If one is missing, a step is no finite number, a run has two checkpoints of one step, or no
        run has two checkpoints.
    """
    runs, texts = read_labels(embedding, run), read_labels(embedding, step)
    steps = np.array([_number(model, text, texts.name) for model, text in zip(
        embedding.ids, texts.of_models, strict=True
    )])  # fmt: skip
    checkpoints = []
    for code, name in enumerate(runs.values):
        places = np.flatnonzero(runs.codes == code)
        places = places[np.argsort(steps[places], kind="stable")]
        twice = np.flatnonzero(np.diff(steps[places]) == 0)
        if len(twice):
            first, second = (embedding.ids[places[twice[0] + offset]] for offset in (0, 1))
            raise InvalidInput(
                f"Expected one checkpoint per step; the run {name!r} has {first!r} and {second!r} "
                f"at step {steps[places[twice[0]]]:g}. Give them different runs or steps, or leave "
                "one out of the population."
            )
        checkpoints.append(places)
    if max(map(len, checkpoints)) < 2:
        raise InvalidInput(
            f"A path needs two checkpoints of one run; by {runs.name!r}, each of the "
            f"{len(checkpoints)} runs has a single one. Name what checkpoints of one run share."
        )
    return Runs(runs.values, tuple(checkpoints), steps)


def step_reached(steps: NDArray[np.float64], done: NDArray[np.float64], share: float) -> float:
    """Return the step at which a share is first done, straight lines between checkpoints.

    Parameters
    ----------
    steps
        (checkpoint,) in order.
    done
        (checkpoint,): 0 at the first, 1 at the last.
    share
        Between 0 and 1.

    Examples
    --------
    >>> step_reached(np.array([0.0, 10.0, 30.0]), np.array([0.0, 0.4, 1.0]), 0.7)
    20.0
    """
    after = int(np.argmax(done >= share - 1e-12))
    before = after - 1
    part = (share - done[before]) / (done[after] - done[before])
    return float(steps[before] + part * (steps[after] - steps[before]))


def convergence_of(runs: Runs, distances: NDArray[np.float64]) -> tuple[pd.DataFrame, str]:
    """Return how far runs are from each other at every common step, and what cannot be said.

    The ratio of the mean distance at a step to that at the first common one, its logarithm with a
    jackknife over runs: pairs that share a run are not independent, runs are (Arvesen 1969,
    doi:10.1214/aoms/1177697287, on the jackknife of U-statistics).
    """
    columns = ["step", "runs", "mean_distance", "ratio", "ratio_low", "ratio_high", "ratio_p"]
    count = len(runs.names)
    common = runs.common_steps
    if count < 2:
        return _frame([], columns), "there is one run only"
    if not common:
        return _frame([], columns), "no step is common to all runs"
    squares = np.stack([distances[np.ix_(runs.at(step), runs.at(step))] for step in common])
    sums = squares.sum((1, 2))
    means = sums / (count * (count - 1))
    rows = [
        {"step": step, "runs": count, "mean_distance": mean}
        for step, mean in zip(common, means.tolist(), strict=True)
    ]
    notes = []
    tiny = 1e-9 * max(float(distances.max()), 1e-300)
    if len(common) < 2:
        notes.append("only one step is common to all runs")
    elif means[0] <= tiny:
        notes.append("runs begin at the same place, so that no ratio to the first step is defined")
    else:
        for row, mean in zip(rows, means.tolist(), strict=True):
            row["ratio"] = mean / means[0]
        if count < 4:
            notes.append("an interval of the ratio needs 4 runs")
        else:
            missing = _add_intervals(rows, squares, sums, tiny)
            if missing:
                notes.append(
                    "no interval where all runs but one are at the same place: step "
                    + ", ".join(f"{step:g}" for step in missing)
                )
    return _frame(rows, columns), "; ".join(notes)


def _add_intervals(
    rows: list[dict[str, float]],
    squares: NDArray[np.float64],
    sums: NDArray[np.float64],
    tiny: float,
) -> list[float]:
    """Add the interval of the ratio to every row but the first; return steps that have none."""
    missing = []
    count = squares.shape[1]
    without = (sums[:, None] - 2 * squares.sum(2)) / ((count - 1) * (count - 2))
    for row, left in zip(rows[1:], without[1:], strict=True):
        if min(float(left.min()), float(without[0].min())) <= tiny:
            missing.append(row["step"])
            continue
        logs = np.log(left) - np.log(without[0])
        pseudo = count * math.log(row["ratio"]) - (count - 1) * logs
        error = float(pseudo.std(ddof=1)) / math.sqrt(count)
        centre = math.log(row["ratio"])
        student = stats.t(count - 1)
        reach = float(student.ppf(0.975)) * error
        row["ratio_low"], row["ratio_high"] = math.exp(centre - reach), math.exp(centre + reach)
        row["ratio_p"] = (
            2 * float(student.sf(abs(centre) / error)) if error > 1e-12 else float(centre == 0)
        )
    return missing


def _frame(rows: list[dict[str, float]], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=columns)
    types = {"step": "float64", "runs": "int64", "mean_distance": "float64"}
    return frame.astype({name: types.get(name, "Float64") for name in columns})


def _number(model: str, text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(
            f"Expected a finite number as the step of every checkpoint; {name!r} is {text!r} for "
            f"{model!r}. Choose the column that holds training steps or epochs."
        )
    return value
