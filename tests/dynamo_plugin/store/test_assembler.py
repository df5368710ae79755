"""Rows come out as the blocks that plain slicing gives, in whatever portions they went in."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import ArrayBlocks, Assembler
from dynamo_plugin.store._blocks import Identity
from dynamo_plugin.store._documents import ArrayLayout
from dynamo_plugin.store._location import locate


def array(rows: int, size: int, *row_shape: int) -> ArrayBlocks:
    layout = ArrayLayout("a", (rows, *row_shape), "float32", ("row", *"xyz"[: len(row_shape)]))
    return ArrayBlocks(locate({}, create=True), layout, size, Identity("i"), "array 'a'")


def ramp(rows: int, *row_shape: int) -> NDArray[Any]:
    return np.arange(rows * int(np.prod(row_shape)), dtype=np.float32).reshape(rows, *row_shape)


@given(data=st.data())
def test_any_portions(data: st.DataObject) -> None:
    rows, size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    row_shape = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    blocks = array(rows, min(size, rows), *row_shape)
    size = blocks.chunk_rows
    wanted = data.draw(st.sets(st.integers(0, blocks.count - 1)))
    cuts = sorted(data.draw(st.sets(st.integers(0, rows))) | {0, rows})
    values = ramp(rows, *row_shape)
    assembler = Assembler(blocks, wanted)
    came: dict[int, NDArray[Any]] = {}
    for start, stop in itertools.pairwise(cuts):
        for block, pieces in assembler.put(start, values[start:stop]):
            assert stop >= blocks.bounds(block)[1]  # as soon as it is full, and not before
            assert start < blocks.bounds(block)[1]
            assert all(np.shares_memory(piece, values) for piece in pieces)
            came[block] = np.concatenate(pieces)
        assert assembler.wanted == wanted - came.keys()
    assert came.keys() == wanted
    for block, rows_of_block in came.items():
        expected = values[block * size : (block + 1) * size]
        np.testing.assert_array_equal(rows_of_block, expected, strict=True)


@given(data=st.data())
def test_windows_that_hold_no_wanted_block_may_be_left_out(data: st.DataObject) -> None:
    blocks = array(30, 4)
    wanted: set[int] = data.draw(st.sets(st.integers(0, blocks.count - 1)))
    skipped: set[int] = data.draw(st.sets(st.integers(0, 9)))
    values = ramp(30)
    assembler = Assembler(blocks, wanted)
    came = set()
    for start in range(0, 30, 3):
        covered = set(range(start // 4, (start + 2) // 4 + 1))
        if covered & wanted or start // 3 not in skipped:
            for block, pieces in assembler.put(start, values[start : start + 3]):
                np.testing.assert_array_equal(
                    np.concatenate(pieces), values[slice(*blocks.bounds(block))]
                )
                came.add(block)
    assert came == wanted


def test_what_it_refuses() -> None:
    refused: list[tuple[int, Any, str]] = [
        (0, ramp(3, 4), r"shape \(rows, 3\) for array 'a', got \(3, 4\)"),
        (0, np.float32(1), r"got \(\)"),
        (0, ramp(3, 3).astype(np.float64), "dtype float32 for array 'a', got float64"),
        (8, ramp(3, 3), "Expected 10 rows for array 'a', got at least 11"),
        (-1, ramp(3, 3), "Expected 10 rows"),
        (5, ramp(2, 3), "Expected row 4 of array 'a' next, got row 5"),
    ]
    for start, rows, message in refused:
        assembler = Assembler(array(10, 4, 3), {0, 1, 2})
        with pytest.raises(InvalidInput, match=message):
            list(assembler.put(start, rows))
    assembler = Assembler(array(10, 4, 3), {0, 1, 2})
    assert not list(assembler.put(0, ramp(2, 3)))
    with pytest.raises(InvalidInput, match="Expected row 2 of array 'a' next, got row 3"):
        list(assembler.put(3, ramp(2, 3)))
