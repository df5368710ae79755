"""Comparisons on disk: one JSON file, which runs no code."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dynamo_plugin.errors import CorruptBlock, StoreExists, StoreNotFound, UnsupportedFormat

__all__ = ["read_document", "write_document"]

FORMAT: Final = "dynamo-pairwise"
VERSION: Final = 1


def write_document(path: str | Path, content: Mapping[str, Any], *, overwrite: bool) -> Path:
    """Write a file that appears whole or not at all, and return where.

    Raises
    ------
    StoreExists
        If something is there, unless it is a comparison that may be overwritten.
    StoreNotFound
        If there is no folder to write into.
    """
    target = Path(path)
    if target.exists() and not (overwrite and _is_ours(target)):
        raise StoreExists(
            f"There is something at {target}. Choose another place, or replace a comparison with "
            "overwrite=True (--overwrite)."
        )
    if not target.absolute().parent.is_dir():
        raise StoreNotFound(f"There is no folder {target.parent} to write {target.name} into.")
    document = {"format": FORMAT, "version": VERSION, **content}
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def read_document(path: str | Path) -> dict[str, Any]:
    """Return what a file holds.

    Raises
    ------
    StoreNotFound
        If there is no file.
    UnsupportedFormat
        If it is something else, or of another version.
    CorruptBlock
        If it is damaged.
    """
    source = Path(path)
    if not source.is_file():
        raise StoreNotFound(f"There is no comparison at {source}.")
    if not _is_ours(source):
        raise UnsupportedFormat(f"{source} is no comparison that PairwiseDistances.save wrote.")
    try:
        document: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        version = document["version"]
    except (ValueError, KeyError) as error:
        raise CorruptBlock(f"{source} is damaged: {error}. Compare again.") from error
    if version != VERSION:
        raise UnsupportedFormat(
            f"{source} is of version {version!r}, this release reads {VERSION}."
        )
    return document


def _is_ours(path: Path) -> bool:
    """Return whether a file begins as `write_document` lets it begin."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).startswith(f'{{"format": "{FORMAT}"'.encode())
