"""Maps that are one matrix, per model or for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels.state_maps._base import (
    RIDGE,
    SolvableStateMaps,
    Total,
    apply_affine,
)
from dynamo_plugin.metamodels.state_maps._moments import Moments, ridge

__all__ = ["AffineStateMaps", "LinearStateMaps", "SharedStateMaps"]


class AffineStateMaps(SolvableStateMaps):
    """V_n(h) = mean_n + scale_n (W_n h + b_n), the map of the paper.

    Affine and independent of time, as in Cotler et al. 2023 (arXiv:2302.14078, section 2.2).
    Parameters are those of `StateMaps`.
    """

    per_model = (*SolvableStateMaps.per_model, "weight", "bias")

    weight: Tensor
    """(model, max units, source_units): W."""
    bias: Tensor
    """(model, max units): b."""

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
        real = self._rows()
        weight = torch.empty(*real.shape, source_units).uniform_(-bound, bound)
        self._set("weight", weight * real[..., None], learned=solver == "gradient")
        self._set("bias", torch.zeros(real.shape), learned=solver == "gradient")

    def _rows(self) -> Tensor:
        """Return (matrix, max units): which rows of the matrices are real."""
        return self.real_units

    def _set(self, name: str, value: Tensor, *, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def forward(self, states: Tensor, models: Tensor, thetas: Tensor) -> Tensor:
        """Return W h + b; see `StateMaps.forward`."""
        return apply_affine(states, *self._chosen(models))

    def _chosen(self, models: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight[models], self.bias[models]

    def matrix(self, model: int) -> tuple[Tensor, Tensor]:
        """Return V of one model in its own units.

        Returns
        -------
        tuple of Tensor
            (units, source_units) and (units,): base state = matrix @ h + offset.
        """
        units, chosen = self.units[model], torch.tensor([model], device=self.mean.device)
        weight, bias = self._chosen(chosen)
        offset = self.restore(bias, chosen)[0, :units]
        return self.scale[model] * weight[0, :units], offset

    @torch.no_grad()
    def solve_for(
        self, moments: Moments, models: Tensor, thetas: Tensor, *, total: Total = list
    ) -> None:
        """See `SolvableStateMaps.solve_for`; the offset is not penalised."""
        features, products, mean, target = moments.centred(models)
        solution = ridge(features, products, RIDGE)
        self.weight[models] = solution.mT.to(self.weight.dtype)
        bias = target - (mean.unsqueeze(1) @ solution).squeeze(1)
        self.bias[models] = bias.to(self.bias.dtype)


class LinearStateMaps(AffineStateMaps):
    """V_n(h) = scale_n W_n h: without an offset, so that the zero state goes to the zero state.

    Parameters are those of `StateMaps`.
    """

    bias: Tensor
    """(model, max units) buffer of zeros."""

    def _set(self, name: str, value: Tensor, *, learned: bool) -> None:
        super()._set(name, value, learned=learned and name != "bias")

    def normalise(self, base_states: Tensor, models: Tensor) -> Tensor:
        """Divide by the scale alone."""
        return base_states / self.scale[models].view(-1, *(1,) * (base_states.ndim - 1))

    def restore(self, mapped: Tensor, models: Tensor) -> Tensor:
        """Undo `normalise`."""
        return mapped * self.scale[models].view(-1, *(1,) * (mapped.ndim - 1))

    @torch.no_grad()
    def solve_for(
        self, moments: Moments, models: Tensor, thetas: Tensor, *, total: Total = list
    ) -> None:
        """See `SolvableStateMaps.solve_for`."""
        solution = ridge(*moments.raw(models), RIDGE)
        self.weight[models] = solution.mT.to(self.weight.dtype)


class SharedStateMaps(AffineStateMaps):
    """V_n(h) = mean_n + scale_n (W h + b): one matrix for all models, which must be of one width.

    Unit i of every model is taken to mean the same. That holds for checkpoints of one run, and not
    for networks that were trained apart. Parameters are those of `StateMaps`.
    """

    per_model: ClassVar[tuple[str, ...]] = SolvableStateMaps.per_model

    def _rows(self) -> Tensor:
        if len(set(self.units)) > 1:
            raise InvalidInput(
                "state_map='shared' compares unit i of one model with unit i of the other, and "
                f"these models have {', '.join(map(str, sorted(set(self.units))))} units. Use "
                "'affine', or 'amortised', which aligns them first."
            )
        return self.real_units[:1]

    def _chosen(self, models: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight.expand(len(models), -1, -1), self.bias.expand(len(models), -1)

    def concerned(self, moments: Moments, models: Tensor) -> Tensor:
        """Return all models that were ever seen."""
        return moments.weight.nonzero()[:, 0]

    @torch.no_grad()
    def solve_for(
        self, moments: Moments, models: Tensor, thetas: Tensor, *, total: Total = list
    ) -> None:
        """See `SolvableStateMaps.solve_for`; models count alike, the offset is not penalised."""
        parts = [part.sum(0) for part in (*moments.raw(models), *moments.means(models))]
        count, *sums = total([self.mean.new_tensor(float(len(models))), *parts])
        features, products, mean, target = (part / count for part in sums)
        features = features - mean[:, None] * mean
        products = products - mean[:, None] * target
        solution = ridge(features[None], products[None], RIDGE)
        self.weight.copy_(solution.mT)
        self.bias.copy_(target - mean @ solution)
