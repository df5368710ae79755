"""Maps from the meta-model's states to those of the base models."""

from __future__ import annotations

from dynamo_plugin.metamodels.state_maps._base import SolvableStateMaps, StateMaps
from dynamo_plugin.metamodels.state_maps._moments import ridge
from dynamo_plugin.metamodels.state_maps._stages import STATE_MAPS, StageMaps
from dynamo_plugin.metamodels.state_maps.amortised import AmortisedStateMaps, aligned_units
from dynamo_plugin.metamodels.state_maps.linear import (
    AffineStateMaps,
    LinearStateMaps,
    SharedStateMaps,
)
from dynamo_plugin.metamodels.state_maps.mlp import MLPStateMaps
from dynamo_plugin.metamodels.state_maps.orthogonal import OrthogonalStateMaps

__all__ = [
    "STATE_MAPS",
    "AffineStateMaps",
    "AmortisedStateMaps",
    "LinearStateMaps",
    "MLPStateMaps",
    "OrthogonalStateMaps",
    "SharedStateMaps",
    "SolvableStateMaps",
    "StageMaps",
    "StateMaps",
    "aligned_units",
    "ridge",
]
