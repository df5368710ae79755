"""What stays the same from one fit to the next: places, neighbours and distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist, squareform
from scipy.stats import hypergeom, rankdata

from dynamo_plugin.analyses._ellipses import Ellipse, ellipses_of
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "chance_overlap",
    "distances_of",
    "model_rows",
    "nearest",
    "neighbour_overlap",
    "rank_correlations",
]


def distances_of(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (fit, point, point) Euclidean distances of (fit, point, dimension) positions."""
    return np.stack([squareform(pdist(each)) for each in positions])


def nearest(distances: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return (fit, point, count): the nearest other points, nearest first."""
    apart = distances + np.where(np.eye(distances.shape[-1], dtype=bool), np.inf, 0.0)
    return np.argsort(apart, axis=-1, kind="stable")[..., :count]


def neighbour_overlap(neighbours: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how much the neighbours of each point overlap, on average over pairs of fits.

    The overlap of two sets is that of Jaccard 1912 (doi:10.1111/j.1469-8137.1912.tb05611.x):
    what both have, by what either has.

    Parameters
    ----------
    neighbours
        (fit, point, count), at least two fits.

    Returns
    -------
    ndarray
        (point,) from 0 to 1.
    """
    fits, points, count = neighbours.shape
    members = np.zeros((points, fits, points))
    np.put_along_axis(members, neighbours.swapaxes(0, 1), 1.0, axis=2)
    shared = members @ members.swapaxes(1, 2)
    first, second = np.triu_indices(fits, 1)
    pairs = shared[:, first, second]
    overlap: NDArray[np.float64] = (pairs / (2 * count - pairs)).mean(1)
    return overlap


def chance_overlap(points: int, count: int) -> float:
    """Return the overlap that is expected of two sets of neighbours drawn at random.

    What they share then has a hypergeometric distribution.

    >>> round(chance_overlap(4, 1), 6)  # one of three others, twice
    0.333333
    """
    shared = np.arange(count + 1)
    shares = hypergeom(points - 1, count, count).pmf(shared)
    return float((shares * shared / (2 * count - shared)).sum())


def rank_correlations(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (fit, fit): Spearman's correlation of the distances of every two fits.

    Parameters
    ----------
    distances
        (fit, point, point), symmetric.

    Raises
    ------
    InvalidInput
        If all distances of a fit are equal.
    """
    upper = np.triu_indices(distances.shape[-1], 1)
    ranks = np.stack([rankdata(each[upper]) for each in distances])
    if not np.ptp(ranks, axis=1).all():
        raise InvalidInput(
            "All distances between the thetas of a fit are equal, so that they agree with nothing. "
            "Fit longer, or with a smaller theta_decay."
        )
    found: NDArray[np.float64] = np.atleast_2d(np.corrcoef(ranks)).clip(-1, 1)
    return found


def model_rows(
    ids: tuple[str, ...],
    positions: NDArray[np.float64],
    plane: NDArray[np.float64],
    near: NDArray[np.int64],
    ellipse: Ellipse,
) -> pd.DataFrame:
    """Return one row per model for the fits of one source; columns as in `UncertaintyResult`.

    Parameters
    ----------
    ids
        Of the models.
    positions
        (fit, model, dimension), aligned.
    plane
        (component, dimension), one or two directions of unit length.
    near
        (fit, model, count): nearest neighbours.
    ellipse
        See `ellipses_of`.
    """
    fits, models = positions.shape[:2]
    means = positions.mean(0)
    spread = np.sqrt(((positions - means) ** 2).sum((0, 2)) / (fits - 1))
    between = np.sqrt((means - means.mean(0)).var(0, ddof=1).sum())
    flat = np.zeros((fits, models, 2))
    flat[..., : len(plane)] = positions @ plane.T
    major, minor, angle = ellipses_of(flat, ellipse)
    first = near[..., 0]
    counts = (first[..., None] == np.arange(models)).sum(0)
    return pd.DataFrame(
        {
            "model": ids,
            "fits": fits,
            "pc_1": flat[..., 0].mean(0),
            "pc_2": flat[..., 1].mean(0),
            "major": major,
            "minor": minor,
            "angle": angle,
            "spread": spread,
            "relative_spread": spread / between,
            "neighbour_overlap": neighbour_overlap(near),
            "neighbour_overlap_chance": chance_overlap(models, near.shape[2]),
            "nearest": [ids[place] for place in counts.argmax(1)],
            "nearest_share": counts.max(1) / fits,
            "nearest_stable": counts.max(1) == fits,
        }
    )
