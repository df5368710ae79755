"""From one network to another: along thetas, along weights, and by mixing what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._ends import EndSource, output_of, read_end
from dynamo_plugin.analyses._following import follow, mixed_weight_outputs, rendered_outputs
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import TableResult, plain, style_figure
from dynamo_plugin.analyses._scoring import TargetSource, TaskScorer
from dynamo_plugin.analyses._switching import mixtures
from dynamo_plugin.analyses._theta_paths import FunctionalMetric, ThetaPath, theta_paths
from dynamo_plugin.analyses.labels import LabelSource
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest
from dynamo_plugin.training import compares_decisions

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._ends import End
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.recording.recorder import ModelSource
    from dynamo_plugin.types import JSON, OutputSpec

__all__ = ["PATHS", "InterpolationResult", "PathKind", "interpolation"]

PathKind: TypeAlias = Literal["linear", "geodesic", "weights", "outputs"]

PATHS: tuple[PathKind, ...] = ("linear", "geodesic", "weights", "outputs")

POINT_COLUMNS = {
    "path": "object",
    "point": "int64",
    "position": "float64",
    "distance": "Float64",
    **dict.fromkeys(("score", "score_se", "below_line", "below_line_se"), "Float64"),
    **dict.fromkeys(("agreement_first", "agreement_first_se"), "Float64"),
    **dict.fromkeys(("agreement_second", "agreement_second_se"), "Float64"),
}
"""Columns of the table and their types; those that are Float64 may be missing."""

PATH_COLUMNS = {
    "path": "object",
    **dict.fromkeys(("length", "length_elsewhere", "energy"), "Float64"),
    **dict.fromkeys(("barrier", "barrier_se", "barrier_position", "switch_position"), "Float64"),
    "converged": "boolean",
    "iterations": "Int64",
    "note": "object",
}
"""Columns of `InterpolationResult.paths`, likewise."""


@dataclass(frozen=True, slots=True, eq=False)
class InterpolationResult(TableResult):
    """Networks along paths from one end to another; made by `interpolation`.

    The table has one row per point of a path: `path` (`linear`, `geodesic`, `weights` or
    `outputs`), `point` (from 0), `position` (from 0 to 1: the share of the second end; along the
    geodesic, whose steps are of one length, the share of the way), `distance` (how far along the
    path the point is, by what the networks do; missing where the path is not one of thetas),
    `score` and `score_se` (its standard error), `below_line` and `below_line_se` (how far the score
    is below the straight line between those of the ends), `agreement_first`, `agreement_first_se`,
    `agreement_second`, `agreement_second_se` (of its outputs with those at the ends of the same
    path). The ends of `linear` and `geodesic` are emulations, those of `weights` and `outputs` the
    networks themselves.
    """

    paths: pd.DataFrame
    """One row per path: `path`; `length`, on the samples that the geodesic is sought on, and
    `length_elsewhere`, on the other held-out samples; `energy` (the sum of the
    squares of the steps, times their number: the square of the length where steps are small and
    all of one length); `barrier`, the farthest below the line that the
    score falls, with `barrier_se` and `barrier_position`; `switch_position`, the first point whose
    outputs agree more with the second end than with the first; `converged`, `iterations` (of the
    geodesic); `note` (what is to be said about it, or why figures are missing)."""
    thetas: pd.DataFrame
    """(point, embedding_dim): thetas of the paths that have them, indexed by `path` and `point`."""
    omitted: dict[str, str]
    """Kind of path to why it is not there."""
    ends: tuple[str, str]
    """What the paths lead from and to."""
    score_kind: Literal["accuracy", "r2"] | None
    """What the scores are; None if there are none."""
    score_note: str
    """Why there are no scores; empty if there are."""
    agreement_kind: Literal["decisions", "r2"]
    """The share of equal decisions, or R2 of the outputs."""
    sample_count: int
    """Held-out samples that were scored."""
    geodesic_sample_count: int
    """Those of them on which the geodesic was sought and `length` was measured."""
    name: ClassVar[str] = "interpolation"
    reference: ClassVar[str] = (
        "Cotler et al. 2023, arXiv:2302.14078; geodesics: Arvanitidis et al. 2018, "
        "arXiv:1710.11379; barriers: Frankle et al. 2020, arXiv:1912.05671"
    )

    def summary(self) -> dict[str, JSON]:
        """Return the figures of every path, and why others are missing."""
        rows = self.paths.to_dict(orient="records")
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "first": self.ends[0],
                "second": self.ends[1],
                "score_kind": self.score_kind,
                "score_note": self.score_note,
                "agreement_kind": self.agreement_kind,
                "sample_count": self.sample_count,
                "geodesic_sample_count": self.geodesic_sample_count,
                "paths": {str(row.pop("path")): row for row in rows},
                "omitted": self.omitted,
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return score and agreement with both ends along every path."""
        from dynamo_plugin.analyses._path_plot import plot_paths

        return style_figure(plot_paths(self.table, self.score_kind, self.agreement_kind, self.ends))


