"""The recurrence kernels against a plain loop under autograd, and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from dynamo_plugin.metamodels import _recurrence
from dynamo_plugin.metamodels._cells import GRU, LSTM, RNN, Cell
from dynamo_plugin.metamodels._recurrence import recur

CELLS = [GRU, LSTM, RNN]
UNITS = 5

cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)


def _plain(
    cell: type[Cell], driven: Tensor, bias: Tensor, weight: Tensor, offset: Tensor
) -> Tensor:
    """Write the recurrence as a textbook does, one step after the other."""
    batch = torch.broadcast_shapes(driven.shape[:-2], bias.shape[:-1], weight.shape[:-2])
    state = torch.zeros(*batch, cell.parts * UNITS, dtype=driven.dtype)
    states = []
    for now in driven.unbind(-2):
        hidden = state[..., :UNITS]
        recurrent = (weight @ hidden.unsqueeze(-1)).squeeze(-1) + offset
        state = _textbook(cell, now + bias, recurrent, state)
        states.append(state)
    return torch.stack(states, -2)


def _textbook(cell: type[Cell], driven: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    if cell is RNN:
        return torch.tanh(driven + recurrent)
    if cell is LSTM:
        i, f, g, o = (driven + recurrent).chunk(4, -1)
        c = torch.sigmoid(f) * state[..., UNITS:] + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)
    (xr, xz, xn), (hr, hz, hn) = driven.chunk(3, -1), recurrent.chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    return (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * state


def _tensors(
    cell: type[Cell],
    driven: tuple[int, ...] = (1, 3),
    bias: tuple[int, ...] = (2, 1),
    weight: tuple[int, ...] = (),
    *,
    time: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = cell.gates * UNITS
    shapes = [(*driven, time, rows), (*bias, rows), (*weight, rows, UNITS), (*weight, rows)]
    return [
        torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes
    ]


def _value_and_gradients(
    run: Callable[..., Tensor], cell: type[Cell], tensors: list[Tensor]
) -> list[Tensor]:
    states = run(cell, *tensors)
    towards = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).double()
    return [states, *torch.autograd.grad((states * towards).sum(), tensors)]


@cells
@pytest.mark.parametrize(
    ("driven", "bias", "weight"),
    [
        ((1, 3), (2, 1), ()),
        ((2, 3), (2, 3), ()),
        ((2, 3), (1, 1), ()),
        ((1, 3), (2, 1), (2, 1)),
        ((1, 1), (1, 1), (2, 1)),
        ((2, 3), (2, 3), (1, 3)),
        ((2, 1), (1, 3), (2, 3)),
        ((4,), (), ()),
        ((4,), (4,), (4,)),
        ((), (3,), ()),
        ((), (), ()),
        ((2, 1, 3), (2, 2, 1), ()),
        ((1, 1, 3), (2, 2, 1), (2, 2, 1)),
    ],
    ids=str,
)
def test_it_is_the_plain_loop(
    cell: type[Cell], driven: tuple[int, ...], bias: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    tensors = _tensors(cell, driven, bias, weight)
    found = _value_and_gradients(recur, cell, tensors)
    expected = _value_and_gradients(_plain, cell, tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@cells
@given(
    models=st.integers(1, 5),
    sequences=st.integers(1, 9),
    time=st.integers(1, 4),
    rows=st.integers(1, 8),
    own=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_blocks_change_nothing(
    cell: type[Cell],
    models: int,
    sequences: int,
    time: int,
    rows: int,
    own: bool,
) -> None:
    weight = (models, 1) if own else ()
    tensors = _tensors(cell, (1, sequences), (models, 1), weight, time=time)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_recurrence, "ROWS_PER_BLOCK", rows)
        patch.setattr(torch, "get_num_threads", lambda: 1)
        found = _value_and_gradients(recur, cell, tensors)
    expected = _value_and_gradients(_plain, cell, tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@cells
def test_single_precision_is_as_exact_as_the_plain_loop(cell: type[Cell]) -> None:
    found = []
    for seed in range(15):  # a single one says how the roundings of one processor fell
        exact = _tensors(cell, (1, 8), (6, 1), time=40, seed=seed)
        single = [tensor.detach().float().requires_grad_() for tensor in exact]
        references = _value_and_gradients(_plain, cell, exact)
        ours = _value_and_gradients(recur, cell, single)
        plain = _value_and_gradients(_plain, cell, single)
        found.append(
            [
                [float(x.detach().abs().max()) for x in (one - true, other - true, true)]
                for one, other, true in zip(ours, plain, references, strict=True)
            ]
        )
    error, allowed, size = torch.tensor(found).unbind(-1)
    assert ((error / (2 * allowed + 1e-6 * size)).median(0).values <= 1).all()


@cells
@pytest.mark.parametrize("weight", [(), (2, 1)], ids=["shared", "own"])
def test_derivatives_of_every_kind(cell: type[Cell], weight: tuple[int, ...]) -> None:
    tensors = _tensors(cell, (1, 2), (2, 1), weight, time=3)

    def run(*given: Tensor) -> Tensor:
        return recur(cell, *given)

    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, tensors)


@cells
def test_the_gradient_can_be_asked_for_twice(cell: type[Cell]) -> None:
    tensors = _tensors(cell)
    states = recur(cell, *tensors).sum()
    first = torch.autograd.grad(states, tensors, retain_graph=True)
    second = torch.autograd.grad(states, tensors)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@cells
def test_functional_transforms(cell: type[Cell]) -> None:
    driven, bias, weight, offset = (tensor.detach() for tensor in _tensors(cell))
    many = torch.randn(4, *bias.shape).double()

    def run(value: Tensor) -> Tensor:
        return recur(cell, driven, value, weight, offset)

    def plain(value: Tensor) -> Tensor:
        return _plain(cell, driven, value, weight, offset)

    transforms: list[Callable[[Callable[[Tensor], Tensor]], Tensor]] = [
        lambda f: torch.func.vmap(f)(many),
        lambda f: torch.func.jacrev(f)(bias),
        lambda f: torch.func.jacfwd(f)(bias),
        lambda f: torch.func.vmap(torch.func.grad(lambda v: f(v).square().sum()))(many),
        lambda f: torch.func.vmap(torch.func.jacfwd(f))(many),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(run), transform(plain), rtol=1e-10, atol=1e-11)


@cells
def test_weights_may_be_mapped_over(cell: type[Cell]) -> None:
    driven, bias, weight, offset = (tensor.detach() for tensor in _tensors(cell))
    weights, offsets = (
        torch.randn(3, *weight.shape).double(),
        torch.randn(3, *offset.shape).double(),
    )

    def run(one: Tensor, other: Tensor) -> Tensor:
        return recur(cell, driven, bias, one, other)

    found = torch.func.vmap(run)(weights, offsets)
    expected = [_plain(cell, driven, bias, *pair) for pair in zip(weights, offsets, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-11, atol=1e-12)


@cells
def test_without_gradients_nothing_is_kept(cell: type[Cell]) -> None:
    tensors = _tensors(cell)
    with torch.no_grad():
        states = recur(cell, *tensors)
        assert states.grad_fn is None
    torch.testing.assert_close(states, recur(cell, *tensors).detach(), rtol=0, atol=0)
    constants = [tensor.detach() for tensor in tensors]
    with forward_ad.dual_level():
        tangent = torch.ones_like(constants[1])
        constants[1] = forward_ad.make_dual(constants[1], tangent)
        assert forward_ad.unpack_dual(recur(cell, *constants)).tangent is not None
