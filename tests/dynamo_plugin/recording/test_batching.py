"""Windows and batches cover every sample once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.recording.batching import batches, scatter, windows

lengths_lists = st.lists(st.integers(1, 7), min_size=1, max_size=20)


@given(lengths=lengths_lists, rows=st.integers(1, 30), samples=st.integers(1, 4))
def test_windows_are_contiguous_and_bounded(lengths: list[int], rows: int, samples: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    found = list(windows(offsets, rows=rows, samples=samples))
    assert [sample for window in found for sample in window] == list(range(len(lengths)))
    for window in found:
        held = offsets[window.stop] - offsets[window.start]
        assert held <= rows or len(window) <= samples
        assert len(window) >= samples or window.stop == len(lengths) or held <= rows


@given(lengths=lengths_lists, size=st.integers(1, 5), ragged=st.booleans())
def test_batches_are_a_sorted_partition(lengths: list[int], size: int, ragged: bool) -> None:
    array = np.array(lengths)
    found = list(batches(array, size=size, ragged=ragged))
    order = np.concatenate(found)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(array[order]) <= 0).all()
    for batch in found:
        assert 1 <= len(batch) <= size
        assert ragged or len(set(array[batch])) == 1


@given(lengths=lengths_lists, seed=st.integers(0, 99))
def test_scatter_puts_every_step_in_its_row(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequences = [rng.normal(size=(length, 2)) for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    order = rng.permutation(len(lengths))
    padded = np.full((len(lengths), max(lengths), 2), np.nan)
    for row, sample in enumerate(order):
        padded[row, : lengths[sample]] = sequences[sample]
    target = np.empty((sum(lengths), 2))
    scatter(target, padded, offsets[:-1][order], np.array(lengths)[order])
    np.testing.assert_array_equal(target, np.concatenate(sequences))
