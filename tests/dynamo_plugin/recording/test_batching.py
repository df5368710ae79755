"""Windows and batches against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.recording import batching as module
from dynamo_plugin.recording.batching import Batching
from dynamo_plugin.types import OutputSpec, SiteSpec, TrajectorySpec

lists_of_lengths = st.lists(st.integers(1, 7), min_size=1, max_size=20)


def batching_of(lengths: list[int], *, size: int, window_rows: int = 8) -> Batching:
    spec = TrajectorySpec(
        "none", (SiteSpec("s", (1,), "float32"),), OutputSpec("o", (1,), "float32", "sample")
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_BYTES", 8 * window_rows)
        return Batching.of(offsets, spec, size)


@given(lengths=lists_of_lengths, size=st.integers(1, 6), rows=st.integers(1, 20))
def test_windows_hold_every_sample_once(lengths: list[int], size: int, rows: int) -> None:
    batching = batching_of(lengths, size=size, window_rows=rows)
    assert [sample for window in batching.windows for sample in window] == list(range(len(lengths)))
    for window in batching.windows[:-1]:
        assert len(window) >= size
        assert len(window) == size or sum(lengths[i] for i in window) <= rows
    if len(set(lengths)) == 1:
        assert all(len(window) <= size for window in batching.windows)


@given(lengths=lists_of_lengths, size=st.integers(1, 6), ragged=st.booleans())
def test_batches_hold_every_sample_once(lengths: list[int], size: int, ragged: bool) -> None:
    batching = batching_of(lengths, size=size, window_rows=10**6)
    (window, *_), seen = batching.windows, []
    for batch in batching.batches(window, ragged=ragged):
        of_batch = [lengths[window.start + i] for i in batch]
        assert 1 <= len(batch) <= size
        assert of_batch == sorted(of_batch, reverse=True)
        assert ragged or len(set(of_batch)) == 1
        seen += batch.tolist()
    assert sorted(seen) == list(range(len(window)))


@given(
    lengths=lists_of_lengths,
    size=st.integers(1, 6),
    rows=st.integers(1, 20),
    every=st.integers(1, 3),
)
def test_rows_go_to_their_places(lengths: list[int], size: int, rows: int, every: int) -> None:
    """Every step of every sample, tagged with its numbers, comes to lie in order."""
    batching = batching_of(lengths, size=size, window_rows=rows)
    flat: list[tuple[int, ...]] = []
    for window in batching.windows:
        found = np.full((batching.count_rows(window, "time", every), 2), -1)
        for batch in batching.batches(window, ragged=True):
            samples = batch + window.start
            longest = max(lengths[i] for i in samples)
            padded = np.array([[(i, t) for t in range(longest)] for i in samples])[:, ::every]
            source, target = batching.places(samples, window.start, "time", every)
            found[target] = padded.reshape(-1, 2)[source]
        assert batching.first_row(window.start, "time", every) == len(flat)
        flat += [tuple(row) for row in found.tolist()]
    assert flat == [(i, t) for i, n in enumerate(lengths) for t in range(0, n, every)]


def test_rows_of_samples_go_to_their_places() -> None:
    batching = batching_of([1, 2, 3], size=2, window_rows=100)
    source, target = batching.places(np.array([2, 0]), 0, "sample")
    assert source.tolist() == [0, 1]
    assert target.tolist() == [2, 0]
    assert batching.first_row(2, "sample") == 2
