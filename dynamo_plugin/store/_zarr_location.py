"""A folder of any Zarr store: in memory, behind fsspec, or a plugin's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from zarr.abc.store import RangeByteRequest
from zarr.buffer import cpu
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath

from dynamo_plugin.errors import CorruptBlock, DynamoError, InvalidInput, StoreError, StoreNotFound
from dynamo_plugin.store._local import LocalLocation
from dynamo_plugin.store._location import DOCUMENT_BYTES, Bytes, Location

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store

__all__ = ["ZarrLocation"]

T = TypeVar("T")

_CONCURRENT = 8  # requests in flight on stores that answer asynchronously


class ZarrLocation(Location):
    """A folder of a Zarr store.

    Parameters
    ----------
    store
        Where the bytes lie. Writing a key must be atomic, as it is in memory and on object stores.
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
    def opened(cls, store: Store, path: str, label: str, *, create: bool) -> Location:
        """Open a store that the caller made."""
        if create and store.read_only:
            raise InvalidInput(f"Expected a store that can be written, but {label} is read-only.")
        if create and not (store.supports_deletes and store.supports_listing):
            raise InvalidInput(
                f"Expected a store whose keys can be listed, replaced and deleted; {label}, a "
                f"{type(store).__name__}, cannot do that. Capture into a folder, and pack it "
                "afterwards."
            )
        if type(store) is LocalStore:
            if not create and not store.root.is_dir():
                raise StoreNotFound(f"Expected a population, but {store.root} does not exist.")
            return LocalLocation.opened(store.root / path, create=create)
        location = cls(store, path, label)
        location._run(StorePath.open(store, path), "open the root")
        return location

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

    def _run(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """Wait for an answer; whatever a storage library raises becomes a `StoreError`."""
        try:
            return sync(work)
        except DynamoError:
            raise
        except Exception as error:
            raise StoreError(
                f"Cannot {what} of {self}: {type(error).__name__}: {error}. What was committed "
                "before is safe; once the storage answers again, go on with resume=True (--resume)."
            ) from error

    def get(self, key: str, *, limit: int = DOCUMENT_BYTES) -> NDArray[np.uint8] | None:
        """Return the bytes under a key; see `Location.get`."""
        return next(self.get_many([key], limit=limit))

    def get_many(
        self, keys: Iterable[str], *, limit: int = DOCUMENT_BYTES
    ) -> Iterator[NDArray[np.uint8] | None]:
        """Return the bytes under each key, a few requests at a time where that helps."""
        prototype = cpu.buffer_prototype
        memory = type(self._store) is MemoryStore
        enough = RangeByteRequest(0, limit + 1)  # to see that there is more, and to load no more

        async def fetch(names: Sequence[str]) -> list[Any]:
            return await asyncio.gather(*(self._store.get(n, prototype, enough) for n in names))

        for names in self._portions(keys, 1 if memory else _CONCURRENT):
            buffers = (
                [_held(self._store, names[0])]
                if memory
                else self._run(fetch(names), f"read {names[0]}")
            )
            for name, buffer in zip(names, buffers, strict=True):
                if buffer is not None and len(buffer) > limit:
                    raise CorruptBlock(
                        f"Expected at most {limit} bytes at {name} of {self}, found more."
                    )
                yield (
                    None
                    if buffer is None
                    else np.frombuffer(buffer.as_numpy_array(), dtype=np.uint8)
                )

    def sizes(self, keys: Iterable[str]) -> Iterator[int | None]:
        """Return how many bytes lie under each key; see `Location.sizes`."""

        async def size(key: str) -> int | None:
            try:
                return await self._store.getsize(key)
            except FileNotFoundError:
                return None

        async def fetch(names: Sequence[str]) -> list[int | None]:
            return await asyncio.gather(*map(size, names))

        for names in self._portions(keys, _CONCURRENT):
            self._forget()
            yield from self._run(fetch(names), f"read {names[0]}")

    def _forget(self) -> None:
        """Have fsspec forget what it listed: other writers add to the same store."""
        if isinstance(self._store, FsspecStore):
            # a file system that is not asynchronous comes wrapped
            getattr(self._store.fs, "sync_fs", self._store.fs).invalidate_cache()

    def _portions(self, keys: Iterable[str], count: int) -> Iterator[list[str]]:
        """Return the full keys, so many at a time, without asking for more than is used."""
        rest = map(self._full, keys)
        while names := list(itertools.islice(rest, count)):
            yield names

    def map(self, key: str, size: int) -> NDArray[np.uint8] | None:
        """Return None: what lies elsewhere cannot be mapped."""
        return None

    def stamp(self, key: str) -> object | None:
        """Return None: asking would cost as much as reading."""
        return None

    def set_parts(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write several pieces as one value; see `Location.set_parts`."""
        data = _joined(parts)
        self._run(self._store.set(self._full(key), data), f"write {key}")

    def create(self, key: str, data: bytes) -> bool:
        """Write bytes where there are none; see `Location.create`.

        fsspec file systems that can do so let the server decide (S3: If-None-Match); on others
        two writers that begin within one round trip may both believe to be the first.
        """
        self._forget()
        if isinstance(self._store, FsspecStore):
            return self._run(self._create_on_fsspec(self._store, key, data), f"write {key}")
        if isinstance(self._store, MemoryStore):
            buffer = cpu.Buffer.from_bytes(data)
            return self._store._store_dict.setdefault(self._full(key), buffer) is buffer

        async def create() -> bool:
            if await self._store.exists(self._full(key)):
                return False
            await self._store.set(self._full(key), cpu.Buffer.from_bytes(data))
            return True

        return self._run(create(), f"write {key}")

    async def _create_on_fsspec(self, store: FsspecStore, key: str, data: bytes) -> bool:
        path = f"{store.path.rstrip('/')}/{self._full(key)}"
        if await store.exists(self._full(key)):
            return False
        try:
            await store.fs._pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except TypeError:  # a file system that knows no modes
            await store.set(self._full(key), cpu.Buffer.from_bytes(data))
        except OSError as error:
            # S3 answers PreconditionFailed or ConditionalRequestConflict to the second writer
            if "Precondition" in str(error) or "Conditional" in str(error):
                return False
            raise
        return True

    def children(self, folder: str) -> list[str]:
        """Return the names in a folder; see `Location.children`."""

        async def collect() -> list[str]:
            return [name async for name in self._store.list_dir(self._full(folder))]

        self._forget()
        try:
            names = self._run(collect(), f"list {folder or 'the root'}")
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        return sorted({name.strip("/") for name in names} - {""})

    def delete(self, folder: str) -> None:
        """Remove a folder; see `Location.delete`."""
        self._run(self._store.delete_dir(self._full(folder)), f"delete {folder}")

    def delete_key(self, key: str) -> None:
        """Remove one key; see `Location.delete_key`."""
        self._run(self._store.delete(self._full(key)), f"delete {key}")


def _joined(parts: Sequence[Bytes]) -> cpu.Buffer:
    """Return one buffer that owns its bytes: a store in memory keeps what it is given."""
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return cpu.Buffer.from_bytes(parts[0])
    pieces = [np.frombuffer(part, dtype=np.uint8) for part in parts]
    return cpu.Buffer.from_array_like(np.concatenate(pieces))


def _held(store: Store, key: str) -> Any:
    """Return what a store in memory holds under a key, without a turn through the event loop."""
    assert isinstance(store, MemoryStore)
    return store._store_dict.get(key)
