"""Chunks of text in Zarr's vlen-utf8 encoding."""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["decode_text", "encode_text"]


def encode_text(values: Sequence[str], count: int) -> bytes:
    """Return a chunk of `count` strings, padded with empty ones.

    >>> decode_text(encode_text(["a", "é"], 3), 3)
    ['a', 'é', '']
    """
    pieces = [struct.pack("<I", count)]
    for text in values:
        encoded = text.encode("utf-8")
        pieces += (struct.pack("<I", len(encoded)), encoded)
    pieces.append(bytes(4 * (count - len(values))))
    return b"".join(pieces)


def decode_text(data: bytes, count: int) -> list[str]:
    """Return the strings of a chunk.

    Raises
    ------
    ValueError
        The bytes do not hold exactly `count` strings of valid UTF-8.

    Examples
    --------
    >>> decode_text(b"\\x01\\x00\\x00\\x00\\x02\\x00\\x00\\x00hi", 1)
    ['hi']
    """
    values: list[str] = []
    position = 4
    try:
        (stored,) = struct.unpack_from("<I", data, 0)
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, position)
            position += 4 + length
            values.append(data[position - length : position].decode("utf-8"))
    except struct.error as error:
        raise ValueError(f"expected {count} strings, the bytes end after {len(values)}") from error
    if stored != count or position != len(data):
        raise ValueError(f"expected {count} strings in {len(data)} bytes")
    return values
