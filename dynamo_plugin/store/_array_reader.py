"""Reading arrays block by block, each checked against its commit record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import CorruptBlock, IncompleteCapture
from dynamo_plugin.store._commits import chunk_key, record_fields, record_key
from dynamo_plugin.store._documents import (
    STRING,
    ArrayLayout,
    canonical,
    crc32c,
    parse_json,
    read_chunk_rows,
)
from dynamo_plugin.store._text import decode_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location

__all__ = ["ArrayReader"]


class ArrayReader:
    """Reads one array, checking the record and the checksum of every block that it touches.

    Parameters
    ----------
    location
        Of the population.
    layout
        Of the array; its document is read and checked against it.
    where
        What messages call the array, for example "site 'rnn' of model 'gru-3'".
    model_hash, inputs_hash
        What its commit records must say.

    Raises
    ------
    CorruptBlock, UnsupportedFormat
        The array's document is missing or is not what it must be.
    """

    __slots__ = ("_inputs_hash", "_location", "_model_hash", "_where", "chunk_rows", "layout")

    layout: ArrayLayout
    """Of the array."""
    chunk_rows: int
    """Rows per block; the last block may hold fewer real ones."""

    def __init__(
        self,
        location: Location,
        layout: ArrayLayout,
        where: str,
        *,
        model_hash: str | None,
        inputs_hash: str,
    ) -> None:
        self._location = location
        self._where = where
        self._model_hash = model_hash
        self._inputs_hash = inputs_hash
        self.layout = layout
        self.chunk_rows = read_chunk_rows(location, layout, where)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.layout.shape[0] // self.chunk_rows)

    def read(self, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Return all rows, or those with the given numbers, in the order given.

        Raises
        ------
        IncompleteCapture
            A block that is needed was never committed.
        CorruptBlock
            A block that is needed is not what was committed.
        """
        layout, chunk_rows = self.layout, self.chunk_rows
        if rows is None:
            needed: Sequence[int] = range(self.blocks)
            order = bounds = np.empty(0, dtype=np.int64)
        else:
            block_of = rows // chunk_rows
            order = np.argsort(block_of, kind="stable")
            blocks, first = np.unique(block_of[order], return_index=True)
            needed = blocks.tolist()
            bounds = np.append(first, len(rows))
        fetched = self.fetch(needed)
        count = layout.shape[0] if rows is None else len(rows)
        result: NDArray[Any] = np.empty((0, *layout.row_shape), dtype=layout.dtype)
        for position, (block, data) in enumerate(fetched):
            if position == 0:  # by now every block is known to be there and of its size
                result = np.empty((count, *layout.row_shape), dtype=layout.dtype)
            values = data.view(layout.stored_dtype).reshape(-1, *layout.row_shape)
            start = block * chunk_rows
            if rows is None:
                stop = min(start + chunk_rows, count)
                result[start:stop] = values[: stop - start]
            else:
                chosen = order[bounds[position] : bounds[position + 1]]
                result[chosen] = values[rows[chosen] - start]
        return result

    def read_text(self) -> list[str]:
        """Return all values of a text array.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            As `read`; also where a block is not valid vlen-utf8.
        """
        values: list[str] = []
        for block, data in self.fetch(range(self.blocks)):
            real = min(self.chunk_rows, self.layout.shape[0] - block * self.chunk_rows)
            try:
                values += decode_text(data.tobytes(), self.chunk_rows)[:real]
            except ValueError as error:
                raise self._corrupt(block, f"its text cannot be decoded ({error})") from error
        return values

    def fetch(self, blocks: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Return number and checked bytes of each of these blocks in turn.

        All records and sizes are checked before the first block is handed out, so that what a
        damaged or hostile store declares never decides how much memory is asked for.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            As `read`.
        """
        # lazily: the number of blocks is only what the store declares
        keys = partial(map, partial(chunk_key, self.layout))
        found = self._location.get_many(map(partial(record_key, self.layout), blocks))
        records = [self._check_record(b, data) for b, data in zip(blocks, found, strict=True)]
        if len(blocks) > 1:  # a single block is checked before anything else is allocated
            sizes = self._location.sizes(keys(blocks))
            for block, (expected, _), size in zip(blocks, records, sizes, strict=True):
                if size != expected:
                    raise self._wrong_size(block, expected, size)
        chunks = self._location.get_many(keys(blocks))
        for block, (expected, checksum), chunk in zip(blocks, records, chunks, strict=True):
            if chunk is None or chunk.size != expected:
                raise self._wrong_size(block, expected, None if chunk is None else chunk.size)
            if (crc := crc32c(chunk)) != checksum:
                raise self._corrupt(block, f"its CRC-32C is {crc}, {checksum} was committed")
            yield block, chunk

    def _wrong_size(self, block: int, expected: int, found: int | None) -> CorruptBlock:
        came = "is missing" if found is None else f"has {found} bytes"
        return self._corrupt(block, f"it was committed with {expected} bytes but {came}")

    def _check_record(self, block: int, data: NDArray[np.uint8] | None) -> tuple[int, str]:
        """Return the number of bytes and the checksum that a block must have."""
        if data is None:
            raise IncompleteCapture(
                f"Block {block} of {self._where} in {self._location} was never committed. "
                "Capture again with resume=True."
            )
        where = f"the commit record of block {block} of {self._where} in {self._location}"
        found = parse_json(data, where)
        checksum = found.pop("record_crc32c", None)
        if checksum != crc32c(canonical(found)):
            raise self._corrupt(block, "its commit record was changed or cut short")
        size, block_crc = found.pop("bytes", None), found.pop("crc32c", None)
        start = block * self.chunk_rows
        expected = record_fields(
            self.layout,
            block,
            (start, min(start + self.chunk_rows, self.layout.shape[0])),
            model_hash=self._model_hash,
            inputs_hash=self._inputs_hash,
        )
        for key in sorted(expected.keys() | found.keys()):
            if found.get(key) != expected.get(key):
                raise self._corrupt(
                    block,
                    f"its commit record says {key} = {found.get(key)!r} where the population "
                    f"says {expected.get(key)!r}",
                )
        text = self.layout.dtype == STRING
        fits = isinstance(size, int) and (text or size == self.chunk_rows * self.layout.row_bytes)
        if not fits or not isinstance(block_crc, str):
            raise self._corrupt(block, f"its commit record says bytes = {size!r}")
        return size, block_crc

    def _corrupt(self, block: int, problem: str) -> CorruptBlock:
        folder = "/".join(self.layout.path.split("/")[:2])
        mend = (
            f"Delete the group {folder} and capture again with resume=True"
            if self._model_hash is not None
            else "Capture again with resume=True, which writes the inputs anew"
        )
        return CorruptBlock(
            f"Block {block} of {self._where} in {self._location} is damaged: {problem}. {mend}."
        )
