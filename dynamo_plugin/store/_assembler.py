"""From rows as they come to whole blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamo_plugin.store._blocks import ArrayBlocks

__all__ = ["Assembler"]


class Assembler:
    """Collects the rows of wanted blocks. Nothing is copied: a block is a list of pieces.

    Parameters
    ----------
    blocks
        Of the array.
    wanted
        Numbers of the blocks to collect; rows of others are passed over.
    """

    __slots__ = ("_open", "_wanted", "blocks")

    def __init__(self, blocks: ArrayBlocks, wanted: Collection[int]) -> None:
        self.blocks = blocks
        self._wanted = set(wanted)
        self._open: dict[int, tuple[int, list[NDArray[Any]]]] = {}

    @property
    def wanted(self) -> frozenset[int]:
        """Blocks that have not been completed yet."""
        return frozenset(self._wanted)

    def put(
        self, start: int, rows: NDArray[Any]
    ) -> Iterator[tuple[int, list[NDArray[np.generic]]]]:
        """Take rows that begin at row `start`; yield number and pieces of each block they complete.

        Rows of one block must come in order, without gaps.

        Raises
        ------
        InvalidInput
            Their shape or dtype is not the declared one, or they lie outside the array.
        """
        layout, size = self.blocks.layout, self.blocks.chunk_rows
        expected = f"({', '.join(map(str, ('rows', *layout.row_shape)))})"
        where = self.blocks.where
        if rows.ndim == 0 or rows.shape[1:] != layout.row_shape:
            raise InvalidInput(f"Expected rows of shape {expected} for {where}, got {rows.shape}.")
        if rows.dtype != layout.dtype:
            raise InvalidInput(
                f"Expected rows of dtype {layout.dtype} for {where}, got {rows.dtype}."
            )
        stop = start + len(rows)
        if start < 0 or stop > layout.shape[0]:
            raise InvalidInput(
                f"Expected {layout.shape[0]} rows for {where}, got at least {stop}. Append every "
                "sample once, in order."
            )
        for block in range(start // size, -(-stop // size)):
            if block not in self._wanted:
                continue
            first, last = self.blocks.bounds(block)
            piece = rows[max(first - start, 0) : last - start]
            reached, pieces = self._open.pop(block, (first, []))
            if max(first, start) != reached:
                raise InvalidInput(
                    f"Expected row {reached} of {where} next, got row {max(first, start)}."
                )
            reached += len(piece)
            pieces.append(piece)
            if reached == last:
                self._wanted.discard(block)
                yield block, pieces
            else:
                self._open[block] = (reached, pieces)
