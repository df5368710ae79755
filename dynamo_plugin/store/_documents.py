"""The `zarr.json` documents of a population: written, and read without trusting them.

Nothing that a document names is ever looked up or instantiated. A reader works out what the
document of an array must say and compares, so the only thing it learns from one is the number of
rows per block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from dynamo_plugin.errors import CorruptBlock, IncompleteCapture, InvalidInput, UnsupportedFormat

if TYPE_CHECKING:
    from dynamo_plugin.store._location import Location
    from dynamo_plugin.types import JSON

__all__ = [
    "STRING",
    "ArrayLayout",
    "array_document",
    "canonical",
    "check_group",
    "crc32c",
    "group_document",
    "parse_json",
    "plain_json",
    "read_chunk_rows",
    "read_group",
]

STRING = "string"
"""Zarr name of the dtype of text arrays."""

_REBUILD = "Repair the population (dynamo-plugin repair, or capture with repair=True)."

_MOST_LEVELS = 64
"""Of lists and objects inside each other in a document, so that none exhausts the stack."""

_MOST_LEVELS_INSIDE = 48
"""Of what a user puts into a document."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What is known of an array before its document is read."""

    path: str
    """Key of the array, relative to the population."""
    shape: tuple[int, ...]
    """Shape; axis 0 is cut into blocks."""
    dtype: str
    """float16, float32, float64, int64 or string."""
    dimensions: tuple[str, ...]
    """Name of every axis."""
    attributes: Mapping[str, JSON] = field(default_factory=dict)
    """What the document says under `attributes.dynamo`."""
    version: int = 2
    """Format version of the population that it belongs to."""

    @property
    def separator(self) -> str:
        """What separates the parts of a chunk's key: version 1 made a folder for each."""
        return "/" if self.version == 1 else "."

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Little-endian dtype of the stored bytes; not for text."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Stored bytes per row; not for text."""
        size = np.dtype(self.dtype).itemsize
        for length in self.row_shape:
            size *= length
        return size