@analysis
def interpolation(
    embedding: ModelEmbedding,
    *,
    first: EndSource,
    second: EndSource,
    labels: LabelSource | None = None,
    paths: Sequence[PathKind] | None = None,
    points: int = 21,
    models: Mapping[str, ModelSource] | None = None,
    capture_options: Mapping[str, Any] | None = None,
    targets: TargetSource | None = None,
    output_group: str | None = None,
    geodesic_samples: int = 16,
    geodesic_steps: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> InterpolationResult:
    """Follow paths from one network to another, and see what they score and where they switch.

    - `linear`: the networks at thetas on the straight line (Cotler et al. 2023, arXiv:2302.14078).
    - `geodesic`: those at thetas on the path along which the rendered states change least, the sum
      of the squared changes of all steps (Arvanitidis et al. 2018, arXiv:1710.11379; Shao et al.
      2018, arXiv:1711.08014). It is sought from the straight line on, and is a local minimum; if
      nothing shorter is found it is the straight line.
    - `weights`: the base networks, averaged weight by weight; buffers, such as the statistics of
      batch normalisation, are averaged too. Needs `models`.
    - `outputs`: what an ensemble of the two networks answers, from their recorded outputs: their
      probabilities are mixed where outputs are logits, else the outputs.

    A path has a barrier where its score falls below the straight line between the scores of its
    ends (Frankle et al. 2020, arXiv:1912.05671). It is the worst of all points, sought and measured
    on the same samples, so that its standard error is that of one point given beforehand.

    Parameters
    ----------
    embedding
        Its population is read. Everything is computed on the held-out samples.
    first, second
        The ends: a model id or a theta (embedding_dim,); with labels, the name of a group, for
        the mean theta of its models, or a theta.
    labels
        A metadata column, a mapping from model id to label, or one label per model.
    paths
        Which kinds; None for all that the ends and `models` allow.
    points
        Of every path, its ends among them; at least three.
    models
        Id to network, or to what makes one, of the two ends at least, for `weights`.
    capture_options
        How the networks are read, as they were given to `capture`: adapter, adapter_options,
        layers, forward, output, batch_size, device.
    targets
        As in `average`; by default those captured with the inputs. Without any there are no scores.
    output_group
        Which readout answers; by default that of the ends' networks.
    geodesic_samples
        Held-out samples, drawn at random, on which the geodesic is sought.
    geodesic_steps
        At most so many iterations of L-BFGS.
    seed
        Of the drawn samples.
    progress
        Whether to show a bar on stderr.

    Returns
    -------
    InterpolationResult

    Raises
    ------
    InvalidInput
        If an end is none, both have one theta, they belong to several output groups, an option is
        out of range, a path is asked for that cannot be, networks differ in architecture or are not
        those embedded, or targets do not fit.
    UnknownName
        If there is no such model, group or kind of path.
    StoreNotFound
        If the population is no longer there.
    """
    for what, value, least in (
        ("points", points, 3),
        ("geodesic_samples", geodesic_samples, 1),
        ("geodesic_steps", geodesic_steps, 1),
    ):
        if value < least:
            raise InvalidInput(f"{what} must be at least {least}, got {value}.")
    ends = (
        read_end(embedding, first, labels, option="first"),
        read_end(embedding, second, labels, option="second"),
    )
    if np.array_equal(ends[0].theta, ends[1].theta):
        raise InvalidInput("Both ends have the same theta, so that no path leads from one to it.")
    output = output_of(embedding, *ends, output_group)
    own = all(
        embedding.output_groups[member] == output.group for end in ends for member in end.members
    )
    omitted = _missing(paths, ends, models, own_outputs=own)
    kinds = [kind for kind in PATHS if kind in (paths or PATHS) and kind not in omitted]
    samples = embedding.held_out_samples.numpy()
    scorer, note = _scorer(embedding, targets, output)
    logits = _are_logits(embedding, output) if scorer is None else scorer.kind == "accuracy"
    counts = (
        np.ones(len(samples), np.int64)
        if output.axis == "sample"
        else np.asarray(embedding.population.lengths)[samples]
    )
    drawn = np.random.default_rng(seed).permutation(len(samples))
    sought, others = (
        FunctionalMetric(embedding, samples[np.sort(some)]) if len(some) else None
        for some in (drawn[:geodesic_samples], drawn[geodesic_samples:])
    )
    assert sought is not None
    found = theta_paths(
        sought,
        ends[0].theta,
        ends[1].theta,
        kinds=kinds,
        points=points,
        iterations=geodesic_steps,
        progress=progress,
    )
    positions = np.linspace(0, 1, points)
    rows: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    outputs: NDArray[Any]
    for kind in kinds:
        if kind in found:
            outputs = rendered_outputs(embedding, found[kind].thetas, samples, output)
        elif kind == "weights":
            outputs = mixed_weight_outputs(
                embedding,
                models or {},
                [str(end.model) for end in ends],
                positions,
                samples,
                capture_options=capture_options,
                progress=progress,
            )
        else:
            recorded = [
                embedding.population.outputs(str(end.model), samples=samples) for end in ends
            ]
            flat = [values.reshape(counts.sum(), -1) for values in recorded]
            outputs = mixtures(flat[0], flat[1], positions, logits=logits)
        followed = follow(kind, positions, outputs, scorer, counts, logits=logits)
        if kind in found:
            followed = followed.with_lengths(found[kind], others)
        rows += followed.rows
        figures.append(followed.figures)
    return InterpolationResult(
        _as_frame(rows, POINT_COLUMNS),
        _as_frame(figures, PATH_COLUMNS),
        _theta_frame(found, embedding.thetas.shape[1], points),
        omitted,
        (ends[0].name, ends[1].name),
        None if scorer is None else scorer.kind,
        note,
        "decisions" if logits else "r2",
        len(samples),
        len(sought.samples),
    )


def _missing(
    asked: Sequence[PathKind] | None,
    ends: tuple[End, End],
    models: Mapping[str, ModelSource] | None,
    *,
    own_outputs: bool,
) -> dict[str, str]:
    """Return the kinds of path that are left out, and why; raise if one of them was asked for."""
    if isinstance(asked, str):
        raise InvalidInput(f"paths must be a list of kinds; write [{asked!r}].")
    for kind in asked or ():
        if kind not in PATHS:
            raise UnknownName(f"There is no kind of path {kind!r}. {suggest(str(kind), PATHS)}")
    reasons, both = {}, ""
    if any(end.model is None for end in ends):
        both = "it leads between two networks, and an end is not the id of one"
    elif not own_outputs:
        both = "an end is of another output group than the one that is looked at"
    if both and models is not None:
        raise InvalidInput(f"models were given, but the path of weights cannot be: {both}.")
    if both:
        reasons = {"weights": both, "outputs": both}
    elif models is None:
        reasons = {"weights": "the networks are not given; pass models={id: network, ...}"}
    if asked is None:
        return reasons
    for kind in asked:
        if kind in reasons:
            raise InvalidInput(f"The path {kind!r} cannot be followed: {reasons[kind]}.")
    if not asked:
        raise InvalidInput(f"paths names no kind of path. Name some of {', '.join(PATHS)}.")
    return {kind: "it was not asked for" for kind in PATHS if kind not in asked}


def _scorer(
    embedding: ModelEmbedding, targets: TargetSource | None, output: OutputSpec
) -> tuple[TaskScorer | None, str]:
    """Return what scores, or why nothing does."""
    if targets is None and embedding.population.inputs.targets is None:
        return None, "no targets were captured with the inputs, and none are given"
    return TaskScorer(embedding, targets=targets, output_group=output.group), ""


def _are_logits(embedding: ModelEmbedding, output: OutputSpec) -> bool:
    losses = embedding.config.output_loss
    return compares_decisions(losses if isinstance(losses, str) else (losses or {})[output.group])


def _as_frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Return a frame of these columns and types; what a row lacks is missing."""
    series = {
        name: pd.Series([row.get(name) for row in rows], dtype=dtype)
        for name, dtype in columns.items()
    }
    return pd.DataFrame(series)


def _theta_frame(found: Mapping[str, ThetaPath], dim: int, points: int) -> pd.DataFrame:
    values = [path.thetas for path in found.values()]
    return pd.DataFrame(
        np.concatenate(values) if values else np.empty((0, dim)),
        index=pd.MultiIndex.from_product([list(found), range(points)], names=["path", "point"]),
        columns=[f"theta_{dimension}" for dimension in range(dim)],
    )
