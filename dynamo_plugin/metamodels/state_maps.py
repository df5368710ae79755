"""Maps from the meta-model's hidden state to the hidden states of the base models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput

__all__ = ["AffineStateMaps"]


class AffineStateMaps(nn.Module):
    """One affine map V_n per base model, all of them applied in one batched product.

        V_n(h) = mean_n + scale_n (W_n h + b_n)

    Mean and scale are statistics of model n's states on the training inputs, fixed before
    training, so that W_n and b_n are learned in the same units whatever the units of model n. The
    map is affine and independent of time, as in Cotler et al. 2023 (arXiv:2302.14078, section
    2.2). Models with fewer units than the widest are padded with zeros.

    Parameters
    ----------
    source_units
        Width of the meta-model's hidden state.
    units
        Number of hidden units of every base model.
    """

    weight: Tensor
    """(model, max units, source_units): W."""
    bias: Tensor
    """(model, max units): b."""
    mean: Tensor
    """(model, max units) buffer."""
    scale: Tensor
    """(model,) buffer."""
    real_units: Tensor
    """(model, max units) boolean buffer: which units exist."""

    def __init__(self, source_units: int, units: Sequence[int]) -> None:
        super().__init__()
        if not units or min(units) < 1:
            raise InvalidInput(f"Every model needs at least one hidden unit, got {list(units)}.")
        self.units = tuple(units)
        widest = max(units)
        bound = 1 / math.sqrt(source_units)
        real = torch.arange(widest) < torch.tensor(self.units)[:, None]
        weight = torch.empty(len(units), widest, source_units).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight * real[..., None])
        self.bias = nn.Parameter(torch.zeros(len(units), widest))
        self.register_buffer("mean", torch.zeros(len(units), widest))
        self.register_buffer("scale", torch.ones(len(units)))
        self.register_buffer("real_units", real, persistent=False)

    def forward(self, states: Tensor, models: Tensor) -> Tensor:
        """Map meta-model states to normalised base states, W h + b.

        Parameters
        ----------
        states
            (model, sample, time, source_units).
        models
            (model,) int64: which map each row of states goes through.

        Returns
        -------
        Tensor
            (model, sample, time, max units), in units of `scale` around `mean`; zero past a
            model's own units.
        """
        flat = torch.baddbmm(
            self.bias[models].unsqueeze(1),
            states.flatten(1, 2),
            self.weight[models].transpose(1, 2),
        )
        mapped: Tensor = flat.unflatten(1, states.shape[1:3])
        return mapped

    def normalise(self, base_states: Tensor, models: Tensor) -> Tensor:
        """Express padded base states (model, ..., max units) in units of scale around mean."""
        shape = (len(models),) + (1,) * (base_states.ndim - 2)
        mean = self.mean[models].view(*shape, -1)
        return (base_states - mean) / self.scale[models].view(*shape, 1)

    def matrix(self, model: int) -> tuple[Tensor, Tensor]:
        """Return V of one model in its own units.

        Returns
        -------
        tuple of Tensor
            (units, source_units) and (units,): base state = matrix @ h + offset.
        """
        units, scale = self.units[model], self.scale[model]
        weight = scale * self.weight[model, :units]
        return weight, scale * self.bias[model, :units] + self.mean[model, :units]
