"""One map for all models, which theta bends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynamo_plugin.metamodels.state_maps._base import (
    RIDGE,
    SolvableStateMaps,
    Total,
    apply_affine,
)
from dynamo_plugin.metamodels.state_maps._moments import Moments, ridge

__all__ = ["AmortisedStateMaps", "aligned_units"]

ALIGNED_UNITS = 256
"""Most dimensions in which states are aligned: wider ones are reduced to their leading principal
components, since rotating them onto each other takes time with the cube of their number."""


def aligned_units(units: Sequence[int]) -> int:
    """Return the number of dimensions in which states of so many units per model are aligned."""
    return min(max(units), ALIGNED_UNITS)


class AmortisedStateMaps(SolvableStateMaps):
    """V(theta) = V_0 + sum_k theta_k V_k on states that were aligned beforehand.

        Q_n (h_n - mean_n) / scale_n  is predicted by  V(theta_n) [h ; 1]

    A free map per model can absorb what distinguishes the models; here theta alone can carry it.
    Q_n has orthonormal rows, at most 256, and is set before training, see `training.alignment`.
    Parameters are those of `StateMaps`; of longer thetas, the first `embedding_dim` entries count.
    """

    per_model = (*SolvableStateMaps.per_model, "rotation")
    growing = ("rotation",)

    rotation: Tensor
    """(model, aligned units, max units) buffer: Q."""
    weight: Tensor
    """(1 + embedding_dim, aligned units, source_units + 1): V_0, V_1, ..., the offset in the last
    column."""

    def __init__(
        self,
        source_units: int,
        units: Sequence[int],
        *,
        embedding_dim: int,
        solver: str = "gradient",
    ) -> None:
        super().__init__(source_units, units, embedding_dim=embedding_dim, solver=solver)
        width = aligned_units(units)
        self.register_buffer("rotation", torch.eye(width, max(units)).repeat(len(units), 1, 1))
        bound = 1 / math.sqrt(source_units)
        weight = torch.empty(1 + embedding_dim, width, source_units + 1).uniform_(-bound, bound)
        weight[..., -1] = 0
        if solver == "gradient":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    @property
    def target_units(self) -> Tensor:
        """(model, aligned units): all of them, since rotations mix units with padding."""
        return torch.ones(self.rotation.shape[:2], dtype=torch.bool, device=self.rotation.device)

    def normalise(self, base_states: Tensor, models: Tensor) -> Tensor:
        """Return (model, ..., aligned units): Q (h - mean) / scale."""
        states = self.standardise(base_states, models)
        turned = states.flatten(1, -2) @ self.rotation[models].mT
        return turned.view(*states.shape[:-1], -1)

    def standardise(self, base_states: Tensor, models: Tensor) -> Tensor:
        """Return (model, ..., max units): (h - mean) / scale."""
        return super().normalise(base_states, models)

    def restore(self, mapped: Tensor, models: Tensor) -> Tensor:
        """Undo `normalise`, as far as states lie in the directions that are aligned."""
        turned = (mapped.flatten(1, -2) @ self.rotation[models]).view(*mapped.shape[:-1], -1)
        return super().restore(turned, models) * self.real_units[models].view(
            len(models), *(1,) * (mapped.ndim - 2), -1
        )

    def forward(self, states: Tensor, models: Tensor, thetas: Tensor) -> Tensor:
        """Return V(theta) [h ; 1] in the common space; see `StateMaps.forward`."""
        weight = torch.einsum("mk,kou->mou", self._bends(thetas), self.weight)
        return apply_affine(states, weight[..., :-1], weight[..., -1])

    def rescale_theta(self, factors: Tensor) -> None:
        """See `StateMaps.rescale_theta`."""
        self.weight.data[1:] /= factors[: self.embedding_dim].view(-1, 1, 1)

    def _bends(self, thetas: Tensor) -> Tensor:
        """Return (model, 1 + embedding_dim): [1 ; theta], of a longer theta the beginning."""
        return _with_one(thetas[:, : self.embedding_dim])

    def new_moments(self, *, decay: float | None, dtype: torch.dtype) -> Moments:
        """See `SolvableStateMaps.new_moments`."""
        sizes = (len(self.units), self.source_units + 1, self.rotation.shape[1])
        return Moments(*sizes, decay=decay, dtype=dtype)

    def collect(
        self, moments: Moments, states: Tensor, targets: Tensor, mask: Tensor, models: Tensor
    ) -> None:
        """See `SolvableStateMaps.collect`; features are [h ; 1]."""
        super().collect(moments, _with_one(states, last=True), targets, mask, models)

    def concerned(self, moments: Moments, models: Tensor) -> Tensor:
        """Return all models that were ever seen."""
        return moments.weight.nonzero()[:, 0]

    @torch.no_grad()
    def solve_for(
        self, moments: Moments, models: Tensor, thetas: Tensor, *, total: Total = list
    ) -> None:
        """See `SolvableStateMaps.solve_for`; models seen count alike, at the thetas that are given.

        With t = [1 ; theta], the features are t (x) [h ; 1], so that their second moment is the sum
        over models of t t^T (x) E[h h^T]. The solution lies in the span of the t of the models, and
        the penalty is the same along every axis: it is solved on an orthonormal basis of that span,
        which is the smaller problem where there are fewer models than dimensions of t.
        """
        features, products = moments.raw(models)
        every = self._bends(thetas).to(features.dtype)
        second = total([every.double().mT @ every.double()])[0]
        if not bool(second.isfinite().all()):
            self.weight.fill_(torch.nan)
            return
        values, vectors = torch.linalg.eigh(second)
        spanned = values > len(values) * torch.finfo(values.dtype).eps * values.max()
        axes = vectors[:, spanned].mT.to(every.dtype)
        scales = every @ axes.mT  # (model, axis): t along each axis
        count = scales.shape[1] * features.shape[1]
        gram = torch.einsum("mk,ml,mij->kilj", scales, scales, features).reshape(count, count)
        cross = torch.einsum("mk,mio->kio", scales, products).reshape(count, -1)
        # The penalty is in units of the mean over all features, of which the others are zero here.
        strength = RIDGE * scales.shape[1] / every.shape[1]
        gram, cross = total([gram, cross])
        solution = ridge(gram[None], cross[None], strength)[0].unflatten(0, (scales.shape[1], -1))
        self.weight.copy_(torch.einsum("ak,aio->koi", axes, solution))


def _with_one(values: Tensor, *, last: bool = False) -> Tensor:
    """Add a one before (or after) the last axis' entries."""
    return nn.functional.pad(values, (0, 1) if last else (1, 0), value=1.0)
