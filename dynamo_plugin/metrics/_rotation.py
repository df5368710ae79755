"""Distances between states of norm 1 under the best rotation of one onto the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from dynamo_plugin.metrics._axes import nuclear_norms
from dynamo_plugin.metrics._products import pair_products
from dynamo_plugin.metrics._states import check_same_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["Measure", "Turnable", "rotation_distances"]

Measure: TypeAlias = Literal["angular", "euclidean", "squared"]

_CLOSE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-6}
"""Squared distances below which 2 - 2 ‖XᵀY‖_* has lost too many digits."""


@dataclass(frozen=True, slots=True, eq=False)
class Turnable:
    """One network."""

    states: Floats
    """(unit, sample), of Frobenius norm 1."""


def rotation_distances(
    first: Sequence[Turnable], second: Sequence[Turnable] | None, measure: Measure
) -> NDArray[np.float64]:
    """Return (first, second) distances; see `Metric.compare_many`.

    Raises
    ------
    InvalidInput
        If networks have different numbers of samples.
    """
    others = first if second is None else second
    for network in (*first, *others):
        check_same_samples(first[0].states.shape[1], network.states.shape[1])
    left = [network.states for network in first]
    right = None if second is None else [network.states for network in others]
    squared = np.zeros((len(first), len(others)))
    for i, j, products in pair_products(left, right):
        squared[i, j] = (2 - 2 * nuclear_norms(products)).clip(min=0)
        for place in np.flatnonzero(squared[i, j] < _CLOSE[products.dtype]):
            a, b = i[place], j[place]
            squared[a, b] = _residual(left[a], others[b].states, products[place])
        if second is None:
            squared[j, i] = squared[i, j]
    if measure == "squared":
        return squared
    euclidean = np.sqrt(squared)
    # half the chord is the sine of half the angle; the arc cosine is blind to small angles
    return euclidean if measure == "euclidean" else 2 * np.arcsin((euclidean / 2).clip(max=1))


def _residual(first: Floats, second: Floats, product: Floats) -> float:
    """Return the squared distance of two networks after rotation, without cancellation."""
    left, _, right = np.linalg.svd(product.astype(np.float64), full_matrices=False)
    x, y = first.astype(np.float64), second.astype(np.float64)
    turned, kept = left.T @ x, right @ y
    # the smaller network has no counterpart of what the rotation leaves out of the larger one
    outside = np.square(x - left @ turned).sum() + np.square(y - right.T @ kept).sum()
    return float(np.square(turned - kept).sum() + outside)
