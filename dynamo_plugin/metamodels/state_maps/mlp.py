"""Maps with one hidden layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynamo_plugin.metamodels.state_maps._base import StateMaps, apply_affine

__all__ = ["MLPStateMaps"]


class MLPStateMaps(StateMaps):
    """V_n(h) = mean_n + scale_n (W_n tanh(U_n h + a_n) + b_n), as wide within as the meta-model.

    A map that is not affine can fold the meta-model's states; dynamics that are alike up to such a
    map need not be conjugate. Parameters are those of `StateMaps`.
    """

    per_model = (
        *StateMaps.per_model, "inner_weight", "inner_bias", "weight", "bias",
    )  # fmt: skip

    def __init__(
        self,
        source_units: int,
        units: Sequence[int],
        *,
        embedding_dim: int = 0,
        solver: str = "gradient",
    ) -> None:
        super().__init__(source_units, units, embedding_dim=embedding_dim, solver=solver)
        bound = 1 / math.sqrt(source_units)
        models, width = len(units), source_units
        self.inner_weight = nn.Parameter(torch.empty(models, width, width).uniform_(-bound, bound))
        self.inner_bias = nn.Parameter(torch.empty(models, width).uniform_(-bound, bound))
        weight = torch.empty(models, max(units), width).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight * self.real_units[..., None])
        self.bias = nn.Parameter(torch.zeros(models, max(units)))

    def forward(self, states: Tensor, models: Tensor, thetas: Tensor) -> Tensor:
        """Return W tanh(U h + a) + b; see `StateMaps.forward`."""
        inner = apply_affine(states, self.inner_weight[models], self.inner_bias[models]).tanh()
        return apply_affine(inner, self.weight[models], self.bias[models])
