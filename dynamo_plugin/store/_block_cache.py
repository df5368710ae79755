"""Blocks that were checked, kept so that they need not be read or checked again."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BlockCache"]

_MOST_MAPS = 4096  # a process may hold some 65,000
_LOADED_BYTES = 256 * 2**20


class BlockCache:
    """The most recently used blocks of a population: memory maps, and loaded ones up to a size.

    Each is tied to the stamp of its file, so that one that was replaced is read again. A stamp of
    None means that the storage cannot tell: such blocks do not change while they are open.
    """

    __slots__ = ("_blocks", "_checked", "_loaded", "_lock", "_most")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checked: dict[tuple[str, int], object] = {}
        self._blocks: OrderedDict[tuple[str, int], tuple[NDArray[Any], bool]] = OrderedDict()
        self._loaded = 0
        self._most = _most_maps()

    def knows(self, key: tuple[str, int], stamp: object | None) -> bool:
        """Return whether a block was checked since its file last changed, or is still loaded."""
        with self._lock:
            if stamp is None:
                return key in self._blocks
            return self._checked.get(key) == stamp

    def get(self, key: tuple[str, int], stamp: object | None) -> NDArray[Any] | None:
        """Return a block that is still at hand."""
        found = self._find(key, stamp)
        return None if found is None else found[0]

    def mapped(self, key: tuple[str, int], stamp: object | None) -> NDArray[Any] | None:
        """Return a block that is still at hand and takes no memory."""
        found = self._find(key, stamp)
        return found[0] if found is not None and found[1] else None

    def _find(self, key: tuple[str, int], stamp: object | None) -> tuple[NDArray[Any], bool] | None:
        with self._lock:
            found = self._blocks.get(key)
            if found is None or self._checked.get(key) != stamp:
                return None
            self._blocks.move_to_end(key)
            return found

    def put(
        self, key: tuple[str, int], stamp: object | None, data: NDArray[Any], *, mapped: bool
    ) -> None:
        """Keep a block that was checked."""
        with self._lock:
            self._drop(key)
            self._checked[key] = stamp
            self._blocks[key] = (data, mapped)
            self._loaded += 0 if mapped else data.nbytes
            while len(self._blocks) > self._most or (
                self._loaded > _LOADED_BYTES and len(self._blocks) > 1
            ):
                self._drop(next(iter(self._blocks)))

    def _drop(self, key: tuple[str, int]) -> None:
        if key in self._blocks:
            data, mapped = self._blocks.pop(key)
            self._loaded -= 0 if mapped else data.nbytes


def _most_maps() -> int:
    """Return how many blocks are kept: before Python 3.13 every map holds a file open.

    Systems begin with 256 or 1,024 open files per process. The rest of them is for others.
    """
    if sys.platform == "win32" or sys.version_info >= (3, 13):
        return _MOST_MAPS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_MAPS if soft == resource.RLIM_INFINITY else max(min(soft // 4, _MOST_MAPS), 1)
