"""Ellipses around the places that points have in several fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ellipse", "ellipses_of", "outlines"]

Ellipse: TypeAlias = Literal["normal", "prediction"]

COVERAGE = 0.95

CORNERS = 48
"""Of a drawn ellipse."""


def ellipses_of(
    points: NDArray[np.float64], ellipse: Ellipse
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95 % ellipse of every model.

    Parameters
    ----------
    points
        (fit, model, 2).
    ellipse
        `normal`: of a normal distribution with the covariance of the points. `prediction`: of one
        further point (Hotelling 1931, doi:10.1214/aoms/1177732979), from three fits on.

    Returns
    -------
    tuple of ndarray
        (model,) longer half axes, shorter ones, and degrees from the first axis to the longer one,
        above -90 and up to 90.
    """
    fits = len(points)
    centred = points - points.mean(0)
    covariances = np.einsum("fma,fmb->mab", centred, centred) / (fits - 1)
    factor = stats.chi2(2).ppf(COVERAGE)
    if ellipse == "prediction":
        factor = 2 * (fits - 1) * (fits + 1) / (fits * (fits - 2))
        factor *= stats.f(2, fits - 2).ppf(COVERAGE)
    values, vectors = np.linalg.eigh(covariances)
    minor, major = np.sqrt(values.clip(min=0) * factor).T
    along = vectors[..., 1]
    angles = np.degrees(np.arctan2(along[:, 1], along[:, 0]))
    return major, minor, 90 - (90 - angles) % 180


def outlines(ellipses: NDArray[np.float64]) -> tuple[list[float | None], list[float | None]]:
    """Return x and y of the corners of ellipses, None after each.

    Parameters
    ----------
    ellipses
        (model, 5): centre, half axes and angle of each.
    """
    turn = np.linspace(0, 2 * np.pi, CORNERS)
    x, y, major, minor, angle = (column[:, None] for column in ellipses.T)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = major * np.cos(turn), minor * np.sin(turn)
    corners = (x + along * cos - across * sin, y + along * sin + across * cos)
    xs, ys = ([value for row in axis.tolist() for value in (*row, None)] for axis in corners)
    return xs, ys
