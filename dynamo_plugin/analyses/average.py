"""The average network of each group, beside its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dynamo_plugin.analyses._average_groups import Group, ModelSets, find_groups
from dynamo_plugin.analyses._average_scores import ensemble_scores, weight_scores
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import LONGEST_TICK, TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses._scoring import Scores, TargetSource, TaskScorer
from dynamo_plugin.analyses.labels import LabelSource

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.recording.recorder import ModelSource
    from dynamo_plugin.types import JSON

__all__ = ["AverageResult", "average"]


@dataclass(frozen=True, slots=True, eq=False)
class AverageResult(TableResult):
    """Task scores of rendered centroids and of the networks that they average; made by `average`.

    The table has one row per group: `group`, `grouping` (what the group is a value of), `members`
    (how many), `score_kind` (`accuracy` or `r2`), `centroid_score`, `members_emulated_mean`,
    `_min` and `_max` (the members' emulations), `members_mean`, `_min` and `_max` (the networks
    themselves), `ensemble_score` (the mean of the members' class probabilities, or of their real
    outputs), `weights_score` (the network with the members' mean weights) and `weights_reason` (why
    there is none; empty if there is one), `centroid_above_ensemble`. The last and the scores have
    standard errors, `_error`, over held-out samples, for the difference paired ones.
    """

    centroids: pd.DataFrame
    """(group, embedding_dim): mean theta of each group, indexed like the table."""
    sample_count: int
    """Held-out samples that were scored."""
    name: ClassVar[str] = "average"
    reference: ClassVar[str] = "Cotler et al. 2023, arXiv:2302.14078"

    def summary(self) -> dict[str, JSON]:
        """Return the scores of every group."""
        rows: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "sample_count": self.sample_count,
                "groups": self.table.to_dict(orient="records"),
            }
        )
        return rows

    def plot(self) -> go.Figure:
        """Return, per group, the centroid's score and the range of its members' scores."""
        import plotly.graph_objects as go

        places = np.arange(len(self.table), dtype=np.float64)
        names = [plot_text(group) for group in self.table["group"]]
        figure = go.Figure()
        for column, title, symbol, shift in (
            ("members", "members (mean, range)", "circle", -0.12),
            ("members_emulated", "members, emulated (mean, range)", "circle-open", 0.12),
        ):
            mean = self.table[f"{column}_mean"].to_numpy()
            figure.add_trace(
                go.Scatter(
                    x=places + shift,
                    y=mean,
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": self.table[f"{column}_max"].to_numpy() - mean,
                        "arrayminus": mean - self.table[f"{column}_min"].to_numpy(),
                        "thickness": 1.5,
                        "width": 5,
                    },
                    text=names,
                    name=title,
                    mode="markers",
                    marker={"symbol": symbol, "size": 9},
                    hovertemplate="%{text}: %{y:.3f}<extra>" + title + "</extra>",
                )
            )
        for column, title, symbol, shift in (
            ("ensemble", "ensemble of members", "square-open", 0.24),
            ("weights", "weights averaged", "x-thin-open", -0.24),
            ("centroid", "centroid, rendered", "diamond", 0.0),
        ):
            scores = self.table[f"{column}_score"]
            if scores.isna().all():
                continue
            figure.add_trace(
                go.Scatter(
                    x=places + shift,
                    y=scores.to_numpy(),
                    error_y={
                        "type": "data",
                        "array": self.table[f"{column}_error"].to_numpy(),
                        "thickness": 1,
                        "width": 3,
                    },
                    text=names,
                    name=f"{title} (± standard error)",
                    mode="markers",
                    marker={"symbol": symbol, "size": 11, "line": {"width": 2}},
                    hovertemplate="%{text}: %{y:.3f}<extra>" + title + "</extra>",
                )
            )
        ticks = [plot_text(group, longest=LONGEST_TICK) for group in self.table["group"]]
        figure.update_xaxes(
            tickmode="array", tickvals=places, ticktext=ticks, zeroline=False, automargin=True
        )
        kinds = " or ".join(sorted(set(self.table["score_kind"])))
        figure.update_yaxes(title={"text": f"{kinds} on {self.sample_count} samples"})
        return style_figure(figure).update_layout(
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"}
        )


@analysis
def average(
    embedding: ModelEmbedding,
    *,
    labels: LabelSource | None = None,
    models: ModelSets | None = None,
    targets: TargetSource | None = None,
    networks: Mapping[str, ModelSource] | None = None,
    capture_options: Mapping[str, Any] | None = None,
) -> AverageResult:
    """Render the centroid of each group of models, and score it on the task beside its members.

    Model averaging of Cotler et al. 2023 (arXiv:2302.14078): the meta-model at the
    mean theta of some networks is a network of its own. Scores are computed on held-out samples:
    accuracy for integer targets (the largest logit decides, the sign of a single one), R2 for
    real ones.

    Two other ways to make one network of several stand beside it: the ensemble, which runs all of
    them and averages their class probabilities (for R2: their outputs), and the average of their
    weights, which takes networks of one architecture and, for networks that were trained apart,
    seldom does anything (Wortsman et al. 2022, arXiv:2203.05482, on when it does).

    Parameters
    ----------
    embedding
        Its population is read.
    labels
        A metadata column, a mapping from model id to label, or one label per model: the groups.
        None for no groups beside `all` (or the output groups, where there are several).
    models
        Further sets to average: ids of one set, or a mapping from name to ids.
    targets
        Aligned with `population.sample_ids`; by default those captured with the inputs. (sample,)
        classes, (sample, channel) numbers, or for outputs per step (row,), (row, channel) or padded
        (sample, time, channel). A mapping gives every output group its own.
    networks
        Model id to the network that was embedded, or a factory of it, for the averages of weights.
    capture_options
        How they are read, as it was given to `capture`: adapter, layers, forward, output and the
        like.

    Returns
    -------
    AverageResult
        The group `all` is there if all models belong to one output group.

    Raises
    ------
    InvalidInput
        If there are no targets or they do not fit, a group has models of several output groups or
        none, or a network is not the one that was embedded.
    UnknownName
        If a metadata column, a model or an output group does not exist.
    StoreNotFound
        If the population is no longer there.
    """
    groups = find_groups(embedding, labels, models)
    tables, centroids = {}, {}
    for output_group in sorted(set(embedding.output_groups)):
        here = [
            place
            for place, group in enumerate(groups)
            if embedding.output_groups[group.members[0]] == output_group
        ]
        means = torch.stack([embedding.thetas[groups[place].members].mean(0) for place in here])
        scorer = TaskScorer(embedding, targets=targets, output_group=output_group)
        members = [groups[place].members for place in here]
        scored = _score(scorer, means, members, networks, capture_options)
        for position, place in enumerate(here):
            tables[place] = _row(groups[place], scored, position)
            centroids[place] = means[position].numpy()
    table = pd.DataFrame([tables[place] for place in range(len(groups))])
    frame = pd.DataFrame(
        np.stack([centroids[place] for place in range(len(groups))]),
        index=pd.Index([group.name for group in groups], name="group"),
        columns=[f"theta_{dimension}" for dimension in range(embedding.thetas.shape[1])],
    )
    return AverageResult(table, frame, len(embedding.held_out_samples))


@dataclass(frozen=True, slots=True)
class _Scores:
    centroids: Scores
    """Of every group."""
    ensembles: Scores
    """Of every group."""
    weights: list[Scores | str]
    """Of every group, or why there is none."""
    emulated: dict[int, float]
    """Position of a model to the score of its emulation."""
    base: dict[int, float]
    """Position of a model to its own score."""


def _score(
    scorer: TaskScorer,
    centroids: Tensor,
    groups: Sequence[NDArray[np.int64]],
    networks: Mapping[str, ModelSource] | None,
    capture_options: Mapping[str, Any] | None,
) -> _Scores:
    """Score what there is of an output group on the held-out samples."""
    embedding = scorer.embedding
    members = sorted({member for group in groups for member in group.tolist()})
    emulated = scorer.thetas(embedding.thetas[members]).values
    base = scorer.recorded([embedding.ids[member] for member in members]).values
    return _Scores(
        scorer.thetas(centroids),
        ensemble_scores(scorer, groups),
        weight_scores(scorer, groups, networks, capture_options),
        dict(zip(members, emulated.tolist(), strict=True)),
        dict(zip(members, base.tolist(), strict=True)),
    )


def _row(group: Group, scored: _Scores, position: int) -> dict[str, Any]:
    emulated = [scored.emulated[member] for member in group.members.tolist()]
    base = [scored.base[member] for member in group.members.tolist()]
    both, weights = (scored.centroids, scored.ensembles), scored.weights[position]
    gains = [scores.gains[position : position + 1] for scores in both]
    centroid, ensemble = (replace(scored.centroids, gains=own) for own in gains)
    above, errors = replace(scored.centroids, gains=np.concatenate(gains)).above(1)
    return {
        "group": group.name,
        "grouping": group.grouping,
        "members": len(group.members),
        "score_kind": centroid.kind,
        **_scored("centroid", centroid),
        **_range("members_emulated", emulated),
        **_range("members", base),
        **_scored("ensemble", ensemble),
        "centroid_above_ensemble": float(above[0]),
        "centroid_above_ensemble_error": float(errors[0]),
        **_scored("weights", None if isinstance(weights, str) else weights),
        "weights_reason": weights if isinstance(weights, str) else "",
    }


def _scored(name: str, scores: Scores | None) -> dict[str, float]:
    if scores is None:
        return {f"{name}_score": np.nan, f"{name}_error": np.nan}
    return {
        f"{name}_score": float(scores.values[0]),
        f"{name}_error": float(scores.standard_errors[0]),
    }


def _range(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_mean": float(np.mean(values)),
        f"{name}_min": float(np.min(values)),
        f"{name}_max": float(np.max(values)),
    }
