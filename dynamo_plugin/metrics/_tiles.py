"""All pairs as tiles: blocks of models against blocks of models."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._prepared import PreparedNetworks, count_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.metrics._embedded_reading import EmbeddedSource
    from dynamo_plugin.metrics._reading import Source
    from dynamo_plugin.registry.interfaces import Metric

__all__ = ["Comparison", "Tile", "make_tiles", "run_tiles"]

Tile: TypeAlias = "tuple[int, int]"
"""Numbers of two blocks."""

_BLOCK = 16
"""Models of a block: enough for wide products, few enough for many workers."""

_SUBMITTED_AT_ONCE = 64

_kept: dict[str, PreparedNetworks] = {}
"""Of the comparisons that this process works on, by token."""

_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What is compared, and how; travels to other processes."""

    source: Source | EmbeddedSource
    metric: Metric[Any]
    ids: tuple[str, ...]
    memory: int
    """Bytes of prepared networks that a process keeps."""
    block: int
    """Models per block."""
    token: str
    process: int
    """Id of the process that the comparison was made in."""

    @classmethod
    def make(
        cls,
        source: Source | EmbeddedSource,
        metric: Metric[Any],
        ids: Sequence[str],
        *,
        memory: int,
    ) -> Comparison:
        """Prepare the first model, and see how many of its size are in memory at once."""
        draft = cls(source, metric, tuple(ids), memory, 1, uuid.uuid4().hex, os.getpid())
        # two blocks, and their states once more, under each other
        fits = memory // (4 * max(1, count_bytes(draft.prepared(ids[0]))))
        most = min(_BLOCK, max(1, fits))
        # blocks of about one size
        blocks = -(-len(ids) // most)
        return replace(draft, block=-(-len(ids) // blocks))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self.ids) // self.block)

    def members(self, block: int) -> slice:
        """Return the places of the models of a block."""
        return slice(block * self.block, min((block + 1) * self.block, len(self.ids)))

    def prepared(self, model: str) -> Any:
        """Return a prepared network, from memory if it is there.

        Raises
        ------
        InvalidInput
            If it cannot be compared; names the model.
        """
        with _lock:
            kept = _kept.get(self.token)
            if kept is None:
                if os.getpid() != self.process:  # nobody there says when a comparison is done
                    _kept.clear()
                kept = _kept[self.token] = PreparedNetworks(self.memory)
        return kept.get(model, lambda: self._prepare(model))

    def forget(self) -> None:
        """Let go of what this process keeps."""
        _kept.pop(self.token, None)

    def compute(self, tile: Tile) -> NDArray[np.float64]:
        """Return (first, second) values of a tile, or (2, first, second) with those of the reverse
        order where that matters.
        """
        first, second = ([self.prepared(m) for m in self.ids[self.members(b)]] for b in tile)
        if tile[0] == tile[1]:
            return self.metric.compare_many(first)
        values = self.metric.compare_many(first, second)
        if self.metric.symmetric:
            return values
        return np.stack([values, self.metric.compare_many(second, first).T])

    def place(self, values: NDArray[np.float64], tile: Tile, into: NDArray[np.float64]) -> None:
        """Write the values of a tile into the square array of all."""
        rows, columns = (self.members(block) for block in tile)
        if tile[0] == tile[1]:
            into[rows, columns] = values
        elif values.ndim == 3:
            into[rows, columns], into[columns, rows] = values[0], values[1].T
        else:
            into[rows, columns], into[columns, rows] = values, values.T

    def shape_of(self, tile: Tile) -> tuple[int, ...]:
        """Return the shape of what `compute` returns."""
        sizes = tuple(len(range(*self.members(block).indices(len(self.ids)))) for block in tile)
        return sizes if tile[0] == tile[1] or self.metric.symmetric else (2, *sizes)

    def _prepare(self, model: str) -> Any:
        try:
            return self.metric.prepare(self.source.read(model))
        except InvalidInput as error:
            raise InvalidInput(f"Model {model!r}: {error}") from error


def make_tiles(blocks: int) -> list[Tile]:
    """Return the tiles on and above the diagonal, so that neighbours share blocks.

    >>> make_tiles(3)
    [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (2, 2)]
    """
    tiles: list[Tile] = []
    for first in range(blocks):
        row = [(first, second) for second in range(first, blocks)]
        tiles += row if first % 2 == 0 else row[::-1]
    return tiles


def run_tiles(
    comparison: Comparison,
    tiles: Sequence[Tile],
    *,
    workers: int,
    executor: Executor | None,
) -> Iterator[tuple[Tile, NDArray[np.float64]]]:
    """Yield tiles with their values, as they are done: here, in threads, or on an executor.

    Every tile is computed by one thread, so that the bits do not depend on where.
    """
    if executor is None and workers == 1:
        for tile in tiles:
            yield tile, _compute(comparison, tile)
    elif executor is not None:
        yield from _run(comparison, tiles, executor)
    else:
        with ThreadPoolExecutor(workers) as pool:
            yield from _run(comparison, tiles, pool)


def _run(
    comparison: Comparison, tiles: Sequence[Tile], executor: Executor
) -> Iterator[tuple[Tile, NDArray[np.float64]]]:
    waiting = list(reversed(tiles))
    running: dict[Future[NDArray[np.float64]], Tile] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _SUBMITTED_AT_ONCE:
                tile = waiting.pop()
                running[executor.submit(_compute, comparison, tile)] = tile
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tile = running.pop(future)
                yield tile, future.result()
    finally:
        for future in running:
            future.cancel()


def _compute(comparison: Comparison, tile: Tile) -> NDArray[np.float64]:
    if os.getpid() == comparison.process:  # where the limit is set for all threads together
        return comparison.compute(tile)
    with threadpool_limits(limits=1):
        return comparison.compute(tile)
