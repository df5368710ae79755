"""The groups of networks that are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dynamo_plugin.analyses.labels import LabelSource, read_labels
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["Group", "ModelSets", "find_groups"]

ModelSets: TypeAlias = "Sequence[str] | Mapping[str, Sequence[str]]"
"""Ids of one set of models, or name to the ids of each."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some networks that are averaged."""

    name: str
    grouping: str
    members: NDArray[np.int64]
    """Positions in the embedding, of one output group."""


def find_groups(
    embedding: ModelEmbedding, labels: LabelSource | None, models: ModelSets | None
) -> list[Group]:
    """Return the groups by label or output group, all models, and the sets that were named.

    Raises
    ------
    InvalidInput
        If a group has models of several output groups, or a set is empty or names a model twice.
    UnknownName
        If there is no such column or model.
    """
    groups = [*_groups(embedding, labels), *_sets(embedding, models)]
    _require_one_output_group(embedding, groups)
    return groups


def _groups(embedding: ModelEmbedding, labels: LabelSource | None) -> list[Group]:
    several = len(set(embedding.output_groups)) > 1
    groups = []
    if labels is not None:
        found = read_labels(embedding, labels)
        groups = [
            Group(value, found.name, np.flatnonzero(found.codes == code))
            for code, value in enumerate(found.values)
        ]
    elif several:
        of_models = np.array(embedding.output_groups)
        groups = [
            Group(group, "output group", np.flatnonzero(of_models == group))
            for group in sorted(set(embedding.output_groups))
        ]
    if not several:
        groups.append(Group("all", "all models", np.arange(len(embedding.ids))))
    return groups


def _sets(embedding: ModelEmbedding, models: ModelSets | None) -> list[Group]:
    """Return the sets of models that were named."""
    if models is None:
        return []
    if isinstance(models, str):
        raise InvalidInput(f"Expected a list of model ids, or a mapping to lists; got {models!r}.")
    named = models if isinstance(models, Mapping) else {"models": models}
    sets = []
    for name, ids in named.items():
        if isinstance(ids, str) or not ids or len(set(ids)) < len(ids):
            raise InvalidInput(
                f"Expected the ids of the set {name!r}, each once and at least one; got {ids!r}."
            )
        sets.append(Group(str(name), "models", np.array([embedding.index(model) for model in ids])))
    return sets


def _require_one_output_group(embedding: ModelEmbedding, groups: Sequence[Group]) -> None:
    for group in groups:
        inside = sorted({embedding.output_groups[member] for member in group.members})
        if len(inside) > 1:
            raise InvalidInput(
                f"The group {group.name!r} of {group.grouping!r} has models of the output groups "
                f"{', '.join(inside)}, whose outputs cannot be averaged. Choose labels whose "
                "groups lie within one output group."
            )
