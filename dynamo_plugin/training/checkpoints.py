"""Where an unfinished fit is kept: safetensors and JSON, each checkpoint whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import filelock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dynamo_plugin.errors import CorruptBlock, InvalidInput, StoreExists, StoreLocked
from dynamo_plugin.training.ranks import Ranks

__all__ = ["Checkpoint", "CheckpointFolder"]

FORMAT: Final = "dynamo-checkpoint"
VERSION: Final = 1
DOCUMENT: Final = "checkpoint.json"
TENSORS: Final = "tensors.safetensors"
KEPT: Final = 2
"""Checkpoints kept, the latest ones: one more than needed, should the last be damaged."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A fit after some step."""

    step: int
    tensors: Mapping[str, Tensor]
    """On the CPU, by name."""
    notes: Mapping[str, Any]
    """What else there is to know, as JSON."""


class CheckpointFolder:
    """A folder of the latest checkpoints of one fit.

    Parameters
    ----------
    path
        The folder; made when the first checkpoint is written.
    identity
        What makes it this fit and no other, as a flat mapping of JSON values: settings, inputs,
        models.
    resume
        Whether to go on from what is there.

    Raises
    ------
    StoreExists
        If there are checkpoints and they are not to be resumed, or the folder is something else.
    StoreLocked
        If another process writes there.
    InvalidInput
        If they are of another fit; says what differs.
    CorruptBlock
        If all of them are damaged.
    """

    def __init__(self, path: str | Path, *, identity: Mapping[str, Any], resume: bool) -> None:
        self.path = Path(path)
        self.identity = json.loads(json.dumps(identity))
        found = self._found()
        if self.path.exists() and not found:
            folder = self.path.is_dir()
            if not folder or any(not e.name.startswith(".") for e in self.path.iterdir()):
                raise StoreExists(
                    f"{self.path} exists and holds no checkpoints, so it is not touched. Choose "
                    "another folder."
                )
        if found and not resume:
            raise StoreExists(
                f"There is an unfinished fit at {self.path}. Go on with it with resume=True "
                "(--resume), or delete the folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            if Ranks.current().rank == 0:  # the others read only
                self._lock.acquire()
        except filelock.Timeout as error:
            raise StoreLocked(
                f"Another process is fitting into {self.path}. Wait for it, or choose another "
                "folder."
            ) from error
        try:
            self.latest = self._read(found)
        except BaseException:
            self.close()
            raise
        self._complained = False

    def write(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint and drop old ones.

        A disk that is full, or any other refusal, is a warning and not the end of the fit: what
        was written before stays.
        """
        target = self.path / f"step-{checkpoint.step:09d}"
        partial = self.path / f".{uuid.uuid4().hex}.partial"
        blob = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
        document = {
            "format": FORMAT,
            "version": VERSION,
            "step": checkpoint.step,
            "identity": self.identity,
            "notes": checkpoint.notes,
            "tensors_sha256": hashlib.sha256(blob).hexdigest(),
        }
        try:
            partial.mkdir()
            _write(partial / TENSORS, blob)
            _write(partial / DOCUMENT, json.dumps(document, indent=1).encode())
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            _flush(self.path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not self._complained:
                warnings.warn(
                    f"No checkpoint could be written to {self.path} at step {checkpoint.step} "
                    f"({error}). The fit goes on without.",
                    stacklevel=2,
                )
            self._complained = True
            return
        self._complained = False
        for old in self._found()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    def remove(self) -> None:
        """Delete all checkpoints, and the folder."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Return the folders of checkpoints, the latest first."""
        return sorted(self.path.glob("step-*"), reverse=True)

    def _read(self, found: list[Path]) -> Checkpoint | None:
        """Return the latest checkpoint that is whole."""
        reasons = []
        for folder in found:
            try:
                document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
                blob = (folder / TENSORS).read_bytes()
                if hashlib.sha256(blob).hexdigest() != document["tensors_sha256"]:
                    raise ValueError("its checksum differs")
                if (document["format"], document["version"]) != (FORMAT, VERSION):
                    raise ValueError("it is of another version")
                checkpoint = Checkpoint(document["step"], load(blob), document["notes"])
                identity = document["identity"]
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                reasons.append(f"{folder.name}: {error}")
                continue
            self._require_same(identity)
            if reasons:
                warnings.warn(
                    f"Damaged checkpoints in {self.path} are passed over ({'; '.join(reasons)}); "
                    f"the fit goes on from step {checkpoint.step}.",
                    stacklevel=2,
                )
            return checkpoint
        if reasons:
            raise CorruptBlock(
                f"No checkpoint in {self.path} can be read ({'; '.join(reasons)}). Restore one "
                "from a copy, or delete the folder and fit again."
            )
        return None

    def _require_same(self, identity: Mapping[str, Any]) -> None:
        names = [
            n for n in {**identity, **self.identity} if identity.get(n) != self.identity.get(n)
        ]
        if names:
            changes = ", ".join(
                f"{name} ({_short(identity.get(name))}, now {_short(self.identity.get(name))})"
                for name in names
            )
            raise InvalidInput(
                f"The checkpoints in {self.path} are of another fit: {changes}. Give the settings "
                "and the population of that one, or choose another folder."
            )


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _flush(path.parent)


def _flush(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
