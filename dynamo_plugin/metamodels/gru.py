"""The recurrent meta-model of the paper: a gated recurrent unit."""

from __future__ import annotations

from dynamo_plugin.metamodels._cells import GRU
from dynamo_plugin.metamodels.recurrent import RecurrentMetaModel

__all__ = ["GRUMetaModel"]


class GRUMetaModel(RecurrentMetaModel):
    """A gated recurrent unit whose input at every step is [token embedding or features ; theta].

    The family of Cotler et al. 2023 (arXiv:2302.14078, appendix B.1); the cell is that of Cho et
    al. 2014 (doi:10.3115/v1/D14-1179) as PyTorch writes it, gates in the order reset, update, new.
    Parameters are those of `RecurrentMetaModel`.
    """

    cell = GRU
