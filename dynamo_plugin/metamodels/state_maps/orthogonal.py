"""Maps that turn the meta-model's states and stretch them by one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynamo_plugin.metamodels.state_maps._base import StateMaps, apply_affine

__all__ = ["OrthogonalStateMaps"]


class OrthogonalStateMaps(StateMaps):
    """V_n(h) = mean_n + scale_n (g_n O_n h + b_n), with O_n orthogonal.

    O_n has orthonormal rows where model n has fewer units than the meta-model, else orthonormal
    columns: the upper left part of an orthogonal matrix B_n exp(A_n - A_n^T), B_n random and A_n
    learned (Lezcano-Casado and Martinez-Rubio 2019, arXiv:1901.08428). Parameters are those of
    `StateMaps`.
    """

    start: Tensor
    """(model, side, side) buffer: B."""
    inside: Tensor
    """(model, side) boolean buffer: which rows and columns a model of its width has."""

    per_model = (*StateMaps.per_model, "start", "turn", "gain", "bias", "inside")
    square = ("start",)

    def __init__(
        self,
        source_units: int,
        units: Sequence[int],
        *,
        embedding_dim: int = 0,
        solver: str = "gradient",
    ) -> None:
        super().__init__(source_units, units, embedding_dim=embedding_dim, solver=solver)
        sides = [max(own, source_units) for own in units]
        side = max(sides)
        start = torch.eye(side).repeat(len(units), 1, 1)
        for matrix, own in zip(start, sides, strict=True):
            nn.init.orthogonal_(matrix[:own, :own])
        inside = torch.arange(side) < torch.tensor(sides)[:, None]
        self.register_buffer("start", start)
        self.register_buffer("inside", inside, persistent=False)
        self.turn = nn.Parameter(torch.zeros(len(units), side, side))
        self.gain = nn.Parameter(torch.ones(len(units)))
        self.bias = nn.Parameter(torch.zeros(len(units), max(units)))

    def matrices(self, models: Tensor) -> Tensor:
        """Return g O of some models, (model, max units, source_units)."""
        inside = self.inside[models]
        turn = self.turn[models] * (inside[:, :, None] & inside[:, None])
        turned = self.start[models] @ torch.matrix_exp(turn - turn.mT)
        matrix = turned[:, : self.widest, : self.source_units]
        return self.gain[models, None, None] * matrix * self.real_units[models, :, None]

    def forward(self, states: Tensor, models: Tensor, thetas: Tensor) -> Tensor:
        """Return g O h + b; see `StateMaps.forward`."""
        bias = self.bias[models] * self.real_units[models]
        return apply_affine(states, self.matrices(models), bias)

    @torch.no_grad()
    def start_from(self, models: Tensor, products: Tensor, squares: Tensor) -> None:
        """Set O and g of some models to those that fit best, by orthogonal Procrustes.

        Schoenemann 1966 (doi:10.1007/BF02289451).

        Parameters
        ----------
        models
            (model,) int64.
        products
            (model, max units, source_units): sum over rows of y h^T, y normalised base states.
        squares
            (model,): sum over rows of |h|^2.
        """
        for model, product, square in zip(models.tolist(), products, squares, strict=True):
            side = int(self.inside[model].sum())
            padded = product.new_zeros(side, side)
            padded[: self.units[model], : self.source_units] = product[: self.units[model]]
            left, values, right = torch.linalg.svd(padded)
            self.start[model, :side, :side] = left @ right
            self.turn[model] = 0
            self.gain[model] = values.sum() / square
