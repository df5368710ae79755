"""Recurrent cells: one step, its tangent, and many steps forward and backward.

Gates are in PyTorch's order everywhere outside this module. What drives a cell, `driven`, is the
projection of the inputs; what theta adds to it comes apart, as `bias`. W and b, `weight` and
`offset`, make the recurrent part W h + b.

The kernels (`run`, `back`) fill buffers laid out (model, sequence, time, ...) one step at a time,
and keep what the backward pass needs and no more; autograd never sees a step. Their time is that of
their matrix products and of the traffic of the buffers, see benchmarks/training.py.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["GRU", "LSTM", "RNN", "Cell"]

_sigmoid_backward = torch.ops.aten.sigmoid_backward
_tanh_backward = torch.ops.aten.tanh_backward


class Cell(abc.ABC):
    """A recurrence: state_t = advance(driven_t + bias, W h_(t-1) + b, state_(t-1)).

    h is the first `units` numbers of the state.
    """

    gates: ClassVar[int]
    """Blocks of `units` rows in W."""
    parts: ClassVar[int] = 1
    """Vectors of `units` numbers in a state."""
    kept: ClassVar[int]
    """Numbers per unit and step that the backward pass needs beside the states."""

    @staticmethod
    def arranged(weight: Tensor) -> Tensor:
        """Return W or b, rows on axis 1, in the order of `run` and `back`."""
        return weight

    @staticmethod
    def restored(gradient: Tensor) -> Tensor:
        """Undo `arranged`."""
        return gradient

    @staticmethod
    @abc.abstractmethod
    def advance(driven: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        """Return the next state.

        Parameters
        ----------
        driven, recurrent
            (..., gates * units): what drives the cell, theta's part included, and W h + b.
        state
            (..., parts * units).
        """

    @staticmethod
    @abc.abstractmethod
    def tangent(
        driven: Tensor,
        recurrent: Tensor,
        state: Tensor,
        d_driven: Tensor,
        d_recurrent: Tensor,
        d_state: Tensor,
    ) -> Tensor:
        """Return the change of the next state with small changes of the arguments of `advance`."""

    @staticmethod
    @abc.abstractmethod
    def run(
        driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, states: Tensor, kept: Tensor
    ) -> None:
        """Start at zero; fill `states`, and `kept` unless it holds one step only.

        Parameters
        ----------
        driven
            (1 or model, 1 or sequence, time, gates * units).
        bias
            (1 or model, 1 or sequence, gates * units).
        weight, offset
            (1 or model, gates * units, units) and (1 or model, gates * units), arranged.
        states
            (model, sequence, time, parts * units), contiguous.
        kept
            (model, sequence, time or 1, kept * units), contiguous.
        """

    @staticmethod
    @abc.abstractmethod
    def back(
        gradient: Tensor, weight: Tensor, states: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients, at every step, of what drives the cell and of W h + b.

        Parameters
        ----------
        gradient
            Of the states.
        weight, states, kept
            Of `run`; `kept` is overwritten.

        Returns
        -------
        tuple of Tensor
            (model, sequence, time, gates * units) each, the second arranged; all their rows lie at
            one distance, so that leading axes flatten without a copy.
        """


