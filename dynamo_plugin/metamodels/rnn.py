"""A recurrent meta-model without gates."""

from __future__ import annotations

from dynamo_plugin.metamodels._cells import RNN
from dynamo_plugin.metamodels.recurrent import RecurrentMetaModel

__all__ = ["RNNMetaModel"]


class RNNMetaModel(RecurrentMetaModel):
    """h_t = tanh(W [token embedding or features ; theta] + U h_(t-1) + b).

    The network of Elman 1990 (doi:10.1207/s15516709cog1402_1). Parameters are those of
    `RecurrentMetaModel`.
    """

    cell = RNN
