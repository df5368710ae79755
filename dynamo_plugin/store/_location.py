"""One place in one Zarr store, read and written synchronously by key."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from zarr.abc.store import Store
from zarr.buffer import cpu
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath

from dynamo_plugin.errors import InvalidInput, StoreError, StoreExists, StoreNotFound

if TYPE_CHECKING:
    from fsspec.mapping import FSMap  # type: ignore[import-untyped]
    from numpy.typing import NDArray

__all__ = ["Location", "StoreLike"]

StoreLike: TypeAlias = "Store | StorePath | FSMap | os.PathLike[str] | str | dict[str, Any]"
"""A path, an fsspec URL, a Zarr store or a place in one, an fsspec mapping, or a dictionary."""

_CONCURRENT = 8  # requests in flight on stores that answer asynchronously


class Location:
    """A folder of a Zarr store. Keys are relative to it.

    Parameters
    ----------
    store
        Where the bytes lie.
    path
        Folder inside the store; empty for its root.
    label
        What messages call this place.
    """

    __slots__ = ("_label", "_path", "_store")

    def __init__(self, store: Store, path: str, label: str) -> None:
        self._store = store
        self._path = path
        self._label = label

    @classmethod
    def of(cls, store: StoreLike, *, create: bool) -> Location:
        """Open what the user named.

        Raises
        ------
        StoreNotFound
            A local path to be read does not exist.
        StoreExists
            A local path to be written is a file.
        InvalidInput
            Not something that names a store, or a URL of an unknown or missing protocol.
        """
        if isinstance(store, StorePath):
            return cls._opened(store.store, store.path.strip("/"), str(store), create=create)
        if isinstance(store, Store):
            return cls._opened(store, "", str(store), create=create)
        if isinstance(store, str) and store.startswith(("file://", "local://")):
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            return cls._local(Path(url_to_fs(store)[1]), create=create)
        if isinstance(store, str) and ("://" in store or "::" in store):
            try:
                return cls(FsspecStore.from_url(store, read_only=not create), "", store)
            except (ValueError, ImportError) as error:
                raise InvalidInput(
                    f"Expected an fsspec URL of a known protocol, got {store!r}: {error}"
                ) from error
        if isinstance(store, (str, os.PathLike)):
            return cls._local(Path(store).expanduser(), create=create)
        if isinstance(store, dict):
            return cls(MemoryStore(store, read_only=not create), "", f"memory at {id(store):#x}")
        from fsspec.mapping import FSMap  # only a caller who made one pays for fsspec

        if isinstance(store, FSMap):
            return cls(FsspecStore.from_mapper(store, read_only=not create), "", str(store.root))
        raise InvalidInput(
            "Expected a path, an fsspec URL or a Zarr store to hold the population, "
            f"got {type(store).__name__}."
        )

    @classmethod
    def _opened(cls, store: Store, path: str, label: str, *, create: bool) -> Location:
        """Open a store that the caller made."""
        if create and store.read_only:
            raise InvalidInput(f"Expected a store that can be written, but {label} is read-only.")
        if not create and isinstance(store, LocalStore) and not store.root.is_dir():
            raise StoreNotFound(f"Expected a population, but {store.root} does not exist.")
        sync(StorePath.open(store, path))
        return cls(store, path, label)

    @classmethod
    def _local(cls, path: Path, *, create: bool) -> Location:
        if create and path.exists() and not path.is_dir():
            raise StoreExists(
                f"Expected a free path for the population, but {path} is a file. Choose another."
            )
        if not create and not path.is_dir():
            came = "is a file" if path.exists() else "does not exist"
            raise StoreNotFound(f"Expected the folder of a population, but {path} {came}.")
        return cls(LocalStore(path, read_only=not create), "", str(path))

    def __str__(self) -> str:
        return self._label

    def __getstate__(self) -> tuple[Store, str, str]:
        protocol = getattr(getattr(self._store, "fs", None), "protocol", ())
        protocols = (protocol,) if isinstance(protocol, str) else tuple(protocol)
        if isinstance(self._store, MemoryStore) or "memory" in protocols:
            raise InvalidInput(
                f"The store {self} lives in the memory of this process, so another process "
                "cannot write to it. Use a path or a URL, or threads instead of processes."
            )
        return self._store, self._path, self._label

    def __setstate__(self, state: tuple[Store, str, str]) -> None:
        self._store, self._path, self._label = state

    def _full(self, key: str) -> str:
        return f"{self._path}/{key}" if self._path and key else self._path or key

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """Return the bytes under a key, or None where there is none.

        Raises
        ------
        StoreError
            They exist but cannot be read.
        """
        return next(self.get_many([key]))

    def get_many(self, keys: Iterable[str]) -> Iterator[NDArray[np.uint8] | None]:
        """Return the bytes under each key in turn, a few requests at a time where that helps.

        Raises
        ------
        StoreError
            Some exist but cannot be read.
        """
        get_sync = getattr(self._store, "get_sync", None)
        prototype = cpu.buffer_prototype

        async def fetch(names: Sequence[str]) -> list[Any]:
            return await asyncio.gather(*(self._store.get(n, prototype) for n in names))

        step = 1 if get_sync else _CONCURRENT
        for names in self._portions(keys, step):
            try:
                if get_sync:
                    buffers = [get_sync(names[0], prototype=prototype)]
                else:
                    buffers = sync(fetch(names))
            except OSError as error:
                raise StoreError(f"Cannot read {names[0]} of {self}: {error}") from error
            for buffer in buffers:
                yield (
                    None
                    if buffer is None
                    else np.frombuffer(buffer.as_numpy_array(), dtype=np.uint8)
                )

    def sizes(self, keys: Iterable[str]) -> Iterator[int | None]:
        """Return how many bytes lie under each key in turn, None where there is none."""

        async def size(key: str) -> int | None:
            try:
                return await self._store.getsize(key)
            except FileNotFoundError:
                return None

        async def fetch(names: Sequence[str]) -> list[int | None]:
            return await asyncio.gather(*map(size, names))

        for names in self._portions(keys, _CONCURRENT):
            yield from sync(fetch(names))

    def _portions(self, keys: Iterable[str], count: int) -> Iterator[list[str]]:
        """Return the full keys, so many at a time, without asking for more than is used."""
        rest = map(self._full, keys)
        while names := list(itertools.islice(rest, count)):
            yield names

    def set(self, key: str, data: bytes | NDArray[np.uint8]) -> None:
        """Write bytes under a key. An array must not be changed by the caller afterwards."""
        if isinstance(data, bytes):
            buffer = cpu.Buffer.from_bytes(data)
        else:
            buffer = cpu.Buffer.from_array_like(data)
        set_sync = getattr(self._store, "set_sync", None)
        if set_sync:
            set_sync(self._full(key), buffer)
        else:
            sync(self._store.set(self._full(key), buffer))

    def children(self, folder: str) -> list[str]:
        """Return the names of what lies directly in a folder, sorted; empty if it is not there.

        Raises
        ------
        StoreError
            The store cannot be listed.
        """

        async def collect() -> list[str]:
            return [name async for name in self._store.list_dir(self._full(folder))]

        try:
            return sorted({name.strip("/") for name in sync(collect())} - {""})
        except (OSError, NotImplementedError) as error:
            raise StoreError(f"Cannot list {folder or 'the root'} of {self}: {error!r}") from error

    def delete(self, folder: str) -> None:
        """Remove a folder and all in it; nothing happens if it is not there."""
        sync(self._store.delete_dir(self._full(folder)))

    def delete_key(self, key: str) -> None:
        """Remove one key; nothing happens if it is not there."""
        sync(self._store.delete(self._full(key)))
