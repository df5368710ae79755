"""Recurrent layers over a stack of networks: PyTorch's equations with one more axis.

Every function takes features (model, time, sample, feature) and the stacked parameters
`weight_ih` (model, gates x unit, feature), `weight_hh` (model, gates x unit, unit), `bias_ih` and
`bias_hh` (model, gates x unit), with the gates in PyTorch's order, starts from a zero state and
returns the hidden states, a list over time of (model, sample, unit).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CELLS", "Cell"]

Cell = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], list[Tensor]]


def run_gru(
    features: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> list[Tensor]:
    """h' = (1 - z) n + z h, with n = tanh(W x + b + r (U h + c)); gates r, z, n."""
    units = weight_hh.shape[-1]
    projected = _project(
        features, weight_ih[:, : 2 * units], bias_ih[:, : 2 * units] + bias_hh[:, : 2 * units]
    )
    projected_new = _project(features, weight_ih[:, 2 * units :], bias_ih[:, 2 * units :])
    weight_gates = weight_hh[:, : 2 * units].mT.contiguous()
    weight_new = weight_hh[:, 2 * units :].mT.contiguous()
    bias_new = bias_hh[:, None, 2 * units :]
    state = _zero_state(features, units)
    states = []
    for step, step_new in zip(projected, projected_new, strict=True):
        gates = torch.baddbmm(step, state, weight_gates).sigmoid()
        reset, update = gates.chunk(2, dim=-1)
        new = torch.addcmul(step_new, reset, torch.baddbmm(bias_new, state, weight_new)).tanh()
        state = torch.lerp(new, state, update)
        states.append(state)
    return states


def run_lstm(
    features: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> list[Tensor]:
    """c' = f c + i g and h' = o tanh(c'); gates i, f, g, o."""
    units = weight_hh.shape[-1]
    weight = weight_hh.mT.contiguous()
    state = _zero_state(features, units)
    memory = state
    states = []
    for step in _project(features, weight_ih, bias_ih + bias_hh):
        gates = torch.baddbmm(step, state, weight)
        admit, forget, new, read = gates.chunk(4, dim=-1)
        memory = torch.addcmul(forget.sigmoid() * memory, admit.sigmoid(), new.tanh())
        state = read.sigmoid() * memory.tanh()
        states.append(state)
    return states


def run_rnn(
    features: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> list[Tensor]:
    """h' = tanh(W x + b + U h + c)."""
    weight = weight_hh.mT.contiguous()
    state = _zero_state(features, weight_hh.shape[-1])
    states = []
    for step in _project(features, weight_ih, bias_ih + bias_hh):
        state = torch.baddbmm(step, state, weight).tanh()
        states.append(state)
    return states


def _project(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Project the inputs of all steps in one product, and part them by step.

    `unbind` rather than indexing, whose gradient would fill a tensor of all steps for each step.
    """
    projected = torch.baddbmm(bias[:, None], features.flatten(1, 2), weight.mT)
    return torch.unflatten(projected, 1, features.shape[1:3]).unbind(1)


def _zero_state(features: Tensor, units: int) -> Tensor:
    return features.new_zeros(features.shape[0], features.shape[2], units)


CELLS: dict[str, Cell] = {"gru": run_gru, "lstm": run_lstm, "rnn": run_rnn}
"""By name of architecture."""
