"""Distances between the samples of one network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from dynamo_plugin.metrics._states import Floats

__all__ = ["MOST_SAMPLES", "check_square_fits", "condensed", "squared_distances"]

MOST_SAMPLES: Final = 30_000
"""Samples of which all pairs are looked at; (sample, sample) numbers then take 7 GB."""

_CANCELLED = 1e-6  # of the squared norms: less has lost half its digits


def check_square_fits(samples: int) -> None:
    """Raise `InvalidInput` where a number per pair of samples would not fit into memory."""
    if samples > MOST_SAMPLES:
        raise InvalidInput(
            f"Expected at most {MOST_SAMPLES} samples, of which all pairs are compared; got "
            f"{samples}. Compare some of them (pairwise: rows=5000)."
        )


def squared_distances(states: Floats) -> Floats:
    """Return squared Euclidean distances between samples.

    Parameters
    ----------
    states
        (unit, sample).

    Returns
    -------
    ndarray
        (sample, sample), symmetric, zero on the diagonal.

    Raises
    ------
    InvalidInput
        If there are too many samples.
    """
    check_square_fits(states.shape[1])
    squares = np.einsum("us,us->s", states, states)
    distances: Floats = states.T @ states
    distances *= -2
    distances += squares
    distances += squares[:, None]
    # of samples close to each other a product leaves rounding only
    close = np.argwhere(distances <= _CANCELLED * (squares[:, None] + squares))
    for part in np.array_split(close, len(close) // 65_536 + 1):
        i, j = part.T
        distances[i, j] = np.square(states[:, i] - states[:, j]).sum(0)
    return distances


def condensed(square: Floats) -> Floats:
    """Return what lies above the diagonal of a (sample, sample) array, row after row."""
    return np.concatenate([row[place + 1 :] for place, row in enumerate(square)])
