"""How samples are cut into windows and batches, and put back in order.

Windows follow from the inputs, what is recorded and the batch size alone, never from what is
already stored: a resumed capture runs the batches of an uninterrupted one, and so gets its bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dynamo_plugin.store import ArrayBlocks, strided_rows
from dynamo_plugin.store.inputs import ranges

if TYPE_CHECKING:
    from dynamo_plugin.types import OutputSpec, RowAxis, SiteSpec, TrajectorySpec

__all__ = ["WINDOW_BYTES", "Batching"]

Integers = NDArray[np.int64]

WINDOW_BYTES = 64 * 2**20
"""States of one window of sequences of different lengths, which are put in order in memory."""


@dataclass(frozen=True, slots=True)
class Batching:
    """The windows of a capture, and where the rows of their batches go."""

    lengths: Integers
    """(sample,) steps of each sample."""
    windows: tuple[range, ...]
    """Contiguous samples that are recorded together; together all samples."""
    batch_size: int
    """Most samples of a batch."""
    equal_lengths: bool
    """Whether all samples have equally many steps; then a window is a batch."""

    @classmethod
    def of(cls, offsets: Integers, spec: TrajectorySpec, batch_size: int) -> Batching:
        """Return the windows for what an adapter describes.

        Parameters
        ----------
        offsets
            (sample + 1,): sample i has the rows offsets[i]:offsets[i + 1].
        spec
            What is recorded.
        batch_size
            Most samples of a batch.
        """
        lengths = np.diff(offsets)
        samples = len(lengths)
        equal = bool((lengths == lengths[0]).all())
        if equal:
            starts = range(0, samples, batch_size)
            windows = [range(start, min(start + batch_size, samples)) for start in starts]
        else:
            arrays: list[SiteSpec | OutputSpec] = [*spec.sites, spec.output]
            row_bytes = sum(prod(each.shape) * np.dtype(each.dtype).itemsize for each in arrays)
            windows = list(_windows(offsets, max(WINDOW_BYTES // row_bytes, 1), batch_size))
        return cls(lengths, tuple(windows), batch_size, equal)

    def batches(self, window: range, *, ragged: bool) -> Iterator[Integers]:
        """Yield batches of positions in a window by decreasing length; equal ones keep their order.

        Parameters
        ----------
        window
            Some samples.
        ragged
            Whether samples of different lengths may share a batch.

        Examples
        --------
        >>> batching = Batching(np.array([1, 3, 1, 3]), (range(4),), 3, equal_lengths=False)
        >>> [batch.tolist() for batch in batching.batches(range(4), ragged=True)]
        [[1, 3, 0], [2]]
        >>> [batch.tolist() for batch in batching.batches(range(4), ragged=False)]
        [[1, 3], [0, 2]]
        """
        lengths = self.lengths[window.start : window.stop]
        order = np.argsort(-lengths, kind="stable")
        groups = [order]
        if not ragged:
            groups = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
        for group in groups:
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def first_row(self, sample: int, axis: RowAxis, every: int = 1) -> int:
        """Return the row at which a sample begins."""
        if axis == "sample":
            return sample
        return int(strided_rows(self.lengths[:sample], every).sum())

    def count_rows(self, window: range, axis: RowAxis, every: int = 1) -> int:
        """Return the rows of some contiguous samples."""
        if axis == "sample":
            return len(window)
        return int(strided_rows(self.lengths[window.start : window.stop], every).sum())

    def places(
        self, samples: Integers, start: int, axis: RowAxis, every: int = 1
    ) -> tuple[Integers, Integers]:
        """Return which rows of a padded batch are real, and their rows in its window.

        Parameters
        ----------
        samples
            (sample,) numbers of the samples of the batch.
        start
            First sample of the window.
        axis, every
            Of the array.

        Returns
        -------
        source
            Rows of the batch, (sample x time, ...) flattened.
        target
            As many rows, counted from the first of the window.
        """
        if axis == "sample":
            return np.arange(len(samples)), samples - start
        counts = strided_rows(self.lengths[samples], every)
        source = ranges(np.arange(len(samples)) * counts.max(), counts)
        window = strided_rows(self.lengths[start : samples.max() + 1], every)
        starts = np.cumsum(window) - window
        return source, ranges(starts[samples - start], counts)

    def needed(
        self,
        arrays: Iterable[tuple[ArrayBlocks, SiteSpec | OutputSpec, Collection[int]]],
    ) -> NDArray[np.bool_]:
        """Return which windows hold rows of missing blocks.

        Parameters
        ----------
        arrays
            Blocks, declaration and missing block numbers of each array.
        """
        needed = np.zeros(len(self.windows), dtype=bool)
        starts = np.array([window.start for window in self.windows])
        for array, declared, missing in arrays:
            if not missing:
                continue
            counts = np.ones_like(self.lengths)
            if declared.axis == "time":
                counts = strided_rows(self.lengths, getattr(declared, "every", 1))
            first_rows = (np.cumsum(counts) - counts)[starts]
            blocks = np.array(sorted(missing))
            first = np.searchsorted(first_rows, blocks * array.chunk_rows, side="right") - 1
            last_rows = np.minimum((blocks + 1) * array.chunk_rows, counts.sum()) - 1
            last = np.searchsorted(first_rows, last_rows, side="right") - 1
            needed[ranges(first, last - first + 1)] = True
        return needed


def _windows(offsets: Integers, rows: int, samples: int) -> Iterator[range]:
    """Cut the samples into contiguous runs of at most so many rows, and at least so many samples.

    >>> list(_windows(np.array([0, 4, 8, 12]), 8, 1))
    [range(0, 2), range(2, 3)]
    """
    total = len(offsets) - 1
    start = 0
    while start < total:
        fitting = int(np.searchsorted(offsets, offsets[start] + rows, side="right")) - 1
        stop = max(fitting, min(start + samples, total))
        yield range(start, stop)
        start = stop
