"""Writing arrays in blocks: whole chunks along axis 0, each committed on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store._commits import commit
from dynamo_plugin.store._documents import ArrayLayout, array_document, canonical
from dynamo_plugin.store._text import encode_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location

__all__ = ["ArrayWriter", "write_text"]

BLOCK_BYTES = 4 * 2**20
TEXT_BLOCK_ROWS = 2**16


class ArrayWriter:
    """Writes one array front to back.

    Parameters
    ----------
    location
        Of the population.
    layout
        Of the array, whose document is written at once.
    model_hash
        Of the model that it belongs to; None for the inputs.
    inputs_hash
        Of the population's inputs.
    """

    __slots__ = (
        "_buffer",
        "_chunk_rows",
        "_filled",
        "_inputs_hash",
        "_layout",
        "_location",
        "_model_hash",
        "_written",
    )

    def __init__(
        self, location: Location, layout: ArrayLayout, *, model_hash: str | None, inputs_hash: str
    ) -> None:
        rows = layout.shape[0]
        self._location = location
        self._layout = layout
        self._model_hash = model_hash
        self._inputs_hash = inputs_hash
        self._chunk_rows = max(1, min(rows, BLOCK_BYTES // layout.row_bytes))
        self._buffer = self._new_buffer()
        self._filled = 0
        self._written = 0
        document = array_document(layout, self._chunk_rows)
        location.set(f"{layout.path}/zarr.json", canonical(document))

    def _new_buffer(self) -> NDArray[Any]:
        # a new one per block: a store in memory keeps the buffer that it is given
        shape = (self._chunk_rows, *self._layout.row_shape)
        return np.empty(shape, dtype=self._layout.stored_dtype)

    @property
    def expected(self) -> int:
        """Rows that the array holds when full."""
        return self._layout.shape[0]

    @property
    def received(self) -> int:
        """Rows appended so far."""
        return self._written + self._filled

    def append(self, rows: NDArray[Any], where: str) -> None:
        """Append rows; every block that this fills is written.

        Raises
        ------
        InvalidInput
            Their shape or dtype is not the declared one, or they are too many.
        """
        expected = f"({', '.join(map(str, ('rows', *self._layout.row_shape)))})"
        if rows.ndim == 0 or rows.shape[1:] != self._layout.row_shape:
            raise InvalidInput(f"Expected rows of shape {expected} for {where}, got {rows.shape}.")
        if rows.dtype != np.dtype(self._layout.dtype):
            raise InvalidInput(
                f"Expected rows of dtype {self._layout.dtype} for {where}, got {rows.dtype}."
            )
        if self.received + len(rows) > self.expected:
            raise InvalidInput(
                f"Expected {self.expected} rows for {where}, got at least "
                f"{self.received + len(rows)}. Append every sample once, in order."
            )
        taken = 0
        while taken < len(rows):
            count = min(self._chunk_rows - self._filled, len(rows) - taken)
            self._buffer[self._filled : self._filled + count] = rows[taken : taken + count]
            self._filled += count
            taken += count
            if self._filled == self._chunk_rows or self.received == self.expected:
                self._flush()

    def _flush(self) -> None:
        self._buffer[self._filled :] = 0
        start, stop = self._written, self._written + self._filled
        data = self._buffer.reshape(-1).view(np.uint8)
        commit(
            self._location,
            self._layout,
            data,
            start // self._chunk_rows,
            (start, stop),
            model_hash=self._model_hash,
            inputs_hash=self._inputs_hash,
        )
        self._written, self._filled = stop, 0
        if stop < self.expected:
            self._buffer = self._new_buffer()


def write_text(
    location: Location, layout: ArrayLayout, values: Sequence[str], *, inputs_hash: str
) -> None:
    """Write a whole text array of the inputs."""
    chunk_rows = min(len(values), TEXT_BLOCK_ROWS)
    location.set(f"{layout.path}/zarr.json", canonical(array_document(layout, chunk_rows)))
    for block, start in enumerate(range(0, len(values), chunk_rows)):
        part = values[start : start + chunk_rows]
        data = encode_text(part, chunk_rows)
        rows = (start, start + len(part))
        commit(location, layout, data, block, rows, model_hash=None, inputs_hash=inputs_hash)
