"""Files as systems and file systems differ: what they take at a time, and how they keep it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Bytes

__all__ = ["READ_FLAGS", "WRITE_FLAGS", "flush_folder", "link_if_free", "read_into", "write_all"]

# never wait for a pipe that lies where a file should; never follow what was resolved already
READ_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)
WRITE_FLAGS = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
)
_MOST_PIECES = 512  # of one writev; POSIX systems take at least 1,024 but for a few
_DIRECT_BYTES = 2**20  # less is written through the cache of the system
_PIECE_BYTES = 2**24  # of one read or write, on systems that know no readv and writev


def link_if_free(partial: str, path: str) -> bool:
    """Give a finished file its name unless that is taken; return whether it was free."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # a file system without links: the name first, then the content
        try:
            os.close(os.open(path, WRITE_FLAGS, 0o666))
        except FileExistsError:
            return False
        os.replace(partial, path)  # noqa: PTH105
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)  # noqa: PTH108
    return True


_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


def read_into(descriptor: int, target: NDArray[np.uint8]) -> int:
    """Read as much as the system gives at a time; return how many bytes."""
    if hasattr(os, "readv"):
        return os.readv(descriptor, [target.data])
    data = os.read(descriptor, min(len(target), _PIECE_BYTES))
    target[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return len(data)


def write_all(descriptor: int, parts: Sequence[Bytes]) -> None:
    """Write all pieces, whatever the system takes at a time; raises `OSError`."""
    pieces = [memoryview(part).cast("B") for part in parts if len(part)]  # type: ignore[arg-type]
    direct = list(itertools.takewhile(_in_pages, pieces))
    rest = pieces[len(direct) :]
    if sum(map(len, direct)) < _DIRECT_BYTES:
        _write_pieces(descriptor, pieces)
        return
    # A disk may want larger pages than the memory's, may have taken a portion of one, or cannot
    # reach this memory. What the cache does not take either is an error, which it tells.
    with _past_the_cache(descriptor), contextlib.suppress(OSError):
        _write_pieces(descriptor, direct)
    _write_pieces(descriptor, direct + rest)


def _in_pages(piece: memoryview) -> bool:
    """Return whether a piece is whole pages of memory, which a disk can take as they are."""
    address = np.frombuffer(piece, dtype=np.uint8).ctypes.data
    return address % mmap.PAGESIZE == 0 and len(piece) % mmap.PAGESIZE == 0


@contextlib.contextmanager
def _past_the_cache(descriptor: int) -> Iterator[None]:
    """Have the disk take what is written from where it lies, if the file system can.

    The system would copy every byte into its cache, from which `fsync` has it written all the
    same, and for which it clears away what others use.
    """
    direct = getattr(os, "O_DIRECT", 0)
    flags = 0
    if direct:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | direct)
        except OSError:
            direct = 0
    try:
        yield
    finally:
        if direct:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


def _write_pieces(descriptor: int, rest: list[memoryview]) -> None:
    """Write pieces, and take off the list what was written."""
    while rest:
        if hasattr(os, "writev"):
            written = os.writev(descriptor, rest[:_MOST_PIECES])
        else:
            written = os.write(descriptor, rest[0][:_PIECE_BYTES])
        if not written:  # it would be asked forever
            raise OSError(errno.EIO, "The file system took none of the bytes")
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def flush_folder(folder: str) -> None:
    """Make the names in a folder durable, where system and file system have a way to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


# what file systems answer that flush no folders; one that fails to answers something else
_NO_FLUSH = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
