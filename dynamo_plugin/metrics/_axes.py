"""Principal axes of states, and singular values of products of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["Axes", "nuclear_norms", "principal_axes", "reduced", "singular_values"]

_EPS = float(np.finfo(np.float64).eps)
_CONDITION = 1e4
"""Largest ratio of singular values for which squares of states are exact enough."""
_SUBSPACE_ERROR = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """A singular value decomposition of centred states, without what is zero."""

    directions: NDArray[np.float64]
    """(direction, sample), orthonormal, by decreasing scale."""
    scales: NDArray[np.float64]
    """(direction,): the singular values."""
    loadings: NDArray[np.float64]
    """(direction, unit): inner products of directions and units."""


def principal_axes(
    states: Floats, *, directions: int | None = None, variance: float | None = None
) -> Axes:
    """Return the directions, in sample space, along which states vary.

    Where the squares of states (their Gram matrix, of a few units) hold the answer to ten
    digits it is computed from those, else by a singular value decomposition of the states.

    Parameters
    ----------
    states
        (unit, sample), centred.
    directions
        Number of leading ones to keep; by default as many as there are.
    variance
        Keep as few leading ones as hold this share of the variance.

    Returns
    -------
    Axes
        No more directions than the rank, which counts what rises above the rounding of the dtype.
    """
    x = states.astype(np.float64, copy=False)
    tolerance = 4 * np.finfo(states.dtype).eps * np.sqrt(max(x.shape))
    if len(x) <= x.shape[1]:
        squares, vectors = np.linalg.eigh(x @ x.T)
        squares, vectors = squares[::-1].clip(min=0), vectors[:, ::-1]
        scales = np.sqrt(squares)
        kept = _kept(scales, tolerance, directions, variance)
        gap = squares[kept - 1] - (squares[kept] if kept < len(squares) else 0)
        within_reach = scales[kept - 1] * _CONDITION >= scales[0]
        if within_reach and 4 * _EPS * squares[0] <= _SUBSPACE_ERROR * gap:
            found = (vectors[:, :kept] / scales[:kept]).T @ x
            loadings = scales[:kept, None] * vectors[:, :kept].T
            if 4 * _EPS * squares[0] <= _SUBSPACE_ERROR * squares[kept - 1]:
                return Axes(found, scales[:kept], loadings)
            overlap = found @ found.T
            # one step towards the nearest orthonormal directions squares what rounding left
            correction = (3 * np.eye(kept) - overlap) / 2
            scales = scales[:kept] * np.sqrt(np.diag(overlap))
            return Axes(correction @ found, scales, correction @ (overlap @ loadings))
    left, scales, transposed = np.linalg.svd(x, full_matrices=False)
    kept = _kept(scales, tolerance, directions, variance)
    loadings = scales[:kept, None] * left[:, :kept].T
    return Axes(transposed[:kept], scales[:kept], loadings)


def _kept(
    scales: NDArray[np.float64], tolerance: float, directions: int | None, variance: float | None
) -> int:
    kept = max(1, int((scales > tolerance * scales[0]).sum()))
    if variance is not None:
        shares = np.cumsum(scales**2) / (scales**2).sum()
        # of a share of 1, rounding must not leave directions out
        kept = min(kept, int((shares < variance - 4 * _EPS).sum()) + 1)
    return kept if directions is None else min(kept, directions)


def reduced(states: Floats) -> Floats:
    """Return states turned so that there are no more units than samples; inner products stay.

    Parameters
    ----------
    states
        (unit, sample).
    """
    if len(states) <= states.shape[1]:
        return states
    triangle = scipy.linalg.qr(states, mode="r", check_finite=False)[0]
    turned: Floats = np.ascontiguousarray(triangle[: states.shape[1]])
    return turned


def singular_values(products: Floats) -> Floats:
    """Return (pair, value) singular values of (pair, unit, unit) products."""
    values: Floats = np.linalg.svd(products, compute_uv=False)
    return values


def nuclear_norms(products: Floats) -> NDArray[np.float64]:
    """Return (pair,) sums of singular values of (pair, unit, unit) products.

    Of float32, by the eigenvalues of squares in float64: what that loses is far below what
    float32 has lost, and it is faster.
    """
    norms: NDArray[np.float64]
    if products.dtype == np.float64:
        norms = singular_values(products).sum(-1)
        return norms
    wide = products.astype(np.float64)
    if wide.shape[1] > wide.shape[2]:
        wide = wide.transpose(0, 2, 1)
    squares = np.linalg.eigvalsh(wide @ wide.transpose(0, 2, 1))
    norms = np.sqrt(squares.clip(min=0)).sum(-1)
    return norms
