"""Large tensors in memory that is used again.

A capture copies every state once and drops the copy when it has been written; a fit keeps what the
backward pass needs of every step. Fresh memory would cost about as much as the copying: the system
has to find and clear every page of it.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["copied", "recycling", "room"]

SMALLEST = 2**20
"""Tensors below this size take memory from torch, which serves them well."""

KEPT_BYTES = 64 * 2**20
"""Most memory that is kept for later copies of a capture."""


def copied(tensor: Tensor) -> Tensor:
    """Return a detached, contiguous copy on the same device, out of reach of in-place work.

    Within `recycling`, a large copy on the CPU lies in whole pages of memory that earlier copies
    no longer need, which goes back when the last view of it is gone.

    >>> copied(torch.arange(6).reshape(2, 3).T).is_contiguous()
    True
    """
    plain = tensor.detach()
    if type(plain) is not Tensor or plain.is_quantized or not _is_served(plain, plain.nbytes):
        return plain.clone(memory_format=torch.contiguous_format)
    return _taken(plain.shape, plain).copy_(plain)


def room(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a tensor of some shape, its values left to chance, of the dtype and device of another.

    Within `recycling`, a large one on the CPU lies in memory that earlier ones no longer need.

    >>> room((2, 3), torch.ones(1, dtype=torch.float64)).dtype
    torch.float64
    """
    if _is_served(like, math.prod(shape) * like.element_size()):
        return _taken(shape, like)
    return like.new_empty(tuple(shape))


def _is_served(like: Tensor, size: int) -> bool:
    return bool(_POOL.users) and like.device.type == "cpu" and size >= SMALLEST


def _taken(shape: Sequence[int], like: Tensor) -> Tensor:
    memory = torch.from_numpy(_POOL.take(math.prod(shape) * like.element_size()))
    return memory.view(like.dtype).view(tuple(shape))


@contextmanager
def recycling(kept_bytes: int | None = None) -> Iterator[None]:
    """Have tensors use memory again, in all threads; what is kept for them is freed at the end.

    Parameters
    ----------
    kept_bytes
        Most memory that is kept, None for 64 MiB; where several ask, what the last one said.
    """
    with _POOL.lock:
        _POOL.users += 1
        _POOL.limit = KEPT_BYTES if kept_bytes is None else kept_bytes
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
        self.limit = KEPT_BYTES
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
            if self.users and self._kept + len(memory) <= self.limit:
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
