"""How samples are cut into windows and batches, and put back in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["batches", "scatter", "windows"]

Integers = NDArray[np.int64]


def windows(offsets: Integers, *, rows: int, samples: int) -> Iterator[range]:
    """Cut the samples into contiguous runs that fit into memory.

    Parameters
    ----------
    offsets
        (sample + 1,): sample i has the rows offsets[i]:offsets[i + 1].
    rows
        Most rows of a run, unless `samples` samples need more.
    samples
        A run has at least so many samples, as far as there are so many.

    Examples
    --------
    >>> list(windows(np.array([0, 4, 8, 12]), rows=8, samples=1))
    [range(0, 2), range(2, 3)]
    """
    total = len(offsets) - 1
    start = 0
    while start < total:
        fitting = int(np.searchsorted(offsets, offsets[start] + rows, side="right")) - 1
        stop = max(fitting, min(start + samples, total))
        yield range(start, stop)
        start = stop


def batches(lengths: Integers, *, size: int, ragged: bool) -> Iterator[Integers]:
    """Yield batches of sample numbers by decreasing length; equal ones keep their order.

    Parameters
    ----------
    lengths
        (sample,) steps of each sample.
    size
        Most samples of a batch.
    ragged
        Whether samples of different lengths may share a batch.

    Examples
    --------
    >>> [batch.tolist() for batch in batches(np.array([1, 3, 1, 3]), size=3, ragged=True)]
    [[1, 3, 0], [2]]
    >>> [batch.tolist() for batch in batches(np.array([1, 3, 1, 3]), size=3, ragged=False)]
    [[1, 3], [0, 2]]
    """
    order = np.argsort(-lengths, kind="stable")
    groups = [order]
    if not ragged:
        groups = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
    for group in groups:
        for start in range(0, len(group), size):
            yield group[start : start + size]


def scatter(
    target: NDArray[Any], padded: NDArray[Any], starts: Integers, lengths: Integers
) -> None:
    """Write the real steps of a padded batch to their rows.

    Parameters
    ----------
    target
        (row, *shape), changed in place.
    padded
        (sample, time, *shape).
    starts
        (sample,) first row of each sample in `target`.
    lengths
        (sample,) real steps.
    """
    time = np.arange(padded.shape[1])
    real = time < lengths[:, None]
    target[(starts[:, None] + time)[real]] = padded[real]
