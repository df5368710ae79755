"""Meta-model families, and the maps from their state to the states of base models."""

from __future__ import annotations

from dynamo_plugin.metamodels.gru import GRUMetaModel
from dynamo_plugin.metamodels.state_maps import AffineStateMaps

__all__ = ["AffineStateMaps", "GRUMetaModel"]