class GRU(Cell):
    """Cho et al. 2014 (doi:10.3115/v1/D14-1179), with PyTorch's place for the reset gate.

    The rows of W are arranged n, r, z. `driven` has r, z, n. Thus r and z of the two add up in one
    go, and of [W_n h + b_n | r | z | n], what is kept of a step, the first three blocks make room
    for the gradient of W h + b and the last three for that of `driven`.
    """

    gates = 3
    kept = 4

    @staticmethod
    def arranged(weight: Tensor) -> Tensor:
        new_first: Tensor = weight.unflatten(1, (3, -1)).roll(1, 1).flatten(1, 2)
        return new_first

    @staticmethod
    def restored(gradient: Tensor) -> Tensor:
        new_last: Tensor = gradient.unflatten(1, (3, -1)).roll(-1, 1).flatten(1, 2)
        return new_last

    @staticmethod
    def advance(driven: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        units = state.shape[-1]
        driven_gates, driven_new = driven.split((2 * units, units), dim=-1)
        recurrent_gates, recurrent_new = recurrent.split((2 * units, units), dim=-1)
        reset, update = (driven_gates + recurrent_gates).sigmoid().chunk(2, dim=-1)
        new = torch.addcmul(driven_new, reset, recurrent_new).tanh()
        return torch.lerp(new, state, update)

    @staticmethod
    def tangent(
        driven: Tensor,
        recurrent: Tensor,
        state: Tensor,
        d_driven: Tensor,
        d_recurrent: Tensor,
        d_state: Tensor,
    ) -> Tensor:
        reset, update = (driven + recurrent).chunk(3, dim=-1)[:2]
        reset, update = reset.sigmoid(), update.sigmoid()
        recurrent_new = recurrent.chunk(3, dim=-1)[2]
        new = (driven.chunk(3, dim=-1)[2] + reset * recurrent_new).tanh()
        d_gates = (d_driven + d_recurrent).chunk(3, dim=-1)
        d_reset = d_gates[0] * reset * (1 - reset)
        d_update = d_gates[1] * update * (1 - update)
        d_new = d_driven.chunk(3, dim=-1)[2] + reset * d_recurrent.chunk(3, dim=-1)[2]
        d_new = (d_new + d_reset * recurrent_new) * (1 - new.square())
        return (1 - update) * d_new + update * d_state + d_update * (state - new)

    @staticmethod
    def run(
        driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, states: Tensor, kept: Tensor
    ) -> None:
        units = states.shape[-1]
        product = _Product(weight, offset)
        recurrent = states.new_empty(*states.shape[:2], 3 * units)
        state = states.new_zeros(*states.shape[:2], units)
        for time in range(states.shape[2]):
            step = kept[:, :, time if kept.shape[2] > 1 else 0]
            new_recurrent, gates = step[..., :units], step[..., units : 3 * units]
            reset, update, new = step[..., units:].split(units, dim=-1)
            torch.add(driven[:, :, time], bias, out=step[..., units:])
            product.forward(state, recurrent)
            new_recurrent.copy_(recurrent[..., :units])
            gates.add_(recurrent[..., units:]).sigmoid_()
            new.addcmul_(new_recurrent, reset).tanh_()
            state = torch.lerp(new, state, update, out=states[:, :, time])

    @staticmethod
    def back(
        gradient: Tensor, weight: Tensor, states: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        units = states.shape[-1]
        product = _Product(weight)
        first = states.new_zeros(*states.shape[:2], units)
        passed = torch.zeros_like(first)
        d_state, scratch = torch.zeros_like(first), torch.empty_like(first)
        for time in reversed(range(states.shape[2])):
            step = kept[:, :, time]
            new_recurrent, reset, update, new = step.split(units, dim=-1)
            before = states[:, :, time - 1] if time else first
            d_state.add_(gradient[:, :, time])
            torch.mul(d_state, update, out=passed)
            torch.sub(before, new, out=scratch).mul_(d_state)
            _sigmoid_backward.grad_input(scratch, update, grad_input=update)
            d_state.sub_(passed)
            _tanh_backward.grad_input(d_state, new, grad_input=new)  # now of driven n
            torch.mul(new, new_recurrent, out=scratch)
            torch.mul(new, reset, out=new_recurrent)  # now of W_n h + b_n
            _sigmoid_backward.grad_input(scratch, reset, grad_input=reset)
            product.backward(step[..., : 3 * units], passed, d_state)
        return kept[..., units:], kept[..., : 3 * units]


class LSTM(Cell):
    """Hochreiter and Schmidhuber 1997 (doi:10.1162/neco.1997.9.8.1735); the state is [h | c].

    Kept are the gates i, f, g, o; their gradients take their place.
    """

    gates = 4
    parts = 2
    kept = 4

    @staticmethod
    def advance(driven: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        enter, forget, cell, leave = (driven + recurrent).chunk(4, dim=-1)
        memory = state.chunk(2, dim=-1)[1]
        memory = forget.sigmoid() * memory + enter.sigmoid() * cell.tanh()
        return torch.cat([leave.sigmoid() * memory.tanh(), memory], dim=-1)

    @staticmethod
    def tangent(
        driven: Tensor,
        recurrent: Tensor,
        state: Tensor,
        d_driven: Tensor,
        d_recurrent: Tensor,
        d_state: Tensor,
    ) -> Tensor:
        enter, forget, cell, leave = (driven + recurrent).chunk(4, dim=-1)
        d_enter, d_forget, d_cell, d_leave = (d_driven + d_recurrent).chunk(4, dim=-1)
        before, d_before = state.chunk(2, dim=-1)[1], d_state.chunk(2, dim=-1)[1]
        enter, forget, leave, cell = enter.sigmoid(), forget.sigmoid(), leave.sigmoid(), cell.tanh()
        squashed = (forget * before + enter * cell).tanh()
        d_memory = (
            d_forget * forget * (1 - forget) * before
            + forget * d_before
            + d_enter * enter * (1 - enter) * cell
            + enter * d_cell * (1 - cell.square())
        )
        d_hidden = (
            d_leave * leave * (1 - leave) * squashed + leave * (1 - squashed.square()) * d_memory
        )
        return torch.cat([d_hidden, d_memory], dim=-1)

    @staticmethod
    def run(
        driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, states: Tensor, kept: Tensor
    ) -> None:
        units = states.shape[-1] // 2
        product = _Product(weight, offset)
        state = states.new_zeros(*states.shape[:2], 2 * units)
        recurrent = states.new_empty(*states.shape[:2], 4 * units)
        for time in range(states.shape[2]):
            step = kept[:, :, time if kept.shape[2] > 1 else 0]
            enter, forget, cell, leave = step.split(units, dim=-1)
            product.forward(state[..., :units], recurrent)
            torch.add(driven[:, :, time], bias, out=step).add_(recurrent)
            step[..., : 2 * units].sigmoid_()
            cell.tanh_()
            leave.sigmoid_()
            hidden, memory = states[:, :, time].split(units, dim=-1)
            torch.mul(forget, state[..., units:], out=memory).addcmul_(enter, cell)
            torch.tanh(memory, out=hidden).mul_(leave)
            state = states[:, :, time]

    @staticmethod
    def back(
        gradient: Tensor, weight: Tensor, states: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        units = states.shape[-1] // 2
        product = _Product(weight)
        first = states.new_zeros(*states.shape[:2], units)
        d_hidden, d_memory = torch.zeros_like(first), torch.zeros_like(first)
        squashed, scratch = torch.empty_like(first), torch.empty_like(first)
        for time in reversed(range(states.shape[2])):
            step = kept[:, :, time]
            enter, forget, cell, leave = step.split(units, dim=-1)
            before = states[:, :, time - 1, units:] if time else first
            d_hidden.add_(gradient[:, :, time, :units])
            d_memory.add_(gradient[:, :, time, units:])
            torch.tanh(states[:, :, time, units:], out=squashed)
            torch.mul(d_hidden, leave, out=scratch)
            d_memory.add_(_tanh_backward(scratch, squashed))
            _sigmoid_backward.grad_input(d_hidden.mul_(squashed), leave, grad_input=leave)
            torch.mul(d_memory, cell, out=scratch)
            torch.mul(d_memory, enter, out=squashed)
            _sigmoid_backward.grad_input(scratch, enter, grad_input=enter)
            _tanh_backward.grad_input(squashed, cell, grad_input=cell)
            torch.mul(d_memory, before, out=scratch)
            d_memory.mul_(forget)
            _sigmoid_backward.grad_input(scratch, forget, grad_input=forget)
            product.backward(step, None, d_hidden)
        return kept, kept


class RNN(Cell):
    """Elman 1990 (doi:10.1207/s15516709cog1402_1), with tanh."""

    gates = 1
    kept = 1

    @staticmethod
    def advance(driven: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        return (driven + recurrent).tanh()

    @staticmethod
    def tangent(
        driven: Tensor,
        recurrent: Tensor,
        state: Tensor,
        d_driven: Tensor,
        d_recurrent: Tensor,
        d_state: Tensor,
    ) -> Tensor:
        return (d_driven + d_recurrent) * (1 - (driven + recurrent).tanh().square())

    @staticmethod
    def run(
        driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, states: Tensor, kept: Tensor
    ) -> None:
        product = _Product(weight, offset)
        state = torch.zeros_like(states[:, :, 0])
        recurrent = torch.empty_like(state)
        for time in range(states.shape[2]):
            product.forward(state, recurrent)
            state = torch.add(driven[:, :, time], bias, out=states[:, :, time])
            state.add_(recurrent).tanh_()

    @staticmethod
    def back(
        gradient: Tensor, weight: Tensor, states: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        product = _Product(weight)
        d_state = torch.zeros_like(states[:, :, 0])
        for time in reversed(range(states.shape[2])):
            d_state.add_(gradient[:, :, time])
            _tanh_backward.grad_input(d_state, states[:, :, time], grad_input=kept[:, :, time])
            product.backward(kept[:, :, time], None, d_state)
        return kept, kept


class _Product:
    """W h + b, and W^T of a gradient, with one W for all models or one for each."""

    def __init__(self, weight: Tensor, offset: Tensor | None = None) -> None:
        self.shared = len(weight) == 1
        self.weight = weight[0] if self.shared else weight
        self.transposed = self.weight.mT.contiguous()  # as BLAS likes it best
        if offset is not None:
            self.offset = offset[0] if len(offset) == 1 else offset.unsqueeze(1)

    def forward(self, state: Tensor, out: Tensor) -> None:
        """Write W h + b, (model, sequence, rows of W), of h (model, sequence, units)."""
        if self.shared and self.offset.ndim == 1:
            torch.addmm(self.offset, state.flatten(0, 1), self.transposed, out=out.flatten(0, 1))
        else:
            weight = self.transposed.expand(len(state), -1, -1)
            torch.baddbmm(self.offset, state, weight, out=out)

    def backward(self, gradient: Tensor, base: Tensor | None, out: Tensor) -> None:
        """Write W^T g, (model, sequence, units), plus `base` where there is one."""
        if self.shared:
            flat, target = gradient.flatten(0, 1), out.flatten(0, 1)
            if base is None:
                torch.mm(flat, self.weight, out=target)
            else:
                torch.addmm(base.flatten(0, 1), flat, self.weight, out=target)
        elif base is None:
            torch.bmm(gradient, self.weight, out=out)
        else:
            torch.baddbmm(base, gradient, self.weight, out=out)
