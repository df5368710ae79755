"""Statistics of labelled points for many labellings at once: no loop over points or labellings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "adjusted_rand",
    "centroid_accuracy",
    "nearest_neighbours",
    "neighbour_accuracy",
    "one_hot",
    "silhouette",
]


def one_hot(codes: NDArray[np.int64], values: int) -> NDArray[np.float64]:
    """Return (labelling, point, value) indicators of (labelling, point) integer codes."""
    indicators: NDArray[np.float64] = (codes[..., None] == np.arange(values)).astype(np.float64)
    return indicators


def silhouette(distances: NDArray[np.float64], members: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean silhouette of every labelling (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7).

    A point's silhouette is (b - a) / max(a, b): a is its mean distance to the other points of its
    own label, b the smallest mean distance to the points of another label. It is 0 for a point
    that is alone with its label, and where a = b = 0.

    Parameters
    ----------
    distances
        (point, point), symmetric, zero on the diagonal.
    members
        (labelling, point, value) indicators; every value has a point.

    Returns
    -------
    ndarray
        (labelling,) from -1 to 1.
    """
    counts = members.sum(1, keepdims=True)
    sums = distances @ members
    own = (sums * members).sum(-1)
    own_count = (counts * members).sum(-1)
    within = own / np.maximum(own_count - 1, 1)
    nearest = np.where(members > 0, np.inf, sums / counts).min(-1)
    largest = np.maximum(within, nearest)
    defined = (own_count > 1) & (largest > 0)
    points = np.where(defined, (nearest - within) / np.where(defined, largest, 1), 0.0)
    means: NDArray[np.float64] = points.mean(-1)
    return means


def nearest_neighbours(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (point, point) weights: 1 for the nearest other point, shared out among ties."""
    apart = distances + np.where(np.eye(len(distances), dtype=bool), np.inf, 0.0)
    nearest = (apart == apart.min(1, keepdims=True)).astype(np.float64)
    weights: NDArray[np.float64] = nearest / nearest.sum(1, keepdims=True)
    return weights


def neighbour_accuracy(
    neighbours: NDArray[np.float64], members: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Leave-one-out accuracy of the nearest neighbour (Cover and Hart 1967,
    doi:10.1109/TIT.1967.1053964) of every labelling.

    Parameters
    ----------
    neighbours
        (point, point) weights of `nearest_neighbours`.
    members
        (labelling, point, value) indicators.

    Returns
    -------
    ndarray
        (labelling,) from 0 to 1.
    """
    accuracy: NDArray[np.float64] = ((neighbours @ members) * members).sum(-1).mean(-1)
    return accuracy


def centroid_accuracy(
    squared: NDArray[np.float64], members: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Leave-one-out accuracy of the nearest centroid of every labelling.

    A point is left out of the centroid of its own label; ties are shared out. A point that is
    alone with its label counts as wrong. Centroids need no coordinates: the squared distance from
    a point to the centroid of n points is the mean of its squared distances to them, less the sum
    of theirs over all pairs by n^2.

    Parameters
    ----------
    squared
        (point, point) squared Euclidean distances.
    members
        (labelling, point, value) indicators; every value has a point.

    Returns
    -------
    ndarray
        (labelling,) from 0 to 1.
    """
    sums = squared @ members
    pairs = (sums * members).sum(1, keepdims=True) / 2
    left = members.sum(1, keepdims=True) - members
    among = pairs - sums * members
    count = np.maximum(left, 1)
    to_centroids = np.where(left > 0, sums / count - among / count**2, np.inf)
    smallest = to_centroids.min(-1, keepdims=True)
    nearest = to_centroids <= smallest + 1e-12 * max(float(squared.max()), 1e-300)
    right = (nearest * members).sum(-1) / nearest.sum(-1)
    accuracy: NDArray[np.float64] = right.mean(-1)
    return accuracy


def adjusted_rand(
    clusters: NDArray[np.float64], members: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rand index of a clustering and every labelling, adjusted for chance (Hubert and Arabie
    1985, doi:10.1007/BF01908075).

    Parameters
    ----------
    clusters
        (point, cluster) indicators.
    members
        (labelling, point, value) indicators.

    Returns
    -------
    ndarray
        (labelling,): 1 for equal partitions, 0 on average for random ones.
    """
    together = _pairs(clusters.T @ members).sum((-2, -1))
    clustered = _pairs(clusters.sum(0)).sum()
    labelled = _pairs(members.sum(1)).sum(-1)
    expected = clustered * labelled / _pairs(np.float64(len(clusters)))
    largest = (clustered + labelled) / 2
    # Both partitions trivial, all points together or all apart: they are equal.
    trivial = largest == expected
    return np.where(
        trivial, 1.0, (together - expected) / np.where(trivial, 1.0, largest - expected)
    )


def _pairs(count: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return np.asarray(count * (count - 1) / 2)
