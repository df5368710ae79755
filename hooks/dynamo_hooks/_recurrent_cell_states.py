"""The cell states of an LSTM, which `nn.LSTM` computes and does not return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamo_plugin.errors import CaptureError, UnsupportedModel

from ._recurrent_calls import RecurrentCall, sample_first
from ._recurrent_modules import is_quantised
from ._tensors import close

__all__ = ["cell_states"]


def cell_states(module: Any, call: RecurrentCall, hidden: list[Tensor], name: str) -> list[Tensor]:
    """Return the cell state of every layer of an `nn.LSTM` at every step.

    The gates depend on inputs and on previous hidden states, which are known at all steps, so
    that two matrix products per direction give them at all steps at once. What is left,
    c[t] = f[t] c[t-1] + i[t] g[t], has no matrix product, and cannot drift away from the module.

    Parameters
    ----------
    module
        The LSTM.
    call
        What it received and returned.
    hidden
        Per layer (sample, time, units), its hidden states.
    name
        Path of the module, for messages.

    Returns
    -------
    list of Tensor
        Per layer (sample, time, units), of the dtype of its hidden states; zero past the end of
        packed sequences.

    Raises
    ------
    UnsupportedModel
        The module is quantised.
    CaptureError
        The hidden states, or the last cell states that the module returned, do not follow from
        these cell states.
    """
    if is_quantised(module):
        raise UnsupportedModel(
            f"cell_state: {name!r} is dynamically quantised, and the rounding inside its gates "
            "cannot be repeated from outside. Record the network before quantisation, or leave "
            "cell_state out."
        )
    assert call.inputs is not None
    inputs, lengths = sample_first(call.inputs, batch_first=module.batch_first)
    if lengths is None:
        lengths = torch.full((call.samples or 0,), call.steps)
    lengths = lengths.to(inputs.device)
    found = []
    directions = 2 if module.bidirectional else 1
    for layer, states in enumerate(hidden):
        part = slice(layer * directions, (layer + 1) * directions)
        initial = None if call.hidden is None else (call.hidden[0][part], call.hidden[1][part])
        cells, rebuilt, last = _layer_cells(module, layer, inputs, states, initial, lengths)
        returned = call.last[1][part].to(last.dtype)
        agree = close(last, returned, loose=True)
        if not agree or not close(rebuilt, states, loose=True):
            raise CaptureError(
                f"cell states computed from what {name!r} ({type(module).__name__}) received do "
                f"not lead to the states of layer {layer} that it returned. It computes something "
                "else than torch.nn does (an overridden forward, a hook), so that its cell state "
                "cannot be recorded; leave cell_state out, or choose other modules with layers=."
            )
        found.append(cells)
        inputs = states
    return found


def _layer_cells(
    module: Any,
    layer: int,
    inputs: Tensor,
    states: Tensor,
    initial: tuple[Tensor, Tensor] | None,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cell states, hidden states that follow from them, and the last cell states.

    (sample, time, units) twice, and (direction, sample, units). `initial` holds h and c, each
    (direction, sample, units).
    """
    samples, steps = states.shape[:2]
    directions = 2 if module.bidirectional else 1
    rounded = states.dtype
    exact = torch.float64 if rounded == torch.float64 else torch.float32

    def weight(kind: str, direction: int) -> Tensor:
        own: Tensor = getattr(module, f"{kind}_l{layer}" + ("_reverse" if direction else ""))
        return own.detach().to(rounded).to(exact)  # as mixed precision rounds them

    # (direction, sample, units); time stands first from here on, as the recurrence goes along it.
    c = states.new_zeros(directions, samples, module.hidden_size, dtype=exact)
    h = states.new_zeros(directions, samples, states.shape[2] // directions, dtype=exact)
    if initial is not None:
        h, c = (state.to(rounded).to(exact) for state in initial)
    received = inputs.transpose(0, 1).to(rounded).to(exact)
    per_direction = states.transpose(0, 1).to(exact).unflatten(2, (directions, -1))
    step = torch.arange(steps, device=states.device)[:, None]
    real = step < lengths
    # Where each sequence stands when it is read from its own end; padding stays behind it.
    turned = torch.where(real, lengths - 1 - step, step)[..., None].expand(-1, -1, c.shape[2])
    gates = []
    for direction in range(directions):
        before = _previous(per_direction[:, :, direction], h[direction], lengths, direction)
        bias = None
        if module.bias:
            bias = weight("bias_ih", direction) + weight("bias_hh", direction)
        sums = F.linear(received, weight("weight_ih", direction), bias).flatten(0, 1)
        sums.addmm_(before.flatten(0, 1), weight("weight_hh", direction).T)
        i, f, g, o = sums.unflatten(0, (steps, samples)).chunk(4, dim=-1)
        parts = f.sigmoid_(), i.sigmoid_().mul_(g.tanh_()), o.sigmoid_()
        gates.append([part.gather(0, turned) for part in parts] if direction else parts)
    kept, added, opened = (_beside(parts) for parts in zip(*gates, strict=True))
    cells = added.new_empty(added.shape)
    for time in range(steps):
        c = torch.addcmul(added[time], kept[time], c, out=cells[time])
    last = cells.gather(0, (lengths - 1)[None, None, :, None].expand(1, *cells.shape[1:]))[0]
    outside = cells.tanh().mul_(opened)
    if module.bidirectional:
        for values in (cells, outside):
            values[:, 1] = values[:, 1].gather(0, turned)
    rebuilt = outside.unbind(1)
    if module.proj_size:
        rebuilt = tuple(
            part @ weight("weight_hr", direction).T for direction, part in enumerate(rebuilt)
        )
    # (sample, time, units) again, the units of both directions side by side.
    found = cells.permute(2, 0, 1, 3).flatten(2).to(rounded).contiguous()
    leading = torch.cat(rebuilt, dim=-1).transpose(0, 1).to(rounded).contiguous()
    padding = ~real.T[..., None]
    if bool(padding.any()):
        found.masked_fill_(padding, 0)
        leading.masked_fill_(padding, 0)
    return found, leading, last.to(rounded)


def _beside(parts: Sequence[Tensor]) -> Tensor:
    """Return (time, direction, sample, units); without a copy where there is one direction."""
    return parts[0].unsqueeze(1) if len(parts) == 1 else torch.stack(tuple(parts), dim=1)


def _previous(states: Tensor, initial: Tensor, lengths: Tensor, direction: int) -> Tensor:
    """Return the hidden state (time, sample, units) with which each step began."""
    if direction == 0:
        return torch.cat([initial[None], states[:-1]])
    following = torch.cat([states[1:], torch.zeros_like(states[:1])])
    following[lengths - 1, torch.arange(len(lengths), device=states.device)] = initial
    return following
