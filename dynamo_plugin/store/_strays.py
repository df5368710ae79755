"""What lies among the blocks of an array and belongs to none of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo_plugin.store._blocks import ArrayBlocks
    from dynamo_plugin.store._location import Location

__all__ = ["block_number", "clear", "is_leftover", "strays"]

# left behind where a write to a local disk was interrupted; never read, so no damage
_LEFTOVER = re.compile(r".*\.[0-9a-f]{32}\.partial")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def is_leftover(name: str) -> bool:
    """Return whether an interrupted write left a file of this name."""
    return _LEFTOVER.fullmatch(name) is not None


def block_number(name: str) -> int | None:
    """Return the number of the block whose data or record is stored under this name.

    >>> block_number("12"), block_number("012"), block_number("²")
    (12, None, None)
    """
    return int(name) if _NUMBER.fullmatch(name) else None


def strays(array: ArrayBlocks) -> list[str]:
    """Return the keys of chunks and records that belong to no block of an array.

    Hidden files and what interrupted writes left are passed over.
    """
    path, location = array.layout.path, array.location
    chunks = f"{path}/c" if array.layout.version == 1 else path
    numbers = {f"{chunks}/{name}": _chunk_number(array, name) for name in _names(location, chunks)}
    records = f"{path}/commits"
    numbers |= {
        f"{records}/{name}": block_number(name.removesuffix(".json"))
        if name.endswith(".json")
        else None
        for name in _names(location, records)
    }
    if array.layout.version > 1:
        for name in ("zarr.json", "commits"):
            numbers.pop(f"{path}/{name}", None)
    return [key for key, number in numbers.items() if number is None or number >= array.count]


def clear(array: ArrayBlocks) -> None:
    """Delete strays and what interrupted writes left; raises `StoreError`."""
    location, path = array.location, array.layout.path
    for key in strays(array):
        location.delete(key)
        location.delete_key(key)
    for folder in (path, f"{path}/commits"):
        for name in filter(is_leftover, location.children(folder)):
            location.delete_key(f"{folder}/{name}")


def _names(location: Location, folder: str) -> list[str]:
    names = location.children(folder)
    return [name for name in names if not is_leftover(name) and not name.startswith(".")]


def _chunk_number(array: ArrayBlocks, name: str) -> int | None:
    """Return the number of the block of which something in the folder of the chunks is named."""
    if array.layout.version == 1:
        return block_number(name)
    first, *parts = name.split(".")
    ours = first == "c" and parts[1:] == ["0"] * len(array.layout.row_shape)
    return block_number(parts[0]) if ours and parts else None
