"""Reading the inputs of a population, or only what cuts its rows into samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynamo_plugin.errors import CorruptBlock
from dynamo_plugin.store._inputs_arrays import (
    InputsHeader,
    header_of,
    input_reader,
    read_inputs,
)
from dynamo_plugin.store._location import locate
from dynamo_plugin.store._plan import strided_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location
    from dynamo_plugin.store.inputs import PopulationInputs

__all__ = ["HeldInputs", "InputsReader", "read_offsets"]


def read_offsets(location: Location, header: InputsHeader) -> NDArray[np.int64]:
    """Return (sample + 1,) offsets of the samples in the rows, read-only.

    Raises `CorruptBlock` where they do not cut all rows into samples.
    """
    offsets = input_reader(location, header, "offsets").read()
    if offsets[0] != 0 or offsets[-1] != header.rows or (np.diff(offsets) < 1).any():
        raise CorruptBlock(
            f"The offsets of the inputs in {location} do not cut {header.rows} rows into samples. "
            "Capture again."
        )
    offsets.flags.writeable = False
    return offsets


class InputsReader:
    """The inputs of a population; every part is read when it is asked for first.

    All that is read raises `IncompleteCapture` or `CorruptBlock` where it is not what was written.
    """

    __slots__ = ("_inputs", "_location", "_offsets", "_sample_ids", "header")

    def __init__(self, location: Location, header: InputsHeader) -> None:
        self.header = header
        """What their group says."""
        self._location = location
        self._inputs: PopulationInputs | None = None
        self._offsets: NDArray[np.int64] | None = None
        self._sample_ids: tuple[str, ...] | None = None

    @property
    def inputs(self) -> PopulationInputs:
        """All inputs, checked against their hash."""
        if self._inputs is None:
            self._inputs = read_inputs(self._location, self.header)
        return self._inputs

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(sample + 1,): rows of sample i are offsets[i]:offsets[i + 1]; read-only."""
        if self._inputs is not None:
            return self._inputs.offsets
        if self._offsets is None:
            self._offsets = read_offsets(self._location, self.header)
        return self._offsets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sample,): number of steps of every sample."""
        return np.diff(self.offsets)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Ids of the samples."""
        if self._sample_ids is None:
            reader = input_reader(self._location, self.header, "sample_ids")
            self._sample_ids = tuple(reader.read_text())
        return self._sample_ids

    def count_rows(self, every: int) -> int:
        """Return the rows of all samples, counting every so many steps."""
        if every == 1:  # needs no offsets
            return self.header.rows
        return int(strided_rows(self.lengths, every).sum())


class HeldInputs(InputsReader):
    """Inputs of a population that are in memory, and nowhere else."""

    __slots__ = ()

    def __init__(self, inputs: PopulationInputs) -> None:
        super().__init__(locate({}, create=True), header_of(inputs, inputs.hash))
        self._inputs = inputs
        self._sample_ids = inputs.sample_ids
