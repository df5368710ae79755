"""Distances of recorded states and outputs, for thetas to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from dynamo_plugin.analyses._mantel import check_distances_vary
from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.metrics import PairwiseDistances, metric, pairwise
from dynamo_plugin.registry.interfaces import Invariance, Metric
from dynamo_plugin.training import compares_decisions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["FEWEST", "OutputDifference", "Reference", "hidden_reference", "output_reference"]

FEWEST = 4
"""Models below which distances have too few pairs to agree or not."""


@dataclass(frozen=True, slots=True)
class OutputDifference(Metric["NDArray[np.float64]"]):
    """Root mean square difference of the outputs of two networks, over rows and channels.

    Examples
    --------
    >>> OutputDifference()([[0.0], [1], [2], [3]], [[0.0], [1], [2], [5]])
    1.0
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "Klabunde et al. 2025, doi:10.1145/3728458"
    reads: ClassVar[Literal["outputs"]] = "outputs"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """None."""
        return frozenset()

    @property
    def is_metric(self) -> bool:
        """It is a Euclidean distance."""
        return True

    def prepare(self, states: ArrayLike) -> NDArray[np.float64]:
        """Return (row, channel) outputs as they are, in double precision."""
        outputs = np.asarray(states, dtype=np.float64)
        if not np.isfinite(outputs).all():
            raise InvalidInput("Expected finite outputs, got NaN or infinity.")
        return outputs

    def compare(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        """Return the root mean square difference."""
        return float(np.sqrt(((first - second) ** 2).mean()))


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Distances between networks, and which of them can be compared."""

    name: str
    """Of the metric, or of several."""
    square: NDArray[np.float64]
    """(model, model); zero between models of different strata."""
    strata: tuple[NDArray[np.int64], ...]
    """Places of models that can be compared with each other; empty if there are too few."""
    note: str
    """What is missing, and why; empty if nothing is."""


def hidden_reference(
    embedding: ModelEmbedding,
    chosen: str | PairwiseDistances,
    *,
    site: str | Mapping[str, str] | None,
    rows: int | None,
) -> Reference:
    """Return the distances of hidden states by a metric.

    Raises
    ------
    InvalidInput
        If the metric compares outputs, or all distances are equal.
    UnknownName
        If there is no such metric, or a comparison lacks a model.
    """
    if isinstance(chosen, str) and metric(chosen).reads == "outputs":
        raise InvalidInput(
            f"hidden_metric compares hidden states; {chosen!r} compares outputs. Give it as "
            "output_metric."
        )
    name = chosen if isinstance(chosen, str) else chosen.metric
    if isinstance(chosen, str):
        reads_rows = metric(chosen).reads == "states"
        chosen = pairwise(
            embedding.population,
            chosen,
            models=embedding.ids,
            site=site,
            rows=rows if reads_rows else None,
            progress=False,
        )
    everyone = np.arange(len(embedding))
    square = _ordered(chosen, embedding.ids)
    check_distances_vary(name, square)
    return Reference(name, square, (everyone,), "")


def output_reference(
    embedding: ModelEmbedding,
    chosen: str | PairwiseDistances | None,
    *,
    rows: int | None,
) -> Reference:
    """Return the distances of outputs within each output group.

    Parameters
    ----------
    chosen
        A metric of outputs, or its result; None for `disagreement` where outputs are compared as
        decisions, and `OutputDifference` where they are numbers.
    rows
        As in `pairwise`.

    Raises
    ------
    InvalidInput
        If the metric compares states, or all distances of a group are equal.
    UnknownName
        If there is no such metric, or a comparison lacks a model.
    """
    if isinstance(chosen, str) and metric(chosen).reads != "outputs":
        raise InvalidInput(
            f"output_metric compares outputs; {chosen!r} compares hidden states. Choose "
            "'disagreement' or 'jensen_shannon', or leave it out."
        )
    models = len(embedding)
    square = np.zeros((models, models))
    groups = np.array(embedding.output_groups, dtype=object)
    strata, names, left = [], [], []
    for group in sorted(set(embedding.output_groups)):
        members = np.flatnonzero(groups == group)
        if len(members) < FEWEST:
            left.append(group)
            continue
        ids = tuple(embedding.ids[place] for place in members)
        found = chosen
        if found is None or isinstance(found, str):
            use = found or ("disagreement" if _decides(embedding, group) else OutputDifference())
            found = pairwise(embedding.population, use, models=ids, rows=rows, progress=False)
        inside = _ordered(found, ids)
        where = f" of the output group {group!r}" if len(set(groups)) > 1 else ""
        name = "output difference" if found.metric == OutputDifference.__name__ else found.metric
        check_distances_vary(name, inside, where)
        square[np.ix_(members, members)] = inside
        strata.append(members)
        names.append(name)
    note = ""
    if left:
        note = f"output group {', '.join(left)}: fewer than {FEWEST} models"
    return Reference(" and ".join(dict.fromkeys(names)), square, tuple(strata), note)


def _decides(embedding: ModelEmbedding, group: str) -> bool:
    losses = embedding.config.output_loss
    return compares_decisions(losses if isinstance(losses, str) else (losses or {})[group])


def _ordered(found: PairwiseDistances, ids: tuple[str, ...]) -> NDArray[np.float64]:
    missing: list[Any] = [model for model in ids if model not in found.ids]
    if missing:
        raise UnknownName(
            f"The comparison by {found.metric!r} has no model {missing[0]!r}. Compare the models "
            "of the embedding."
        )
    places = [found.ids.index(model) for model in ids]
    return found.symmetric_distances()[np.ix_(places, places)]
