"""The inputs of a population, read from its store batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store._array_reader import ArrayReader
from dynamo_plugin.store._block_cache import BlockCache
from dynamo_plugin.store._inputs_arrays import input_reader, read_header
from dynamo_plugin.store._inputs_reader import read_offsets
from dynamo_plugin.store._root import read_root
from dynamo_plugin.store.inputs import as_batch, sample_indices

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.store._inputs_arrays import InputsHeader
    from dynamo_plugin.store._location import Location
    from dynamo_plugin.types import SequenceBatch

__all__ = ["StoredInputs"]


class StoredInputs:
    """Inputs that stay in their store; batches are read, and checked, as they are asked for.

    Can be sent to other processes, as it carries nothing but where they lie.

    Parameters
    ----------
    location
        Of the population.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._header: InputsHeader | None = None
        self._values: ArrayReader | None = None
        self._offsets: NDArray[np.int64] | None = None
        self._sample_ids: tuple[str, ...] | None = None

    def __reduce__(self) -> tuple[type[StoredInputs], tuple[Location]]:
        return StoredInputs, (self._location,)

    def __len__(self) -> int:
        return self.header.samples

    @property
    def header(self) -> InputsHeader:
        """What the group of the inputs says."""
        if self._header is None:
            root = read_root(self._location)
            self._header = read_header(self._location, root.inputs_hash, version=root.version)
        return self._header

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(sample + 1,): sample i is the rows offsets[i]:offsets[i + 1]."""
        if self._offsets is None:
            self._offsets = read_offsets(self._location, self.header)
        return self._offsets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sample,): number of steps of every sample."""
        return np.diff(self.offsets)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """One unique id per sample."""
        if self._sample_ids is None:
            reader = input_reader(self._location, self.header, "sample_ids")
            self._sample_ids = tuple(reader.read_text())
        return self._sample_ids

    def batch(self, samples: ArrayLike) -> SequenceBatch:
        """Return some samples as tensors; see `PopulationInputs.batch`.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            They are not what was written.
        InvalidInput
            There are none, or a number is not that of a sample.
        """
        if self._values is None:
            self._values = input_reader(self._location, self.header, "values", cache=BlockCache())
        chosen = sample_indices(samples, len(self))
        if not chosen.size:
            raise InvalidInput("Expected at least one sample in a batch, got none.")
        starts, stops = self.offsets[chosen], self.offsets[chosen + 1]
        rows = self._values.read_ranges(starts, stops - starts)
        return as_batch(rows, stops - starts, self.header.spec)
