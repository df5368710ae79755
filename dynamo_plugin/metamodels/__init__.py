"""Meta-model families, and the maps from their state to the states of base models."""

from __future__ import annotations

from dynamo_plugin.metamodels._readouts import Readout
from dynamo_plugin.metamodels.gru import GRUMetaModel
from dynamo_plugin.metamodels.lstm import LSTMMetaModel
from dynamo_plugin.metamodels.recurrent import RecurrentMetaModel
from dynamo_plugin.metamodels.residual import ResidualMetaModel
from dynamo_plugin.metamodels.resnet import ResNetMetaModel
from dynamo_plugin.metamodels.rnn import RNNMetaModel
from dynamo_plugin.metamodels.state_maps import (
    STATE_MAPS,
    AffineStateMaps,
    AmortisedStateMaps,
    LinearStateMaps,
    MLPStateMaps,
    OrthogonalStateMaps,
    SharedStateMaps,
    SolvableStateMaps,
    StageMaps,
    StateMaps,
    aligned_units,
)
from dynamo_plugin.metamodels.transformer import TransformerMetaModel

__all__ = [
    "STATE_MAPS",
    "AffineStateMaps",
    "AmortisedStateMaps",
    "GRUMetaModel",
    "LSTMMetaModel",
    "LinearStateMaps",
    "MLPStateMaps",
    "OrthogonalStateMaps",
    "RNNMetaModel",
    "Readout",
    "RecurrentMetaModel",
    "ResNetMetaModel",
    "ResidualMetaModel",
    "SharedStateMaps",
    "SolvableStateMaps",
    "StageMaps",
    "StateMaps",
    "TransformerMetaModel",
    "aligned_units",
]