def crc32c(data: bytes | np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """Return the CRC-32C (Castagnoli, RFC 3720) of some bytes as eight hexadecimal digits.

    >>> crc32c(b"123456789")
    'e3069283'
    """
    return f"{google_crc32c.value(data):08x}"


def canonical(value: object) -> bytes:
    """Return JSON in the one spelling over which checksums are computed.

    >>> canonical({"b": [1, 2.5], "a": "é"})
    b'{"a":"\\\\u00e9","b":[1,2.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def plain_json(value: object, what: str) -> Any:
    """Return a value as it reads after a round trip through JSON.

    Raises
    ------
    InvalidInput
        It cannot be written as JSON: another type, NaN or infinity, lone surrogates, or more
        levels of lists and dictionaries than are read back.
    """
    try:
        text = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{what} must hold only what JSON can hold (finite numbers, text, lists, "
            f"dictionaries): {error}"
        ) from error
    plain = json.loads(text)
    if _is_deeper(plain, _MOST_LEVELS_INSIDE):
        raise InvalidInput(
            f"{what} must hold only what JSON can hold, with at most {_MOST_LEVELS_INSIDE} levels "
            "of lists and dictionaries. Flatten it."
        )
    return plain


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether lists and objects lie more than so many levels deep.

    >>> _is_deeper([[1]], 1), _is_deeper([[1]], 2)
    (True, False)
    """
    inside: list[Any] = [value]
    for _ in range(levels + 1):
        inside = [each for each in inside if isinstance(each, list | dict)]
        if not inside:
            return False
        inside = [
            child
            for each in inside
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return True


def parse_json(data: np.ndarray[Any, np.dtype[np.uint8]], where: str) -> dict[str, Any]:
    """Return the JSON object in some stored bytes.

    Raises
    ------
    CorruptBlock
        The bytes are not one.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        text = data.tobytes().decode("utf-8")
        parsed = json.loads(text, parse_constant=refuse)
        # most documents have fewer brackets than levels are allowed
        if text.count("[") + text.count("{") > _MOST_LEVELS and _is_deeper(parsed, _MOST_LEVELS):
            raise ValueError(f"more than {_MOST_LEVELS} levels of lists and objects")
    except (ValueError, RecursionError) as error:
        raise CorruptBlock(
            f"Expected JSON in {where}, found {data.size} bytes that are not: {error}. {_REBUILD}"
        ) from error
    if not isinstance(parsed, dict):
        raise CorruptBlock(f"Expected a JSON object in {where}, found another value. {_REBUILD}")
    return parsed


def group_document(dynamo: Mapping[str, Any] | None = None) -> bytes:
    """Return the `zarr.json` of a group with our attributes and their checksum."""
    attributes: dict[str, Any] = {}
    if dynamo is not None:
        attributes["dynamo"] = {**dynamo, "checksum": crc32c(canonical(dynamo))}
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(document, indent=2, allow_nan=False).encode()


def read_group(
    location: Location, path: str, *, data: np.ndarray[Any, np.dtype[np.uint8]] | None = None
) -> dict[str, Any]:
    """Return our attributes of the group at `path`, without the checksum, which is checked.

    `data` are the bytes of its document where the caller has them already.

    Raises
    ------
    IncompleteCapture
        There is no document.
    UnsupportedFormat
        It is not the document of a Zarr v3 group, or not one of ours.
    CorruptBlock
        It does not agree with its checksum, or is no JSON.
    """
    attributes = check_group(location, path, data=data)
    where = f"{path}/zarr.json of {location}".lstrip("/")
    dynamo = attributes.get("dynamo")
    if not isinstance(dynamo, dict):
        raise UnsupportedFormat(
            f"Expected the attribute 'dynamo' in {where}, which has none. "
            "This is no population, or its attributes were lost."
        )
    checksum = dynamo.pop("checksum", None)
    if checksum != crc32c(canonical(dynamo)):
        raise CorruptBlock(
            f"The attributes in {where} are not those that were written: their checksum is "
            f"{crc32c(canonical(dynamo))!r}, {checksum!r} was stored. {_REBUILD}"
        )
    return dynamo


def check_group(
    location: Location, path: str, *, data: np.ndarray[Any, np.dtype[np.uint8]] | None = None
) -> dict[str, Any]:
    """Check that there is a Zarr v3 group at `path` and return all its attributes.

    Raises
    ------
    IncompleteCapture, UnsupportedFormat, CorruptBlock
        As `read_group`.
    """
    key = f"{path}/zarr.json".lstrip("/")
    where = f"{key} of {location}"
    data = location.get(key) if data is None else data
    if data is None:
        raise IncompleteCapture(f"Expected {where}, which is missing. {_REBUILD}")
    document = parse_json(data, where)
    if document.get("zarr_format") != 3 or document.get("node_type") != "group":
        raise UnsupportedFormat(
            f"Expected a Zarr v3 group in {where}, found zarr_format "
            f"{document.get('zarr_format')!r} and node_type {document.get('node_type')!r}."
        )
    # zarr.consolidate_metadata adds its key; the copies in it are never used
    known = {"zarr_format", "node_type", "attributes", "consolidated_metadata"}
    unknown = sorted(set(document) - known)
    attributes = document.get("attributes", {})
    if unknown or not isinstance(attributes, dict):
        raise UnsupportedFormat(
            f"Expected a group with the fields {', '.join(sorted(known))} in {where}, found "
            f"{', '.join(sorted(document))}."
        )
    return attributes


def array_document(layout: ArrayLayout, chunk_rows: int) -> dict[str, Any]:
    """Return the `zarr.json` of an array as a dictionary."""
    text = layout.dtype == STRING
    fill: str | int | float = "" if text else 0 if layout.dtype == "int64" else 0.0
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [chunk_rows, *layout.row_shape]},
        },
        "chunk_key_encoding": {
            "name": "default",
            "configuration": {"separator": layout.separator},
        },
        "fill_value": fill,
        "codecs": [
            {"name": "vlen-utf8", "configuration": {}}
            if text
            else {"name": "bytes", "configuration": {"endian": "little"}}
        ],
        "attributes": {"dynamo": dict(layout.attributes)},
        "dimension_names": list(layout.dimensions),
        "storage_transformers": [],
    }


def read_chunk_rows(location: Location, layout: ArrayLayout, where: str) -> int:
    """Check the document of an array and return its number of rows per block.

    Raises
    ------
    CorruptBlock
        The document is missing or is not what the group it lies in demands.
    UnsupportedFormat
        It asks for a codec or an encoding other than the documented one.
    """
    data = location.get(f"{layout.path}/zarr.json")
    if data is None:
        raise CorruptBlock(
            f"The description of {where} is missing: {layout.path}/zarr.json in {location}. "
            f"{_REBUILD}"
        )
    document = parse_json(data, f"{layout.path}/zarr.json of {location}")
    chunk_rows = _chunk_rows(document)
    if chunk_rows is None or not 1 <= chunk_rows <= layout.shape[0]:
        raise CorruptBlock(
            f"Expected blocks of 1 to {layout.shape[0]} rows in {where}, found the chunk grid "
            f"{document.get('chunk_grid')!r} in {location}. {_REBUILD}"
        )
    expected = array_document(layout, chunk_rows)
    attributes = document.get("attributes")
    found = {"storage_transformers": [], **document}
    found["attributes"] = {
        "dynamo": attributes.get("dynamo") if isinstance(attributes, dict) else None
    }
    for key in sorted(expected.keys() | found.keys()):
        if key not in expected or key not in found or found[key] != expected[key]:
            kind = UnsupportedFormat if key in _ENCODING or key not in expected else CorruptBlock
            raise kind(
                f"Expected {key} = {expected.get(key)!r} in the description of {where}, found "
                f"{found.get(key)!r} in {location}. {_REBUILD}"
            )
    return chunk_rows


_ENCODING = {"zarr_format", "chunk_key_encoding", "codecs", "storage_transformers"}


def _chunk_rows(document: Mapping[str, Any]) -> int | None:
    match document.get("chunk_grid"):
        case {"configuration": {"chunk_shape": [int(rows), *_]}} if not isinstance(rows, bool):
            return rows
    return None
