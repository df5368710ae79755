"""Products of the states of many pairs of networks: wide, then cut into batches of one shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["Batch", "dot_products", "pair_products"]

Batch: TypeAlias = "tuple[NDArray[np.intp], NDArray[np.intp], Floats]"
"""(pair,) and (pair,) places of the two networks, (pair, unit, unit) products of their states."""

_ROWS, _COLUMNS = 1024, 2048  # of a wide product: enough for the full rate of matrix products
_STRETCH = 2**16  # entries that are summed in the arithmetic of the dtype


@dataclass(frozen=True, slots=True, eq=False)
class _Stack:
    """States of networks of equally many units, under each other."""

    places: NDArray[np.intp]
    units: int
    states: Floats
    """(network * unit, sample)."""

    def part(self, start: int, stop: int) -> Floats:
        """Return the states of some of the networks."""
        return self.states[start * self.units : stop * self.units]


def pair_products(
    first: Sequence[Floats], second: Sequence[Floats] | None = None
) -> Iterator[Batch]:
    """Yield the product a bᵀ of every a of one sequence and every b of another.

    Parameters
    ----------
    first
        (unit, sample) each, contiguous; units may differ, samples and dtype not.
    second
        Others. By default the first once more: then each pair of different ones comes once, in
        either order, and none is paired with itself.

    Yields
    ------
    Batch
        Pairs whose products have one shape.
    """
    left = _stacks(first)
    right = left if second is None else _stacks(second)
    for number, tall in enumerate(left):
        for wide in right[number:] if second is None else right:
            step = max(1, _ROWS // tall.units)
            for start in range(0, len(tall.places), step):
                rows = slice(start, min(start + step, len(tall.places)))
                yield from _products_of(tall, rows, wide, once=second is None and tall is wide)


def _products_of(tall: _Stack, rows: slice, wide: _Stack, *, once: bool) -> Iterator[Batch]:
    """Yield the products of some networks with all others, or with those after them."""
    count = rows.stop - rows.start
    states = tall.part(rows.start, rows.stop)
    if once and count > 1:
        # the product of an array with itself costs half
        block = (states @ states.T).reshape(count, tall.units, count, tall.units)
        i, j = np.triu_indices(count, 1)
        yield tall.places[rows][i], tall.places[rows][j], block[i, :, j]
    step = max(1, _COLUMNS // wide.units)
    for start in range(rows.stop if once else 0, len(wide.places), step):
        columns = slice(start, min(start + step, len(wide.places)))
        block = states @ wide.part(columns.start, columns.stop).T
        across = columns.stop - columns.start
        i, j = np.divmod(np.arange(count * across), across)
        yield (
            tall.places[rows][i],
            wide.places[columns][j],
            block.reshape(count, tall.units, across, wide.units)[i, :, j],
        )


def dot_products(
    first: Sequence[Floats], second: Sequence[Floats] | None = None
) -> NDArray[np.float64]:
    """Return (first, second) inner products of long vectors, summed up in float64."""
    length = len(first[0])
    sums = np.zeros((len(first), len(first if second is None else second)))
    for start in range(0, length, _STRETCH):
        stretch = slice(start, start + _STRETCH)
        left = np.stack([vector[stretch] for vector in first])
        right = left if second is None else np.stack([vector[stretch] for vector in second])
        sums += left @ right.T
    return sums


def _stacks(arrays: Sequence[Floats]) -> list[_Stack]:
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, array in enumerate(arrays):
        places[len(array)].append(place)
    return [
        _Stack(
            np.array(members),
            units,
            arrays[members[0]]
            if len(members) == 1
            else np.concatenate([arrays[place] for place in members]),
        )
        for units, members in places.items()
    ]
