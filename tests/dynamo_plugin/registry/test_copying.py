"""Copies in memory that is used again: always the values that were there, never somebody else's."""

from __future__ import annotations

import gc
import mmap
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamo_plugin.metamodels import GRUMetaModel
from dynamo_plugin.metamodels._recurrence import recur
from dynamo_plugin.registry import copying
from dynamo_plugin.registry.copying import copied, recycling, room

LARGE = 2**12
"""Numbers of a tensor that takes memory that is used again."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "SMALLEST", 4 * LARGE)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of memory that was asked of the system."""
    sizes: list[int] = []
    make = copying._fresh

    def counting(size: int) -> mmap.mmap:
        sizes.append(size)
        return make(size)

    monkeypatch.setattr(copying, "_fresh", counting)
    return sizes


def in_pages(tensor: Tensor) -> bool:
    return tensor.data_ptr() % mmap.PAGESIZE == 0


@pytest.mark.parametrize("size", [0, 1, 5, LARGE, LARGE + 1])
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64],
)
def test_a_copy_has_the_same_bits(size: int, dtype: torch.dtype) -> None:
    original = (3 * torch.randn(size, 4)).round().to(dtype)
    with recycling():
        for view in (original, original.T, original[::2], original.T[:, 1:]):
            copy = copied(view)
            assert copy.is_contiguous()
            assert copy.dtype == dtype
            assert torch.equal(copy, view)
            original_pointer = original.untyped_storage().data_ptr()
            assert not size or copy.untyped_storage().data_ptr() != original_pointer


def test_a_copy_is_detached_and_out_of_reach() -> None:
    original = torch.ones(LARGE, requires_grad=True)
    with recycling():
        copy = copied(original * 2)
        assert not copy.requires_grad
        with torch.no_grad():
            original.zero_()
    assert bool((copy == 2).all())


def test_memory_is_used_again_when_the_last_view_is_gone(fresh: list[int]) -> None:
    with recycling():
        first = copied(torch.full((LARGE,), 1.0))
        rows = first.numpy()[10:20]
        del first
        second = copied(torch.full((LARGE,), 2.0))
        assert len(fresh) == 2  # the rows still look at the first
        np.testing.assert_array_equal(rows, 1)
        del rows
        third = copied(torch.full((LARGE,), 3.0))
        assert len(fresh) == 2
        assert in_pages(second)
        assert in_pages(third)
        assert bool((second == 2).all())
        assert bool((third == 3).all())


def test_nothing_is_kept_outside(fresh: list[int]) -> None:
    plain = copied(torch.ones(LARGE))
    with recycling():
        kept = copied(plain)
        with recycling():
            pass
        del kept
        copied(plain)
        assert len(fresh) == 1  # an inner end frees nothing
    left = copied(plain)
    with recycling():
        copied(plain)
        assert len(fresh) == 2
        survivor = copied(plain + 1)
    gc.collect()
    assert bool((left == 1).all())
    assert bool((survivor == 2).all())  # though what was kept is freed


def test_no_more_is_kept_than_was_said(fresh: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "KEPT_BYTES", 2 * 4 * LARGE)
    with recycling():
        copies = [copied(torch.ones(LARGE)) for _ in range(5)]
        del copies
        assert len([copied(torch.ones(LARGE)) for _ in range(5)]) == 5
    assert len(fresh) == 5 + 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9 * LARGE)), max_size=20))
def test_copies_never_meet(steps: list[tuple[int, int]]) -> None:
    """Whatever is made and dropped in whatever order, each holds what was put there."""
    held: dict[int, tuple[Tensor, int]] = {}
    with recycling():
        for value, (place, size) in enumerate(steps):
            held[place] = copied(torch.full((4 * LARGE + size,), value % 251).byte()), value
            for copy, expected in held.values():
                assert bool((copy == expected % 251).all())


def test_threads_share_it() -> None:
    def work(number: int) -> bool:
        copies = [copied(torch.full((LARGE,), float(number + n))) for n in range(4)]
        return all(bool((copy == number + n).all()) for n, copy in enumerate(copies))

    with recycling(), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(60)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_other_tensors_are_cloned() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(LARGE), 0.1, 0, torch.quint8)

    class Own(torch.Tensor):
        pass

    own: Any = torch.ones(LARGE).as_subclass(Own)
    with recycling():
        assert copied(quantised).is_quantized
        assert type(copied(own)) is Own


def test_room_is_used_again_while_somebody_recycles(fresh: list[int]) -> None:
    like = torch.ones(1, dtype=torch.float64)
    assert room((LARGE, 4), like).dtype == torch.float64
    assert not fresh  # nobody recycles
    with recycling(2**30):
        first = room((LARGE, 4), like)
        assert first.shape == (LARGE, 4)
        assert in_pages(first)
        second = room((LARGE, 4), like)
        assert first.data_ptr() != second.data_ptr()
        place = first[1:].data_ptr() - first[0].nbytes
        view = first[1:]
        del first
        assert room((LARGE, 4), like).data_ptr() != place  # a view is left
        del view
        assert room((2, LARGE, 2), like).data_ptr() == place
    with recycling(0):
        del second
        before = len(fresh)
        room((LARGE, 4), like)
        room((LARGE, 4), like)
        assert len(fresh) == before + 2


def test_a_recurrence_in_recycled_room_is_the_same() -> None:
    torch.manual_seed(0)
    cell = GRUMetaModel.cell
    inputs = [torch.randn(*shape) for shape in ((1, 8, 40, 96), (5, 1, 96), (96, 32), (96,))]
    found = []
    for context in (nullcontext(), recycling(2**30)):
        with context:
            for _ in range(3):  # the later ones in what the first ones left
                leaves = [tensor.clone().requires_grad_() for tensor in inputs]
                states = recur(cell, *leaves)
                states.square().mean().backward()
                found.append([states.detach().clone(), *(leaf.grad for leaf in leaves)])
                del states
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert one is not None
            assert same is not None
            assert torch.equal(one, same)
