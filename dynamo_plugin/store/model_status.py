"""How far the models of a population have come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamo_plugin.store._root import read_models

if TYPE_CHECKING:
    from dynamo_plugin.store._location import Location
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = ["ModelStatus", "read_statuses"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How far one model of a population has come."""

    id: str
    """Name of the model."""
    index: int
    """Place in the population's order."""
    complete: bool
    """Whether all its states and outputs were committed."""
    model_hash: str
    """Of the model that was recorded."""
    spec: TrajectorySpec
    """What was, or is to be, recorded of it."""
    metadata: Mapping[str, JSON]
    """What the user said about it."""


def read_statuses(location: Location) -> dict[str, ModelStatus]:
    """Return how far every model has come, by id, in the population's order.

    A group whose description is missing or damaged counts as never begun.
    """
    headers, _ = read_models(location)
    return {
        header.id: ModelStatus(
            header.id,
            header.index,
            header.complete,
            header.model_hash,
            header.spec,
            header.metadata,
        )
        for header in headers.values()
    }
