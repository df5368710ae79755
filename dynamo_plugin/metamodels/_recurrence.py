"""Runs a recurrent cell over many models and sequences at once, with an exact gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynamo_plugin.metamodels._cells import Cell
from dynamo_plugin.registry.copying import room

__all__ = ["recur"]

ROWS_PER_BLOCK = 160
"""Models x sequences that run through time together on one CPU thread: enough rows for a matrix
product to be fast, few enough that what a step touches stays in the cache. Several threads take
four times as many each, lest they wait for each other more than they work."""

LEADING = (2, 2, 1, 1)
"""How many axes of driven, bias, weight and offset run over models and sequences."""


def recur(cell: type[Cell], driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """Run a cell from a state of zeros: state_t = advance(driven_t + bias, W h_(t-1) + b, ...).

    Differentiable by all tensors, more than once, in reverse and forward mode, and under
    `torch.func`; only the first reverse-mode derivative is as fast as it can be.

    Parameters
    ----------
    cell
        Which recurrence.
    driven
        (..., time, gates * units): the projected inputs; at least one step.
    bias
        (..., gates * units): what is added to it at every step. The leading axes broadcast with
        those of `driven`.
    weight, offset
        W, (..., gates * units, units), and b, (..., gates * units). Their leading axes, if any,
        broadcast with those of `driven` too.

    Returns
    -------
    Tensor
        (..., time, parts * units).
    """
    batch = torch.broadcast_shapes(
        driven.shape[:-2], bias.shape[:-1], weight.shape[:-2], offset.shape[:-1]
    )
    tensors = [
        tensor.reshape((1,) * (len(batch) + own - tensor.ndim) + tensor.shape)
        for tensor, own in ((driven, 2), (bias, 1), (weight, 2), (offset, 1))
    ]
    if len(batch) != 2 or any(tensor.shape[1] > 1 for tensor in tensors[2:]):
        tensors = [_joined(tensor, batch) for tensor in tensors]
    driven, bias, weight, offset = tensors
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    states = _apply(cell, keep, driven, bias, weight[:, 0], offset[:, 0])[0]
    return states.reshape(*batch, *states.shape[2:])


def _joined(tensor: Tensor, batch: torch.Size) -> Tensor:
    """Join the leading axes to one of length 1 or that of the whole batch; add one of length 1."""
    own = tensor.shape[len(batch) :]
    if tensor.shape[: len(batch)].numel() == 1:
        return tensor.reshape(1, 1, *own)
    return tensor.expand(*batch, *own).reshape(-1, 1, *own)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        cell: type[Cell],
        keep: bool,  # noqa: FBT001
        driven: Tensor,
        bias: Tensor,
        weight: Tensor,
        offset: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return _run(cell, driven, bias, weight, offset, keep=keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        cell, keep, *tensors = inputs
        states, kept = output
        ctx.cell, ctx.fresh = cell, keep
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, states, kept)
        ctx.save_for_forward(*tensors, states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 6
        driven, bias, weight, offset, states, kept = ctx.saved_tensors
        cell, tensors = ctx.cell, (driven, bias, weight, offset)
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            return None, None, *_differentiable_gradients(cell, tensors, gradient)
        if not ctx.fresh:
            states, kept = _run(cell, *tensors, keep=True)
        ctx.fresh = False  # `kept` is overwritten below
        return None, None, *_gradients(cell, tensors, wanted, gradient, states, kept)

    @staticmethod
    def jvp(
        ctx: Any,
        _cell: None,
        _keep: None,
        d_driven: Tensor | None,
        d_bias: Tensor | None,
        d_weight: Tensor | None,
        d_offset: Tensor | None,
    ) -> tuple[Tensor, None]:
        driven, bias, weight, offset, states = ctx.saved_tensors
        cell = ctx.cell
        units = weight.shape[-1]
        d_driven = torch.zeros_like(driven) if d_driven is None else d_driven
        d_bias = torch.zeros_like(bias) if d_bias is None else d_bias
        state = torch.zeros_like(states[:, :, 0])
        d_state = state
        tangents = []
        for time in range(states.shape[2]):
            d_recurrent = d_state[..., :units] @ weight.mT
            if d_weight is not None:
                d_recurrent = d_recurrent + state[..., :units] @ d_weight.mT
            if d_offset is not None:
                d_recurrent = d_recurrent + d_offset[:, None]
            d_state = cell.tangent(
                driven[:, :, time] + bias,
                state[..., :units] @ weight.mT + offset[:, None],
                state,
                d_driven[:, :, time] + d_bias,
                d_recurrent,
                d_state,
            )
            state = states[:, :, time]
            tangents.append(d_state)
        return torch.stack(tangents, dim=2), None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        cell: type[Cell],
        keep: bool,  # noqa: FBT001
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
        """Let the mapped axis run along the models."""
        size = info.batch_size
        models = max(
            tensor.movedim(dim, 0).shape[1] if dim is not None else tensor.shape[0]
            for tensor, dim in zip(tensors, in_dims[2:], strict=True)
        )
        joined = []
        for tensor, dim in zip(tensors, in_dims[2:], strict=True):
            if dim is None and len(tensor) == 1:
                joined.append(tensor)
                continue
            stacked = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
            joined.append(stacked.expand(size, models, *stacked.shape[2:]).flatten(0, 1))
        states, kept = _apply(cell, keep, *joined)
        return (states.unflatten(0, (size, models)), kept), (0, None)


def _apply(*arguments: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _Recurrence.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def _run(
    cell: type[Cell], driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """Return the states, and what the backward pass needs of the gates (one step of it if not)."""
    models = max(len(tensor) for tensor in (driven, bias, weight, offset))
    tensors = (
        driven,
        bias.expand(models, -1, -1),
        cell.arranged(weight),
        cell.arranged(offset),
    )
    sequences, time = max(driven.shape[1], bias.shape[1]), driven.shape[2]
    units = weight.shape[-1]
    states = room((models, sequences, time, cell.parts * units), driven)
    rows = (models, sequences, time) if keep else (0, 0, 0)
    kept = room((*rows, cell.kept * units), driven)
    for block in _blocks(states):
        here = states[block]
        gates = kept[block] if keep else here.new_empty(*here.shape[:2], 1, kept.shape[-1])
        seen = (_part(tensor, block[:axes]) for tensor, axes in zip(tensors, LEADING, strict=True))
        cell.run(next(seen), next(seen), next(seen), next(seen), here, gates)
    return states, kept


def _gradients(
    cell: type[Cell],
    tensors: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    gradient: Tensor,
    states: Tensor,
    kept: Tensor,
) -> list[Tensor | None]:
    """Return the gradients of driven, bias, weight and offset, overwriting `kept`."""
    kept = kept.data  # autograd need not know that it is overwritten: a flag does
    weight = cell.arranged(tensors[2])
    units = weight.shape[-1]
    sums = [
        torch.zeros_like(tensor) if want else None
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    for block in _blocks(states):
        here = states[block]
        d_driven, d_recurrent = cell.back(
            gradient[block], _part(weight, block[:1]), here, kept[block]
        )
        if sums[0] is not None:
            _add(sums[0], d_driven, block)
        if sums[1] is not None:
            _add(sums[1], d_driven.sum(2), block)
        if sums[2] is not None:
            products = _products(d_recurrent, here[..., :units], together=len(weight) == 1)
            _part(sums[2], block[:1]).add_(products)
        if sums[3] is not None:
            _add(sums[3], d_recurrent.sum((1, 2)), block[:1])
    return [*sums[:2], *(None if total is None else cell.restored(total) for total in sums[2:])]


def _products(gradient: Tensor, states: Tensor, *, together: bool) -> Tensor:
    """Return sum_t gradient_t h_(t-1)^T, (model, rows, units), over sequences; or over all models.

    All steps of all sequences make one product; the pairs that join the first step of one sequence
    to the last of the one before are taken off again.
    """
    first, last = gradient[:, :, 0], states[:, :, -1]
    gradient, states = gradient.flatten(1, 2), states.flatten(1, 2)
    if together:
        gradient, states = gradient.flatten(0, 1), states.flatten(0, 1)
        first, last = first.flatten(0, 1), last.flatten(0, 1)
        product = gradient[1:].T @ states[:-1]
        return product.addmm_(first[1:].T, last[:-1], alpha=-1).unsqueeze(0)
    product = gradient[:, 1:].mT @ states[:, :-1]
    return product.baddbmm_(first[:, 1:].mT, last[:, :-1], alpha=-1)


def _differentiable_gradients(
    cell: type[Cell], tensors: tuple[Tensor, ...], gradient: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of driven, bias, weight and offset as functions of all tensors."""

    def run(driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        units = weight.shape[-1]
        state = (driven[:, :, 0] + bias + offset[:, None])[..., :1] * 0
        state = state.expand(*state.shape[:2], cell.parts * units)
        states = []
        for now in driven.unbind(2):
            recurrent = state[..., :units] @ weight.mT + offset[:, None]
            state = cell.advance(now + bias, recurrent, state)
            states.append(state)
        return torch.stack(states, 2)

    gradients: tuple[Tensor, ...] = torch.func.vjp(run, *tensors)[1](gradient)
    return gradients


def _blocks(states: Tensor) -> list[tuple[slice, slice]]:
    """Cut models x sequences into blocks that run through time one after the other."""
    models, sequences = states.shape[:2]
    if states.device.type != "cpu":
        return [(slice(0, models), slice(0, sequences))]
    threads = torch.get_num_threads()
    rows = ROWS_PER_BLOCK * (1 if threads == 1 else 4 * threads)
    width = -(-sequences // -(-sequences // rows))
    height = max(rows // width, 1)
    return [
        (slice(model, model + height), slice(sequence, sequence + width))
        for model in range(0, models, height)
        for sequence in range(0, sequences, width)
    ]


def _part(tensor: Tensor, block: tuple[slice, ...]) -> Tensor:
    """Return what a block sees of a tensor; leading axes of length 1 belong to every block."""
    sizes = tensor.shape[: len(block)]
    chosen = (part if size > 1 else slice(None) for part, size in zip(block, sizes, strict=True))
    return tensor[tuple(chosen)]


def _add(total: Tensor, value: Tensor, block: tuple[slice, ...]) -> None:
    """Add the value of a block to its part of a total, summed where that has length 1."""
    target = _part(total, block)
    shared = [axis for axis in range(len(block)) if target.shape[axis] < value.shape[axis]]
    target.add_(value.sum(shared, keepdim=True) if shared else value)
