"""Where the tiles of an unfinished comparison are kept: each whole or not there."""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import filelock
import numpy as np

from dynamo_plugin.errors import CorruptBlock, InvalidInput, StoreExists, StoreLocked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.metrics._tiles import Tile

__all__ = ["TileFolder"]

FORMAT: Final = "dynamo-pairwise-tiles"
VERSION: Final = 1
DOCUMENT: Final = "comparison.json"


class TileFolder:
    """A folder of finished tiles of one comparison.

    Parameters
    ----------
    path
        The folder; made if it is not there.
    identity
        What makes it this comparison and no other, as a flat mapping of JSON values.
    block
        Models per block. Where there are tiles already, theirs counts.
    resume
        Whether to go on from what is there.

    Raises
    ------
    StoreExists
        If there is a comparison and it is not to be resumed, or the folder is something else.
    StoreLocked
        If another process writes there.
    InvalidInput
        If it is another comparison; says what differs.
    CorruptBlock
        If the description of the comparison is damaged.
    """

    def __init__(
        self, path: str | Path, *, identity: Mapping[str, Any], block: int, resume: bool
    ) -> None:
        self.path = Path(path)
        self._identity = json.loads(json.dumps(identity))
        document = self.path / DOCUMENT
        found = document.is_file()
        if self.path.exists() and not found:
            folder = self.path.is_dir()
            if not folder or any(not e.name.startswith(".") for e in self.path.iterdir()):
                raise StoreExists(
                    f"{self.path} exists and holds no comparison, so it is not touched. Choose "
                    "another folder."
                )
        if found and not resume:
            raise StoreExists(
                f"There is an unfinished comparison at {self.path}. Go on with it with resume=True "
                "(--resume), or delete the folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise StoreLocked(
                f"Another process is comparing into {self.path}. Wait for it, or choose another "
                "folder."
            ) from error
        try:
            self.block = self._same_block(document) if found else block
            if not found:
                description = {
                    "format": FORMAT,
                    "version": VERSION,
                    "identity": self._identity,
                    "block": block,
                }
                self._write(DOCUMENT, json.dumps(description, indent=1).encode())
        except BaseException:
            self.close()
            raise

    def read(self, tile: Tile, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
        """Return a tile that is there and whole, else None: it is computed again."""
        try:
            content = (self.path / _name(tile)).read_bytes()
            checksum, data = content[:4], content[4:]
            if zlib.crc32(data).to_bytes(4, "little") != checksum:
                return None
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if values.shape != shape or values.dtype != np.float64:
            return None
        checked: NDArray[np.float64] = values
        return checked

    def write(self, tile: Tile, values: NDArray[np.float64]) -> None:
        """Keep a tile."""
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        data = buffer.getvalue()
        self._write(_name(tile), zlib.crc32(data).to_bytes(4, "little") + data)

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    def remove(self) -> None:
        """Delete all tiles, and the folder."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, content: bytes) -> None:
        partial = self.path / f".{uuid.uuid4().hex}.partial"
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / name)
        finally:
            partial.unlink(missing_ok=True)

    def _same_block(self, path: Path) -> int:
        """Return the models per block of what is there, if it is the same comparison."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            identity, block = document["identity"], int(document["block"])
            if (document["format"], document["version"]) != (FORMAT, VERSION) or block < 1:
                raise ValueError("it is of another version")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptBlock(
                f"{path} cannot be read ({error}). Delete the folder, and compare again."
            ) from error
        names = [
            n for n in {**identity, **self._identity} if identity.get(n) != self._identity.get(n)
        ]
        if names:
            changes = ", ".join(
                f"{name} ({_short(identity.get(name))}, now {_short(self._identity.get(name))})"
                for name in names
            )
            raise InvalidInput(
                f"The tiles in {self.path} are of another comparison: {changes}. Give the settings "
                "and the population of that one, or choose another folder."
            )
        return block


def _name(tile: Tile) -> str:
    return f"tile-{tile[0]:05d}-{tile[1]:05d}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
