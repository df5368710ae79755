"""A folder on a local disk: written atomically and durably, read without leaving it."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynamo_plugin.errors import CorruptBlock, StoreError, StoreExists, StoreNotFound
from dynamo_plugin.store._file_io import (
    READ_FLAGS,
    WRITE_FLAGS,
    flush_folder,
    link_if_free,
    read_into,
    write_all,
)
from dynamo_plugin.store._location import DOCUMENT_BYTES, LEFTOVER_SUFFIX, Bytes, Location

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LocalLocation"]


# a map need not keep its file open where Python can do without
_MAP_OPTIONS = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class LocalLocation(Location):
    """A folder on a local disk.

    A value is written to a temporary file, flushed to the disk (fsync), renamed, and its folder
    flushed too, so that after a power failure a key holds all of its value or does not exist.
    Symbolic links are followed only as far as they stay inside the folder, and nothing but plain
    files is opened, so that a store made by somebody else cannot have other files read or written.

    Parameters
    ----------
    root
        The folder.
    """

    __slots__ = ("_folders", "_label", "_real", "_root")

    def __init__(self, root: Path) -> None:
        self._label = str(root)
        self._root = os.path.abspath(root)  # noqa: PTH100 - the current folder may change
        self._real = os.path.realpath(self._root)
        self._folders: set[str] = set()

    @classmethod
    def opened(cls, path: Path, *, create: bool) -> LocalLocation:
        """Return the place at a path; raises `StoreExists`, `StoreNotFound` or `StoreError`."""
        try:
            if "\0" in str(path):
                raise ValueError("a path cannot hold a null character")
            exists, is_folder = path.exists(), path.is_dir()
        except (OSError, ValueError) as error:  # not permitted, or too long
            raise StoreError(f"Cannot look for a population at {str(path)!r}: {error}") from error
        if create and exists and not is_folder:
            raise StoreExists(
                f"Expected a free path for the population, but {path} is a file. Choose another."
            )
        if not create and not is_folder:
            came = "is a file" if exists else "does not exist"
            raise StoreNotFound(f"Expected the folder of a population, but {path} {came}.")
        return cls(path)

    def __str__(self) -> str:
        return self._label

    def __getstate__(self) -> str:
        return self._root

    def __setstate__(self, state: str) -> None:
        self.__init__(Path(state))  # type: ignore[misc]

    def _resolved(self, key: str) -> str:
        """Return the real path of a key, which must lie inside the real root."""
        real = os.path.realpath(f"{self._root}/{key}" if key else self._root)
        if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
            raise CorruptBlock(
                f"{key} of {self} is, or lies behind, a symbolic link that leads out of the store, "
                f"to {real}. Nothing outside a store is read or written; replace the link by what "
                "it points to."
            )
        return real

    def _parent(self, key: str) -> str:
        """Return the real path of the folder that holds a key, itself perhaps a link."""
        folder, _, name = key.rpartition("/")
        return f"{self._resolved(folder)}/{name}"

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result] | None]:
        """Yield a descriptor and its status, None where there is no file."""
        try:
            descriptor = os.open(self._resolved(key), READ_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        except OSError as error:
            raise StoreError(f"Cannot read {key} of {self}: {error}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CorruptBlock(f"Expected a file at {key} of {self}, found something else.")
            yield descriptor, status
        except OSError as error:
            raise StoreError(f"Cannot read {key} of {self}: {error}") from error
        finally:
            os.close(descriptor)

    def get(self, key: str, *, limit: int = DOCUMENT_BYTES) -> NDArray[np.uint8] | None:
        """Return the bytes under a key; see `Location.get`."""
        with self._opened(key) as found:
            if found is None:
                return None
            descriptor, status = found
            if status.st_size > limit:
                raise CorruptBlock(
                    f"Expected at most {limit} bytes at {key} of {self}, found {status.st_size}."
                )
            data = np.empty(status.st_size, dtype=np.uint8)
            filled = 0
            while filled < data.size:
                count = read_into(descriptor, data[filled:])
                if not count:
                    return data[:filled]
                filled += count
            return data

    def sizes(self, keys: Iterable[str]) -> Iterator[int | None]:
        """Return how many bytes lie under each key; see `Location.sizes`."""
        for key in keys:
            try:
                status = os.stat(self._resolved(key))  # noqa: PTH116 - resolved once, above
                yield status.st_size if stat.S_ISREG(status.st_mode) else None
            except (FileNotFoundError, NotADirectoryError):
                yield None
            except OSError as error:
                raise StoreError(f"Cannot read {key} of {self}: {error}") from error

    def map(self, key: str, size: int) -> NDArray[np.uint8] | None:
        """Return the bytes under a key as a memory map; see `Location.map`."""
        with self._opened(key) as found:
            if found is None or found[1].st_size != size:
                came = "is missing" if found is None else f"has {found[1].st_size} bytes"
                raise CorruptBlock(f"Expected {size} bytes at {key} of {self}; it {came}.")
            try:
                mapped = mmap.mmap(found[0], size, access=mmap.ACCESS_READ, **_MAP_OPTIONS)
            except (OSError, ValueError):  # files are not mapped here, too many are, or it shrank
                return None
            return np.frombuffer(mapped, dtype=np.uint8)

    def stamp(self, key: str) -> object | None:
        """Return inode, size and time of change of the file; see `Location.stamp`."""
        try:
            status = os.stat(f"{self._root}/{key}")  # noqa: PTH116 - in the path of every read
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def set_parts(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write several pieces as one value; see `Location.set_parts`."""
        self._write(key, parts, exclusive=False)

    def create(self, key: str, data: bytes) -> bool:
        """Write bytes where there are none; see `Location.create`."""
        return self._write(key, [data], exclusive=True)

    def _write(self, key: str, parts: Sequence[Bytes], *, exclusive: bool) -> bool:
        folder = key.rpartition("/")[0]
        path = f"{self._root}/{key}"
        partial = f"{path}.{uuid.uuid4().hex}{LEFTOVER_SUFFIX}"
        try:
            self._make_folder(folder)
            try:
                descriptor = os.open(partial, WRITE_FLAGS, 0o666)
            except FileNotFoundError:  # somebody removed the folder since
                self._folders.clear()
                self._make_folder(folder)
                descriptor = os.open(partial, WRITE_FLAGS, 0o666)
            try:
                try:
                    write_all(descriptor, parts)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                if not exclusive:
                    os.replace(partial, path)  # noqa: PTH105
                elif not link_if_free(partial, path):
                    return False
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(partial)  # noqa: PTH108
                raise
            flush_folder(os.path.dirname(path))  # noqa: PTH120
        except OSError as error:
            raise StoreError(
                f"Cannot write {key} of {self}: {error}. What was committed before is safe; make "
                "room or mend the storage, then go on with resume=True (--resume)."
            ) from error
        return True

    def _make_folder(self, folder: str) -> None:
        """Make a folder and those above it, each entered durably into the one that holds it.

        Folders that are there already are flushed too, once: whoever made them may have been
        stopped before that, or be about to.
        """
        path = f"{self._root}/{folder}" if folder else self._root
        if path in self._folders:
            return
        self._resolved(folder)
        chain = [path]
        while chain[-1] != self._root and os.path.dirname(chain[-1]) not in self._folders:  # noqa: PTH120
            chain.append(os.path.dirname(chain[-1]))  # noqa: PTH120
        while not os.path.isdir(above := os.path.dirname(chain[-1])):  # noqa: PTH112, PTH120
            chain.append(above)
        for each in reversed(chain):
            made = not os.path.isdir(each)  # noqa: PTH112
            if made:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(each)  # noqa: PTH102
            if made or each.startswith(f"{self._root}{os.sep}"):
                flush_folder(os.path.dirname(each))  # noqa: PTH120
            self._folders.add(each)

    def children(self, folder: str) -> list[str]:
        """Return the names in a folder; see `Location.children`."""
        try:
            return sorted(os.listdir(self._resolved(folder)))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"Cannot list {folder or 'the root'} of {self}: {error!r}") from error

    def delete(self, folder: str) -> None:
        """Remove a folder; see `Location.delete`."""
        self._folders.clear()
        path = self._parent(folder)
        try:
            if not os.path.lexists(path):
                return
            # of a link the link goes, not what it points to
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
                shutil.rmtree(path)
            else:
                os.unlink(path)  # noqa: PTH108
            flush_folder(os.path.dirname(path))  # noqa: PTH120
        except OSError as error:
            raise StoreError(f"Cannot delete {folder} of {self}: {error}") from error

    def sweep(self, folder: str, *, deep: bool = True) -> None:
        """Remove leftovers; see `Location.sweep`."""
        for place, folders, names in os.walk(f"{self._root}/{folder}"):
            for name in names:
                if name.endswith(LEFTOVER_SUFFIX):
                    with contextlib.suppress(OSError):
                        os.unlink(f"{place}/{name}")  # noqa: PTH108
            if not deep:
                folders.clear()

    def prune(self, folder: str) -> None:
        """Remove a folder if it is empty; see `Location.prune`."""
        self._folders.discard(f"{self._root}/{folder}")
        with contextlib.suppress(OSError):
            os.rmdir(self._parent(folder))  # noqa: PTH106

    def delete_key(self, key: str) -> None:
        """Remove one key; see `Location.delete_key`."""
        path = self._parent(key)
        try:
            os.unlink(path)  # noqa: PTH108
            flush_folder(os.path.dirname(path))  # noqa: PTH120
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StoreError(f"Cannot delete {key} of {self}: {error}") from error
