"""Products of the states of many pairs of networks: wide, then cut into batches of one shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["Batch", "dot_products", "pair_products"]

Batch: TypeAlias = "tuple[NDArray[np.intp], NDArray[np.intp], Floats]"
"""(pair,) and (pair,) places of the two networks, (pair, unit, unit) products of their states."""

_WIDTH = 2048  # rows of a wide product: enough for the full rate of matrix products
_STRETCH = 2**16  # entries that are summed in the arithmetic of the dtype
_Chunk: TypeAlias = "tuple[NDArray[np.intp], int]"


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
    others = first if second is None else second
    left = _chunks(first)
    right = left if second is None else _chunks(others)
    for number, (rows, height) in enumerate(left):
        tall = _stacked(first, rows)
        for columns, width in right[number:] if second is None else right:
            same = columns is rows
            # the product of one array with itself costs half
            wide = tall if same else _stacked(others, columns)
            block = (tall @ wide.T).reshape(len(rows), height, len(columns), width)
            i, j = np.triu_indices(len(rows), 1) if same else _grid(len(rows), len(columns))
            if len(i):
                yield rows[i], columns[j], block[i, :, j]


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


def _chunks(arrays: Sequence[Floats]) -> list[_Chunk]:
    """Return places of networks to be stacked, each with how many units they have."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, array in enumerate(arrays):
        places[len(array)].append(place)
    chunks: list[_Chunk] = []
    for units, members in places.items():
        size = max(1, _WIDTH // units)
        chunks += [
            (np.array(members[start : start + size]), units)
            for start in range(0, len(members), size)
        ]
    return chunks


def _stacked(arrays: Sequence[Floats], places: NDArray[np.intp]) -> Floats:
    if len(places) == 1:
        return arrays[int(places[0])]
    stacked: Floats = np.concatenate([arrays[place] for place in places])
    return stacked


def _grid(rows: int, columns: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    i, j = np.divmod(np.arange(rows * columns), columns)
    return i, j
