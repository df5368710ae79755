"""Commit records: what vouches for a block, written after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamo_plugin.store._documents import ArrayLayout, canonical, crc32c

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location

__all__ = ["chunk_key", "commit", "record_fields", "record_key"]


def commit(
    location: Location,
    layout: ArrayLayout,
    data: bytes | NDArray[np.uint8],
    block: int,
    rows: tuple[int, int],
    *,
    model_hash: str | None,
    inputs_hash: str,
) -> None:
    """Write a block and then the record that makes it count."""
    fields = record_fields(layout, block, rows, model_hash=model_hash, inputs_hash=inputs_hash)
    fields |= {"bytes": len(data), "crc32c": crc32c(data)}
    fields["record_crc32c"] = crc32c(canonical(fields))
    location.set(chunk_key(layout, block), data)
    location.set(record_key(layout, block), canonical(fields))


def record_fields(
    layout: ArrayLayout,
    block: int,
    rows: tuple[int, int],
    *,
    model_hash: str | None,
    inputs_hash: str,
) -> dict[str, Any]:
    """Return the part of a commit record that can be known without the data."""
    return {
        "array": layout.path,
        "block": block,
        "rows": list(rows),
        "shape": [rows[1] - rows[0], *layout.row_shape],
        "dtype": layout.dtype,
        "model_hash": model_hash,
        "inputs_hash": inputs_hash,
    }


def chunk_key(layout: ArrayLayout, block: int) -> str:
    """Return where the data of a block lie."""
    return "/".join([f"{layout.path}/c/{block}", *["0"] * len(layout.row_shape)])


def record_key(layout: ArrayLayout, block: int) -> str:
    """Return where the commit record of a block lies."""
    return f"{layout.path}/commits/{block}.json"
