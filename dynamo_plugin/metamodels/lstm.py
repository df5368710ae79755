"""A recurrent meta-model with long short-term memory."""

from __future__ import annotations

from dynamo_plugin.metamodels._cells import LSTM
from dynamo_plugin.metamodels.recurrent import RecurrentMetaModel

__all__ = ["LSTMMetaModel"]


class LSTMMetaModel(RecurrentMetaModel):
    """Long short-term memory whose input at every step is [token embedding or features ; theta].

    The cell is that of Hochreiter and Schmidhuber 1997 (doi:10.1162/neco.1997.9.8.1735) as PyTorch
    writes it, gates in the order input, forget, cell, output. A state is [h | c], 2 * units
    numbers, from which the state maps start; outputs are read off h. Parameters are those of
    `RecurrentMetaModel`.
    """

    cell = LSTM
