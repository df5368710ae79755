"""The blocks of one array: where they lie, what vouches for them, and how they come about.

A block is one whole chunk. Its data are written first, durably; then its commit record, which
says what the data must be. A block exists when its record does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from dynamo_plugin.errors import CorruptBlock, IncompleteCapture
from dynamo_plugin.store._documents import (
    STRING,
    ArrayLayout,
    array_document,
    canonical,
    crc32c,
    parse_json,
)
from dynamo_plugin.store._strays import block_number
from dynamo_plugin.store._values import are_zero

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Bytes, Location

__all__ = ["ArrayBlocks", "BlockRecord", "Identity", "chunk_key", "record_key"]

RECORD_BYTES = 2**16
"""Largest commit record that is read."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What every commit record of an array must say about where its data come from."""

    inputs_hash: str
    """Of the population's inputs."""
    model_hash: str | None = None
    """Of the model; None for the inputs themselves."""
    config_hash: str | None = None
    """Of the configuration of the capture; None for the inputs, which do not depend on it."""


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What was committed of one block."""

    block: int
    """Its number."""
    size: int
    """Stored bytes, padding included."""
    crc32c: str
    """Of the stored bytes."""
    zero: bool
    """Whether all its values are zero."""


@dataclass(frozen=True, slots=True)
class ArrayBlocks:
    """The blocks of one array, to be written or checked. Can be sent to other processes."""

    location: Location
    """Of the population."""
    layout: ArrayLayout
    """Of the array."""
    chunk_rows: int
    """Rows per block; the last one may hold fewer real ones."""
    identity: Identity
    """What its records say."""
    where: str
    """What messages call the array, for example "site 'rnn' of model 'gru-3'"."""

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.layout.shape[0] // self.chunk_rows)

    def bounds(self, block: int) -> tuple[int, int]:
        """Return the first row of a block, and the one after its last real row."""
        start = block * self.chunk_rows
        return start, min(start + self.chunk_rows, self.layout.shape[0])

    def describe(self) -> None:
        """Write the array's document."""
        document = array_document(self.layout, self.chunk_rows)
        self.location.set(f"{self.layout.path}/zarr.json", canonical(document))

    def write(self, block: int, pieces: Sequence[NDArray[Any]]) -> BlockRecord:
        """Write the data of a block, which do not count before `commit`.

        Parameters
        ----------
        block
            Its number.
        pieces
            Arrays (rows, *row shape) of the declared dtype that together hold its real rows, in
            order. They must not be changed afterwards.

        Raises
        ------
        StoreError
            The storage failed.
        """
        start, stop = self.bounds(block)
        stored = self.layout.stored_dtype
        parts: list[Bytes] = [
            np.ascontiguousarray(piece, dtype=stored).reshape(-1).view(np.uint8) for piece in pieces
        ]
        zero = all(map(are_zero, pieces))
        if padding := (start + self.chunk_rows - stop) * self.layout.row_bytes:
            parts.append(np.zeros(padding, dtype=np.uint8))
        return self.write_bytes(block, parts, zero=zero)

    def write_bytes(self, block: int, parts: Sequence[Bytes], *, zero: bool) -> BlockRecord:
        """Write the stored bytes of a block, which do not count before `commit`."""
        checksum = 0
        for part in parts:
            checksum = google_crc32c.extend(checksum, part)
        self.location.set_parts(chunk_key(self.layout, block), parts)
        size = sum(len(part) for part in parts)
        return BlockRecord(block, size, f"{checksum:08x}", zero)

    def commit(self, record: BlockRecord) -> None:
        """Write the record that makes a block count."""
        fields = self._expected(record.block)
        fields |= {"bytes": record.size, "crc32c": record.crc32c}
        if self.layout.version > 1:
            fields["zero"] = record.zero
        fields["record_crc32c"] = crc32c(canonical(fields))
        self.location.set(record_key(self.layout, record.block), canonical(fields))

    def withdraw(self, block: int) -> None:
        """Remove the record of a block, which then does not exist any more."""
        self.location.delete_key(record_key(self.layout, block))

    def records(self, blocks: Iterable[int]) -> Iterator[BlockRecord | IncompleteCapture]:
        """Return the checked record of each block in turn, or why there is none.

        Raises
        ------
        CorruptBlock
            A record is not what was committed.
        """
        numbers = iter(blocks)
        wanted: list[int] = []

        def keys() -> Iterator[str]:
            for number in numbers:
                wanted.append(number)
                yield record_key(self.layout, number)

        for position, data in enumerate(self.location.get_many(keys(), limit=RECORD_BYTES)):
            block = wanted[position]
            if data is None:
                yield IncompleteCapture(
                    f"Block {block} of {self.where} in {self.location} was never committed. "
                    "Capture again with resume=True."
                )
            else:
                yield self.check_record(block, data)

    def missing(self) -> list[int]:
        """Return the blocks that were not committed, or whose data are not there any more.

        Records and sizes are checked, checksums of the data are not.
        """
        found: dict[int, int] = {}
        present = self.location.children(f"{self.layout.path}/commits")
        names = (name.removesuffix(".json") for name in present if name.endswith(".json"))
        numbers = (number for number in map(block_number, names) if number is not None)
        for block in sorted(number for number in numbers if number < self.count):
            try:
                record = next(self.records([block]))
            except CorruptBlock:
                continue
            if isinstance(record, BlockRecord):
                found[block] = record.size
        sizes = zip(found.items(), self._sizes(list(found)), strict=True)
        whole = {block for (block, size), came in sizes if came == size}
        return [block for block in range(self.count) if block not in whole]

    def _sizes(self, blocks: Sequence[int]) -> list[int | None]:
        """Return how many bytes lie where the data of some blocks should, None if that is amiss."""
        keys = [chunk_key(self.layout, block) for block in blocks]
        try:
            return list(self.location.sizes(keys))
        except CorruptBlock:  # one leads out of the store
            if len(blocks) == 1:
                return [None]
        return [size for block in blocks for size in self._sizes([block])]

    def damaged(self, blocks: Iterable[int]) -> Iterator[int]:
        """Return which of these committed blocks are not what was committed, checking all bytes."""
        for block in blocks:
            record = next(self.records([block]))
            key = chunk_key(self.layout, block)
            try:
                size = record.size if isinstance(record, BlockRecord) else 0
                data = self.location.get(key, limit=size)
            except CorruptBlock:
                data = None
            if (
                isinstance(record, IncompleteCapture)
                or data is None
                or data.size != record.size
                or crc32c(data) != record.crc32c
            ):
                yield block

    def check_record(self, block: int, data: NDArray[np.uint8]) -> BlockRecord:
        """Return what a stored record says.

        Raises
        ------
        CorruptBlock
            It is not one of this block.
        """
        where = f"the commit record of block {block} of {self.where} in {self.location}"
        found = parse_json(data, where)
        checksum = found.pop("record_crc32c", None)
        if checksum != crc32c(canonical(found)):
            raise self.corrupt(block, "its commit record was changed or cut short")
        size, block_crc = found.pop("bytes", None), found.pop("crc32c", None)
        zero = found.pop("zero", None) if self.layout.version > 1 else False
        expected = self._expected(block)
        for key in sorted(expected.keys() | found.keys()):
            if key not in found or key not in expected or found[key] != expected[key]:
                raise self.corrupt(
                    block,
                    f"its commit record says {key} = {found.get(key)!r} where the population "
                    f"says {expected.get(key)!r}",
                )
        text = self.layout.dtype == STRING
        fits = type(size) is int and (text or size == self.chunk_rows * self.layout.row_bytes)
        if not fits or not isinstance(block_crc, str) or not isinstance(zero, bool):
            raise self.corrupt(block, f"its commit record says bytes = {size!r}")
        return BlockRecord(block, size, block_crc, zero)

    def _expected(self, block: int) -> dict[str, Any]:
        """Return the part of a commit record that can be known without the data."""
        start, stop = self.bounds(block)
        fields = {
            "array": self.layout.path,
            "block": block,
            "rows": [start, stop],
            "shape": [stop - start, *self.layout.row_shape],
            "dtype": self.layout.dtype,
            "model_hash": self.identity.model_hash,
            "inputs_hash": self.identity.inputs_hash,
        }
        if self.layout.version > 1:
            fields["config_hash"] = self.identity.config_hash
        return fields

    def corrupt(self, block: int, problem: str) -> CorruptBlock:
        """Return the error that says what is wrong with a block, and how to mend it."""
        return CorruptBlock(
            f"Block {block} of {self.where} in {self.location} is damaged: {problem}. "
            "Repair the population (dynamo-plugin repair, or capture with repair=True), which "
            "records just that again."
        )


def chunk_key(layout: ArrayLayout, block: int) -> str:
    """Return where the data of a block lie."""
    separator = layout.separator
    return f"{layout.path}/c{separator}{block}" + f"{separator}0" * (len(layout.shape) - 1)


def record_key(layout: ArrayLayout, block: int) -> str:
    """Return where the commit record of a block lies."""
    return f"{layout.path}/commits/{block}.json"
