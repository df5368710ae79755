"""Copies of states, in memory that is used again.

A capture copies every state once and drops the copy when it has been written. Fresh memory would
cost about as much as the copying: the system has to find and clear every page of it.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["copied", "recycling"]

SMALLEST = 2**20
"""Copies below this size take memory from torch, which serves them well."""

KEPT_BYTES = 64 * 2**20
"""Most memory that is kept for later copies."""


def copied(tensor: Tensor) -> Tensor:
    """Return a detached, contiguous copy on the same device, out of reach of in-place work.

    Within `recycling`, a large copy on the CPU lies in whole pages of memory that earlier copies
    no longer need, which goes back when the last view of it is gone.

    >>> copied(torch.arange(6).reshape(2, 3).T).is_contiguous()
    True
    """
    plain = tensor.detach()
    if (
        not _POOL.users
        or type(plain) is not Tensor
        or plain.device.type != "cpu"
        or plain.is_quantized
        or plain.nbytes < SMALLEST
    ):
        return plain.clone(memory_format=torch.contiguous_format)
    memory = torch.from_numpy(_POOL.take(plain.nbytes))
    return memory.view(plain.dtype).view(plain.shape).copy_(plain)


@contextmanager
def recycling() -> Iterator[None]:
    """Have copies use memory again, in all threads; what is kept for them is freed at the end."""
    with _POOL.lock:
        _POOL.users += 1
    try:
        yield
    finally:
        with _POOL.lock:
            _POOL.users -= 1
            if not _POOL.users:
                _POOL.clear()


class _Pool:
    """Pages that nobody reads any more, by size."""

    def __init__(self) -> None:
        self.users = 0
        # the same thread may come back from a garbage collection
        self.lock = threading.RLock()
        self._free: dict[int, list[mmap.mmap]] = {}
        self._kept = 0

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return so many bytes, not cleared."""
        pages = _whole_pages(size)
        with self.lock:
            found = self._free.get(pages)
            memory = found.pop() if found else None
            self._kept -= 0 if memory is None else pages
        if memory is None:
            memory = _fresh(pages)
        whole = np.frombuffer(memory, dtype=np.uint8)
        weakref.finalize(whole, self._give, memory).atexit = False
        return whole[:size]

    def _give(self, memory: mmap.mmap) -> None:
        with self.lock:
            if self.users and self._kept + len(memory) <= KEPT_BYTES:
                self._free.setdefault(len(memory), []).append(memory)
                self._kept += len(memory)

    def clear(self) -> None:
        """Free what is kept."""
        self._free.clear()
        self._kept = 0


_POOL = _Pool()


def _whole_pages(size: int) -> int:
    """Return the next of few sizes, at most an eighth larger, so that pages fit again."""
    step = max(1 << max(size.bit_length() - 4, 0), mmap.PAGESIZE)
    return -(-size // step) * step


def _fresh(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):  # not shared with processes that are forked
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)
