"""Conformal p-values: how strange a score is among scores that it is exchangeable with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynamo_plugin.analyses._permutation import holm

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["adjusted_for_each", "conformal_p_values", "mean_distances"]


def conformal_p_values(
    scores: NDArray[np.float64], calibration: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return p-values that are at most a with probability at most a if nothing is strange.

    p = (1 + calibration scores at least as large) / (1 + calibration scores), for a score that is
    exchangeable with those of the calibration (Vovk, Gammerman and Shafer 2005,
    doi:10.1007/b106715; Laxhammar and Falkman 2010, doi:10.1145/1833280.1833287; Angelopoulos and
    Bates 2021, arXiv:2107.07511).

    Parameters
    ----------
    scores
        (new,) nonconformity: the larger, the stranger. Or (new, calibration), where the score of a
        new point is not the same beside every calibration score (cross-conformal, Vovk 2015,
        doi:10.1007/s10472-013-9368-4; then p is exact but for a factor of at most 2).
    calibration
        (calibration,) nonconformity.

    Returns
    -------
    ndarray
        (new,).

    >>> conformal_p_values(np.array([0.5, 9.0]), np.array([0.0, 1.0, 2.0])).tolist()
    [0.75, 0.25]
    """
    each = scores[:, None] if scores.ndim == 1 else scores
    p_values: NDArray[np.float64] = (1 + (calibration >= each).sum(1)) / (1 + len(calibration))
    return p_values


def adjusted_for_each(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correct p-values (test, point) for the number of tests of each point (Holm 1979)."""
    return np.stack([holm(of_point) for of_point in p_values.T], axis=1)


def mean_distances(distances: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Return the mean of the smallest distances of each row of (point, member)."""
    nearest = np.partition(distances, neighbours - 1, axis=1)[:, :neighbours]
    means: NDArray[np.float64] = nearest.mean(1)
    return means
