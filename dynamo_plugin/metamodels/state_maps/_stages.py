"""State maps of every stage."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, Sequence
from typing import Literal, cast

from torch import nn

from dynamo_plugin.errors import InvalidConfig, suggest
from dynamo_plugin.metamodels.state_maps._base import StateMaps
from dynamo_plugin.metamodels.state_maps.amortised import AmortisedStateMaps
from dynamo_plugin.metamodels.state_maps.linear import (
    AffineStateMaps,
    LinearStateMaps,
    SharedStateMaps,
)
from dynamo_plugin.metamodels.state_maps.mlp import MLPStateMaps
from dynamo_plugin.metamodels.state_maps.orthogonal import OrthogonalStateMaps

__all__ = ["STATE_MAPS", "StageMaps"]

STATE_MAPS: dict[str, type[StateMaps]] = {
    "affine": AffineStateMaps,
    "linear": LinearStateMaps,
    "orthogonal": OrthogonalStateMaps,
    "shared": SharedStateMaps,
    "mlp": MLPStateMaps,
    "amortised": AmortisedStateMaps,
}
"""Kinds of state maps by name."""


class StageMaps(nn.ModuleDict):
    """Stage to the state maps of all models at that stage.

    Parameters
    ----------
    kind
        One of `STATE_MAPS`.
    source_units
        Stage to the width of the meta-model's states.
    units
        Stage to the number of units of every base model.
    embedding_dim, solver
        See `StateMaps`; None for the closed form, where the kind has one.
    """

    def __init__(
        self,
        kind: str,
        source_units: Mapping[str, int],
        units: Mapping[str, Sequence[int]],
        *,
        embedding_dim: int,
        solver: str | None,
    ) -> None:
        if kind not in STATE_MAPS:
            raise InvalidConfig(f"There is no state map {kind!r}. {suggest(kind, STATE_MAPS)}")
        make = STATE_MAPS[kind]
        found_by = solver or make.solvers[-1]
        super().__init__(
            {
                stage: make(source_units[stage], own, embedding_dim=embedding_dim, solver=found_by)
                for stage, own in units.items()
            }
        )

    @property
    def kind(self) -> str:
        """Its name in `STATE_MAPS`."""
        own = type(next(iter(self.values())))
        return next(name for name, kind in STATE_MAPS.items() if own is kind)

    @property
    def solver(self) -> Literal["gradient", "ridge"]:
        """How the maps are found."""
        return "ridge" if next(iter(self.items()))[1].solver == "ridge" else "gradient"

    @property
    def embedding_dim(self) -> int:
        """Length of theta."""
        return next(iter(self.items()))[1].embedding_dim

    def __getitem__(self, key: str) -> StateMaps:
        return cast("StateMaps", super().__getitem__(key))

    def items(self) -> ItemsView[str, StateMaps]:
        """Return stages and their maps."""
        return cast("ItemsView[str, StateMaps]", super().items())

    def select(self, models: Sequence[int]) -> StageMaps:
        """Return copies of the maps of some models, in the order given."""
        chosen = StageMaps.__new__(StageMaps)
        nn.ModuleDict.__init__(chosen, {s: maps.select(models) for s, maps in self.items()})
        return chosen

    def join(self, others: StageMaps) -> StageMaps:
        """Return copies of the maps of these models and of some more."""
        joined = StageMaps.__new__(StageMaps)
        nn.ModuleDict.__init__(joined, {s: maps.join(others[s]) for s, maps in self.items()})
        return joined

    @property
    def units(self) -> dict[str, tuple[int, ...]]:
        """Stage to the number of units of every base model."""
        return {stage: maps.units for stage, maps in self.items()}
