"""Reading arrays block by block, each checked against its commit record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import CorruptBlock, IncompleteCapture
from dynamo_plugin.store._block_cache import BlockCache
from dynamo_plugin.store._blocks import ArrayBlocks, BlockRecord, Identity, chunk_key
from dynamo_plugin.store._documents import ArrayLayout, crc32c, read_chunk_rows
from dynamo_plugin.store._text import decode_text
from dynamo_plugin.store.inputs import ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location

__all__ = ["ArrayReader", "read_blocks"]

_LONG_RANGE_BYTES = 4096
"""From this size on, a range of rows is copied as one piece; shorter ones are gathered by index."""


class ArrayReader:
    """Reads one array, checking the record and the checksum of every block that it touches.

    On a local disk, blocks are memory maps, and one that was checked is not checked again while
    inode, size and times of its file stay the same.

    Parameters
    ----------
    location
        Of the population.
    layout
        Of the array; its document is read and checked against it.
    where
        What messages call the array, for example "site 'rnn' of model 'gru-3'".
    identity
        What its commit records must say.
    cache
        Where checked blocks are kept; one of its own by default.

    Raises
    ------
    CorruptBlock, UnsupportedFormat
        The array's document is missing or is not what it must be.
    """

    __slots__ = ("_cache", "blocks")

    def __init__(
        self,
        location: Location,
        layout: ArrayLayout,
        where: str,
        identity: Identity,
        *,
        cache: BlockCache | None = None,
    ) -> None:
        rows = read_chunk_rows(location, layout, where)
        self.blocks = ArrayBlocks(location, layout, rows, identity, where)
        """Of the array."""
        self._cache = BlockCache() if cache is None else cache

    @property
    def layout(self) -> ArrayLayout:
        """Of the array."""
        return self.blocks.layout

    def read(self) -> NDArray[Any]:
        """Return all rows.

        Raises
        ------
        IncompleteCapture
            A block was never committed.
        CorruptBlock
            A block is not what was committed.
        """
        layout, size = self.layout, self.blocks.chunk_rows
        result: NDArray[Any] | None = None
        for block, values in self._values(range(self.blocks.count)):
            if result is None:  # by now every block is known to be there and of its size
                result = np.empty(layout.shape, dtype=layout.dtype)
            result[block * size : (block + 1) * size] = values[: layout.shape[0] - block * size]
        assert result is not None
        return result

    def read_ranges(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Return ranges of rows, one after the other, in the order given.

        Parameters
        ----------
        starts, lengths
            (range,) first row and number of rows of each range; repeats are allowed.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            As `read`, of the blocks that are needed.
        """
        layout, size = self.layout, self.blocks.chunk_rows
        total = int(lengths.sum())
        if not total:
            return np.empty((0, *layout.row_shape), dtype=layout.dtype)
        if total * layout.row_bytes < len(lengths) * _LONG_RANGE_BYTES:
            return self._gather(ranges(starts, lengths))
        targets = np.cumsum(lengths) - lengths
        # a range that crosses blocks becomes one piece in each
        first, last = starts // size, (starts + lengths - 1) // size
        pieces = last - first + 1
        owner = np.repeat(np.arange(len(starts)), pieces)
        block = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces - first, pieces)
        begin = np.maximum(starts[owner], block * size)
        count = np.minimum((starts + lengths)[owner], (block + 1) * size) - begin
        target = targets[owner] + begin - starts[owner]
        order = np.argsort(block, kind="stable")
        table = np.stack([block, begin - block * size, count, target], axis=1)[order]
        needed, bounds = np.unique(table[:, 0], return_index=True)
        edges = [*bounds.tolist(), len(table)]
        rows = table[:, 1:].tolist()
        result: NDArray[Any] | None = None
        for position, (_, values) in enumerate(self._values(needed.tolist())):
            if result is None:
                result = np.empty((total, *layout.row_shape), dtype=layout.dtype)
            for source, length, destination in rows[edges[position] : edges[position + 1]]:
                result[destination : destination + length] = values[source : source + length]
        assert result is not None
        return result

    def _gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return single rows, in the order given."""
        layout, size = self.layout, self.blocks.chunk_rows
        block = rows // size
        order = np.argsort(block, kind="stable")
        needed, bounds = np.unique(block[order], return_index=True)
        edges = [*bounds.tolist(), len(rows)]
        result: NDArray[Any] | None = None
        for position, (number, values) in enumerate(self._values(needed.tolist())):
            if result is None:
                result = np.empty((len(rows), *layout.row_shape), dtype=layout.dtype)
            chosen = order[edges[position] : edges[position + 1]]
            result[chosen] = values[rows[chosen] - number * size]
        assert result is not None
        return result

    def read_text(self) -> list[str]:
        """Return all values of a text array.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            As `read`; also where a block is not valid vlen-utf8.
        """
        values: list[str] = []
        for block, data in self.fetch(range(self.blocks.count)):
            start, stop = self.blocks.bounds(block)
            try:
                values += decode_text(data.tobytes(), self.blocks.chunk_rows)[: stop - start]
            except ValueError as error:
                raise self.blocks.corrupt(block, f"its text cannot be decoded ({error})") from error
        return values

    def fetch(self, blocks: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Return number and bytes of each of these blocks in turn, all of them checked anew.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            As `read`.
        """
        records = self._records(blocks)
        location = self.blocks.location
        limit = max((record.size for record in records), default=0)
        keys = map(partial(chunk_key, self.layout), blocks)
        chunks = location.get_many(keys, limit=limit)
        for record, data in zip(records, chunks, strict=True):
            self._check(record, data)
            assert data is not None
            yield record.block, data

    def _values(self, blocks: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Return number and values (row, *row shape) of each block in turn, checked."""
        location, layout, cache = self.blocks.location, self.layout, self._cache
        path, dtype, shape = layout.path, layout.stored_dtype, (-1, *layout.row_shape)
        stamps: dict[int, object | None] = {}
        mapped: dict[int, NDArray[Any]] = {}

        def unknown() -> Iterator[int]:
            for block in blocks:  # lazily: their number is only what the store declares
                stamps[block] = stamp = location.stamp(chunk_key(layout, block))
                if (found := cache.mapped((path, block), stamp)) is not None:
                    mapped[block] = found
                elif not cache.knows((path, block), stamp):
                    yield block

        records = {record.block: record for record in self._records(unknown())}
        for block in blocks:
            values = mapped.get(block)
            if values is None and block not in records:
                values = cache.get((path, block), stamps[block])
            if values is None:
                record = records.get(block) or self._records([block])[0]
                data, is_map = self._load(block, record.size)
                stamp = stamps[block]
                # known, but perhaps replaced since that was asked
                same = stamp is not None and stamp == location.stamp(chunk_key(layout, block))
                if block in records or not same:
                    self._check(record, data)
                assert data is not None
                values = data.view(dtype).reshape(shape)
                cache.put((path, block), stamp, values, mapped=is_map)
            yield block, values

    def _load(self, block: int, size: int) -> tuple[NDArray[np.uint8] | None, bool]:
        """Return the bytes of a block, not checked, and whether they are a memory map."""
        key = chunk_key(self.layout, block)
        data = self.blocks.location.map(key, size)
        if data is not None:
            return data, True
        return self.blocks.location.get(key, limit=size), False

    def _records(self, blocks: Iterable[int]) -> list[BlockRecord]:
        """Return the records of some blocks, all of which are there and of their size.

        This comes before the first block is loaded or memory for it is asked for, so that what a
        damaged or hostile store declares never decides how much that is.
        """
        records: list[BlockRecord] = []
        for found in self.blocks.records(blocks):
            if isinstance(found, IncompleteCapture):
                raise found
            records.append(found)
        if len(records) > 1:  # a single block is checked before anything else is allocated
            keys = (chunk_key(self.layout, record.block) for record in records)
            for record, size in zip(records, self.blocks.location.sizes(keys), strict=True):
                if size != record.size:
                    raise self._wrong_size(record, size)
        return records

    def _check(self, record: BlockRecord, data: NDArray[np.uint8] | None) -> None:
        if data is None or data.size != record.size:
            raise self._wrong_size(record, None if data is None else data.size)
        if (crc := crc32c(data)) != record.crc32c:
            raise self.blocks.corrupt(
                record.block, f"its CRC-32C is {crc}, {record.crc32c} was committed"
            )

    def _wrong_size(self, record: BlockRecord, found: int | None) -> CorruptBlock:
        came = "is missing" if found is None else f"has {found} bytes"
        return self.blocks.corrupt(
            record.block, f"it was committed with {record.size} bytes but {came}"
        )


def read_blocks(array: ArrayBlocks) -> NDArray[Any]:
    """Return all rows of an array whose blocks were committed.

    Raises
    ------
    IncompleteCapture, CorruptBlock, UnsupportedFormat
        It is not what was committed.
    """
    return ArrayReader(array.location, array.layout, array.where, array.identity).read()
