"""How many rows a block holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo_plugin.store._documents import ArrayLayout

__all__ = ["chunk_rows", "text_chunk_rows"]

BLOCK_BYTES = 4 * 2**20
"""Size that blocks have about: large enough that files cost little, small enough to read one for
a few samples."""

TEXT_BLOCK_ROWS = 2**16


def chunk_rows(layout: ArrayLayout, *, sample_rows: int | None = None, batch_size: int = 1) -> int:
    """Return the rows per block of an array.

    Parameters
    ----------
    layout
        Of the array.
    sample_rows
        Rows of every sample, where all have equally many: blocks then hold whole batches, or
        whole samples of which a batch is a multiple, so that a batch is written as it comes. A
        sample of more than 8 MiB is cut.
    batch_size
        Samples that arrive together.

    Examples
    --------
    >>> from dynamo_plugin.store._documents import ArrayLayout
    >>> layout = ArrayLayout("states", (10**6, 256), "float32", ("row", "unit"))
    >>> chunk_rows(layout)
    4096
    >>> chunk_rows(layout, sample_rows=100, batch_size=64)
    6400
    >>> chunk_rows(layout, sample_rows=100, batch_size=256)
    6400
    """
    rows = layout.shape[0]
    fitting = max(1, BLOCK_BYTES // layout.row_bytes)
    if sample_rows is None:
        return min(rows, fitting)
    batch_rows = sample_rows * batch_size
    if batch_rows <= fitting:
        return min(rows, fitting // batch_rows * batch_rows)
    for parts in range(1, batch_size + 1):
        size = batch_rows // parts * layout.row_bytes
        if batch_size % parts == 0 and size <= 2 * BLOCK_BYTES:
            return min(rows, batch_rows // parts)
    return min(rows, fitting)


def text_chunk_rows(layout: ArrayLayout) -> int:
    """Return the strings per block of a text array."""
    return min(layout.shape[0], TEXT_BLOCK_ROWS)
