"""The average network of each group, beside its members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import LONGEST_TICK, TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses._scoring import TargetSource, TaskScorer
from dynamo_plugin.analyses.labels import LabelSource, read_labels
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["AverageResult", "average"]


@dataclass(frozen=True, slots=True, eq=False)
class AverageResult(TableResult):
    """Task scores of rendered centroids and of the networks that they average; made by `average`.

    The table has one row per group: `group`, `grouping` (what the group is a value of), `members`
    (how many), `score_kind` (`accuracy` or `r2`), `centroid_score`, `members_emulated_mean`,
    `_min` and `_max` (the members' emulations), `members_mean`, `_min` and `_max` (the networks
    themselves).
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
        figure.add_trace(
            go.Scatter(
                x=places,
                y=self.table["centroid_score"].to_numpy(),
                text=names,
                name="centroid, rendered",
                mode="markers",
                marker={"symbol": "diamond", "size": 13},
                hovertemplate="%{text}: %{y:.3f}<extra>centroid</extra>",
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


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    grouping: str
    members: NDArray[np.int64]
    """Positions in the embedding, of one output group."""


@analysis
def average(
    embedding: ModelEmbedding,
    *,
    labels: LabelSource | None = None,
    targets: TargetSource | None = None,
) -> AverageResult:
    """Render the centroid of each group of models, and score it on the task beside its members.

    Model averaging of Cotler et al. 2023 (arXiv:2302.14078): the meta-model at the
    mean theta of some networks is a network of its own. Scores are computed on held-out samples:
    accuracy for integer targets (the largest logit decides, the sign of a single one), R2 for
    real ones.

    Parameters
    ----------
    embedding
        Its population is read.
    labels
        A metadata column, a mapping from model id to label, or one label per model: the groups.
        None for no groups beside `all` (or the output groups, where there are several).
    targets
        Aligned with `population.sample_ids`; by default those captured with the inputs. (sample,)
        classes, (sample, channel) numbers, or for outputs per step (row,), (row, channel) or padded
        (sample, time, channel). A mapping gives every output group its own.

    Returns
    -------
    AverageResult
        The group `all` is there if all models belong to one output group.

    Raises
    ------
    InvalidInput
        If there are no targets or they do not fit, or a group has models of several output groups.
    UnknownName
        If a metadata column, a model or an output group does not exist.
    StoreNotFound
        If the population is no longer there.
    """
    groups = _groups(embedding, labels)
    tables, centroids = {}, {}
    for output_group in sorted(set(embedding.output_groups)):
        here = [
            place
            for place, group in enumerate(groups)
            if embedding.output_groups[group.members[0]] == output_group
        ]
        means = torch.stack([embedding.thetas[groups[place].members].mean(0) for place in here])
        scored = _score(embedding, output_group, means, targets)
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
    kind: str
    centroids: NDArray[np.float64]
    """(centroid,)."""
    emulated: dict[int, float]
    """Position of a model to the score of its emulation."""
    base: dict[int, float]
    """Position of a model to its own score."""


def _groups(embedding: ModelEmbedding, labels: LabelSource | None) -> list[_Group]:
    several = len(set(embedding.output_groups)) > 1
    groups = []
    if labels is not None:
        found = read_labels(embedding, labels)
        groups = [
            _Group(value, found.name, np.flatnonzero(found.codes == code))
            for code, value in enumerate(found.values)
        ]
    elif several:
        of_models = np.array(embedding.output_groups)
        groups = [
            _Group(group, "output group", np.flatnonzero(of_models == group))
            for group in sorted(set(embedding.output_groups))
        ]
    for group in groups:
        inside = sorted({embedding.output_groups[member] for member in group.members})
        if len(inside) > 1:
            raise InvalidInput(
                f"The group {group.name!r} of {group.grouping!r} has models of the output groups "
                f"{', '.join(inside)}, whose outputs cannot be averaged. Choose labels whose "
                "groups lie within one output group."
            )
    if not several:
        groups.append(_Group("all", "all models", np.arange(len(embedding.ids))))
    return groups


def _score(
    embedding: ModelEmbedding,
    group: str,
    centroids: Tensor,
    targets: TargetSource | None,
) -> _Scores:
    """Score all members and centroids of an output group on the held-out samples."""
    members = [i for i, of_model in enumerate(embedding.output_groups) if of_model == group]
    scorer = TaskScorer(embedding, targets=targets, output_group=group)
    emulated = scorer.thetas(torch.cat([embedding.thetas[members], centroids])).values
    base = scorer.recorded([embedding.ids[member] for member in members]).values
    return _Scores(
        scorer.kind,
        emulated[len(members) :],
        dict(zip(members, emulated.tolist(), strict=False)),
        dict(zip(members, base.tolist(), strict=True)),
    )


def _row(group: _Group, scored: _Scores, position: int) -> dict[str, Any]:
    emulated = [scored.emulated[member] for member in group.members.tolist()]
    base = [scored.base[member] for member in group.members.tolist()]
    return {
        "group": group.name,
        "grouping": group.grouping,
        "members": len(group.members),
        "score_kind": scored.kind,
        "centroid_score": float(scored.centroids[position]),
        **_range("members_emulated", emulated),
        **_range("members", base),
    }


def _range(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_mean": float(np.mean(values)),
        f"{name}_min": float(np.min(values)),
        f"{name}_max": float(np.max(values)),
    }
