"""Writing beside computing: blocks go to a thread while the next batch runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeAlias

from numpy.typing import NDArray

from dynamo_plugin.store import ArrayBlocks

__all__ = ["Pump"]

Work: TypeAlias = Callable[[ArrayBlocks, int, Sequence[NDArray[Any]]], object]

LEAST_WAITING_BYTES, MOST_WAITING_BYTES = 16 * 2**20, 64 * 2**20
"""Between these lies what may wait to be written; computing pauses above that."""


class Pump:
    """A thread that writes blocks in the order in which they are given.

    At the end of the `with` block everything has been written; if it ends with an exception, what
    still waits is dropped. The first exception of the thread is raised by the next call.

    Parameters
    ----------
    work
        Called in the thread with array, number and pieces of each block.
    batch_bytes
        Size of what comes at once. As much may wait, within bounds, so that all of it is written
        while the next is computed.
    """

    def __init__(self, work: Work, *, batch_bytes: int = MOST_WAITING_BYTES) -> None:
        self._work = work
        self._queue: queue.SimpleQueue[tuple[ArrayBlocks, int, Sequence[NDArray[Any]]] | None]
        self._queue = queue.SimpleQueue()
        self._room = threading.Condition()
        self._most = min(max(batch_bytes, LEAST_WAITING_BYTES), MOST_WAITING_BYTES)
        self._waiting = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dynamo-writer", daemon=True)

    def __enter__(self) -> Pump:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            with self._room:
                self._error = self._error or error
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def put(self, array: ArrayBlocks, block: int, pieces: Sequence[NDArray[Any]]) -> None:
        """Have a block written; waits while too much is waiting.

        Raises
        ------
        BaseException
            What an earlier block raised.
        """
        size = sum(piece.nbytes for piece in pieces)
        with self._room:
            self._room.wait_for(
                lambda: self._error or not self._waiting or self._waiting + size <= self._most
            )
            self._raise()
            self._waiting += size
        self._queue.put((array, block, pieces))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            array, block, pieces = item
            del item
            try:
                if self._error is None:
                    self._work(array, block, pieces)
            except BaseException as error:
                with self._room:
                    self._error = error
            size = sum(piece.nbytes for piece in pieces)
            del pieces
            with self._room:
                self._waiting -= size
                self._room.notify_all()
