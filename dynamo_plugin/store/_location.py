"""One place in one store, read and written synchronously by key."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynamo_plugin.errors import InvalidInput, StoreError

if TYPE_CHECKING:
    from fsspec.mapping import FSMap  # type: ignore[import-untyped]
    from numpy.typing import NDArray
    from zarr.abc.store import Store
    from zarr.storage import StorePath

__all__ = ["DOCUMENT_BYTES", "LEFTOVER_SUFFIX", "Bytes", "Location", "StoreLike", "locate"]

StoreLike: TypeAlias = "Store | StorePath | FSMap | os.PathLike[str] | str | dict[str, Any]"
"""A path, an fsspec URL, a Zarr store or a place in one, an fsspec mapping, or a dictionary."""

Bytes: TypeAlias = "bytes | NDArray[np.uint8]"

DOCUMENT_BYTES = 256 * 2**20
"""Largest JSON document that is read: what a store declares never decides how much is loaded."""

LEFTOVER_SUFFIX = ".partial"
"""Ends the name of what an interrupted write to a local disk leaves behind."""


class Location(abc.ABC):
    """A folder of a store. Keys are relative to it, their parts separated by slashes.

    A key either holds everything that was written to it or does not exist: writing is atomic, and
    when `set` returns, the bytes survive a crash, as far as the storage can promise that.
    """

    __slots__ = ()

    @abc.abstractmethod
    def __str__(self) -> str:
        """Return what messages call this place."""

    @abc.abstractmethod
    def get(self, key: str, *, limit: int = DOCUMENT_BYTES) -> NDArray[np.uint8] | None:
        """Return the bytes under a key, or None where there is none; they must not be written to.

        Raises
        ------
        StoreError
            They exist but cannot be read.
        CorruptBlock
            There are more than `limit`, or the key leads out of the store.
        """

    def get_many(
        self, keys: Iterable[str], *, limit: int = DOCUMENT_BYTES
    ) -> Iterator[NDArray[np.uint8] | None]:
        """Return the bytes under each key in turn; raises as `get`."""
        for key in keys:
            yield self.get(key, limit=limit)

    @abc.abstractmethod
    def sizes(self, keys: Iterable[str]) -> Iterator[int | None]:
        """Return how many bytes lie under each key in turn, None where there is none."""

    @abc.abstractmethod
    def map(self, key: str, size: int) -> NDArray[np.uint8] | None:
        """Return the bytes under a key without loading them, None where that cannot be done.

        Raises
        ------
        CorruptBlock
            There are not exactly `size`, or the key leads out of the store.
        """

    @abc.abstractmethod
    def stamp(self, key: str) -> object | None:
        """Return what changes when the bytes under a key are replaced; None if unknown."""

    def set(self, key: str, data: Bytes) -> None:
        """Write bytes under a key; raises as `set_parts`."""
        self.set_parts(key, [data])

    @abc.abstractmethod
    def set_parts(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write several pieces as one value. They must not be changed by the caller afterwards.

        Raises
        ------
        StoreError
            They cannot be written. The key is as it was before.
        """

    @abc.abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write bytes under a key if there is none yet; return whether that was so.

        Raises
        ------
        StoreError
            They cannot be written.
        """

    @abc.abstractmethod
    def children(self, folder: str) -> list[str]:
        """Return the names of what lies directly in a folder, sorted; empty if it is not there.

        Raises
        ------
        StoreError
            The store cannot be listed.
        """

    @abc.abstractmethod
    def delete(self, folder: str) -> None:
        """Remove a folder and all in it; nothing happens if it is not there."""

    def prune(self, folder: str) -> None:
        """Remove a folder if it is empty, where the storage knows empty folders."""
        return

    def sweep(self, folder: str, *, deep: bool = True) -> None:
        """Remove what interrupted writes left in a folder, and in those below it if `deep`.

        Nobody else may be writing there.
        """
        return

    @abc.abstractmethod
    def delete_key(self, key: str) -> None:
        """Remove one key; nothing happens if it is not there."""


def locate(store: StoreLike, *, create: bool) -> Location:
    """Return the place that the user named.

    Parameters
    ----------
    store
        Names it.
    create
        Whether it will be written to.

    Raises
    ------
    StoreNotFound
        A local path to be read does not exist.
    StoreExists
        A local path to be written is a file.
    InvalidInput
        Not something that names a store, or a URL of an unknown or missing protocol.
    """
    from zarr.abc.store import Store
    from zarr.storage import FsspecStore, MemoryStore, StorePath

    from dynamo_plugin.store._local import LocalLocation
    from dynamo_plugin.store._zarr_location import ZarrLocation

    if isinstance(store, StorePath):
        return ZarrLocation.opened(store.store, store.path.strip("/"), str(store), create=create)
    if isinstance(store, Store):
        return ZarrLocation.opened(store, "", str(store), create=create)
    if isinstance(store, str) and store.startswith(("file://", "local://")):
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        return LocalLocation.opened(Path(url_to_fs(store)[1]), create=create)
    if isinstance(store, str) and ("://" in store or "::" in store):
        try:
            opened = FsspecStore.from_url(store, read_only=not create)
        except (ValueError, ImportError) as error:
            raise InvalidInput(
                f"Expected an fsspec URL of a known protocol, got {store!r}: {error}"
            ) from error
        except Exception as error:  # whatever a file system raises that cannot be reached
            raise StoreError(f"Cannot open {store}: {type(error).__name__}: {error}.") from error
        return ZarrLocation(opened, "", store)
    if isinstance(store, (str, os.PathLike)):
        return LocalLocation.opened(Path(store).expanduser(), create=create)
    if isinstance(store, dict):
        memory = MemoryStore(store, read_only=not create)
        return ZarrLocation(memory, "", f"memory at {id(store):#x}")
    from fsspec.mapping import FSMap  # only a caller who made one pays for fsspec

    if isinstance(store, FSMap):
        mapped = FsspecStore.from_mapper(store, read_only=not create)
        return ZarrLocation(mapped, "", str(store.root))
    raise InvalidInput(
        "Expected a path, an fsspec URL or a Zarr store to hold the population, "
        f"got {type(store).__name__}."
    )
