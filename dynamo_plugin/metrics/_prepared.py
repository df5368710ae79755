"""Networks that were prepared for comparison, kept as far as memory goes."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

__all__ = ["PreparedNetworks", "count_bytes"]


class PreparedNetworks:
    """The most recently used ones, up to so many bytes; each is prepared once at a time.

    Parameters
    ----------
    limit
        Bytes. What is in use is not counted once it has been dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._found: OrderedDict[str, Future[Any]] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what is kept under a key, or make it; raises what making it raises."""
        with self._lock:
            known = key in self._found
            future: Future[Any] = self._found.setdefault(key, Future())
            self._found.move_to_end(key)
        if not known:
            try:
                made = make()
            except BaseException as error:
                with self._lock:
                    self._found.pop(key, None)
                future.set_exception(error)
                raise
            future.set_result(made)
            with self._lock:
                self._sizes[key] = count_bytes(made)
                self._drop()
        return future.result()

    def _drop(self) -> None:
        total = sum(self._sizes.values())
        for key in list(self._found)[:-1]:
            if total <= self._limit:
                return
            if key in self._sizes:  # not one that is being made
                total -= self._sizes.pop(key)
                del self._found[key]


def count_bytes(prepared: Any) -> int:
    """Return the bytes of all arrays in a prepared network.

    >>> count_bytes((np.zeros(3), [np.zeros((2, 2), np.float32)]))
    40
    """
    if isinstance(prepared, np.ndarray):
        return prepared.nbytes
    if dataclasses.is_dataclass(prepared) and not isinstance(prepared, type):
        fields = dataclasses.fields(prepared)
        return sum(count_bytes(getattr(prepared, field.name)) for field in fields)
    if isinstance(prepared, list | tuple):
        return sum(map(count_bytes, prepared))
    return 0
