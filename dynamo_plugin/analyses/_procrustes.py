"""Configurations of the same points laid on each other, and how far they then agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AlignedConfigurations", "align_configurations", "chance_reliability", "reliability"]

TOLERANCE = 1e-12
"""Share of the sum of squares by which a last round may still have lowered the loss."""

MOST_ROUNDS = 5000
"""Rounds after which it is given up; a few tens are usual."""

NULL_TOLERANCE = 1e-5
"""Likewise, of permuted configurations, in which the last digits do not matter."""

BATCH_ENTRIES = 60_000
"""Numbers of permuted configurations that are aligned at once: few enough for a cache."""


@dataclass(frozen=True, slots=True, eq=False)
class AlignedConfigurations:
    """Configurations after generalised Procrustes analysis; made by `align_configurations`."""

    positions: NDArray[np.float64]
    """(..., fit, point, dimension): centred, in the frame and the units of the first fit, which
    lies where it lay."""
    scales: NDArray[np.float64]
    """(..., fit): factor that each was multiplied by; 1 for the first."""
    rounds: int
    """How many were needed."""
    converged: bool
    """Whether the last one changed nothing any more."""


def align_configurations(
    configurations: NDArray[np.float64], *, scale: bool, tolerance: float = TOLERANCE
) -> AlignedConfigurations:
    """Lay configurations of the same points on their common mean (Gower 1975,
    doi:10.1007/BF02291478).

    Translations, rotations with reflections, and scales are those for which the sum of the squared
    distances to the mean of all is smallest. In turn, each configuration is turned onto the sum of
    the others (Schoenemann 1966, doi:10.1007/BF02289451), and all scales are found together, given
    the turns, from the leading eigenvector of the configurations' correlations (Ten Berge 1977,
    doi:10.1007/BF02294053); neither step can raise the loss, and rounds go on until none lowers it.

    Parameters
    ----------
    configurations
        (..., fit, point, dimension); leading axes are worked on side by side.
    scale
        Whether sizes are matched too; their sum of squares over fits is kept, so that nothing can
        shrink to a point.
    tolerance
        Share of the sum of squares by which a last round may still have lowered the loss.
    """
    centred = configurations - configurations.mean(-2, keepdims=True)
    norms = np.sqrt((centred**2).sum((-2, -1)))
    total = (norms**2).sum(-1, keepdims=True)
    fits, dims = centred.shape[-3], centred.shape[-1]
    scales = np.sqrt(total / fits) / norms if scale else np.ones_like(norms)
    rotations = np.broadcast_to(np.eye(dims), (*centred.shape[:-2], dims, dims)).copy()
    for fit in range(1, fits):
        rotations[..., fit, :, :] = _rotation(centred[..., fit, :, :], centred[..., 0, :, :])
    turned = centred @ rotations
    before, rounds, converged = np.full(norms.shape[:-1], -np.inf), 0, fits == 1
    while not converged and rounds < MOST_ROUNDS:
        summed = (scales[..., None, None] * turned).sum(-3)
        for fit in range(fits):
            others = summed - scales[..., fit, None, None] * turned[..., fit, :, :]
            rotations[..., fit, :, :] = _rotation(centred[..., fit, :, :], others)
            turned[..., fit, :, :] = centred[..., fit, :, :] @ rotations[..., fit, :, :]
            summed = others + scales[..., fit, None, None] * turned[..., fit, :, :]
        if scale:
            flat = turned.reshape(*turned.shape[:-2], -1) / norms[..., None]
            leading = np.linalg.eigh(flat @ flat.swapaxes(-1, -2))[1][..., -1]
            leading = leading * np.where(leading.sum(-1, keepdims=True) < 0, -1.0, 1.0)
            # A negative factor is a positive one after a reflection through the centre.
            flips = np.where(leading < 0, -1.0, 1.0)[..., None, None]
            turned, rotations = turned * flips, rotations * flips
            scales = np.sqrt(total) * np.abs(leading) / norms
            summed = (scales[..., None, None] * turned).sum(-3)
        # Sums of squares are kept, so that the loss falls by what the norm of the mean gains.
        after = (summed**2).sum((-2, -1)) / fits
        converged = bool((after - before <= tolerance * total[..., 0]).all())
        before, rounds = after, rounds + 1
    relative = scales / scales[..., :1]
    back = rotations[..., :1, :, :].swapaxes(-1, -2)
    positions = relative[..., None, None] * (turned @ back)
    positions[..., 0, :, :] = centred[..., 0, :, :]
    return AlignedConfigurations(positions, relative, rounds, converged)


def reliability(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the variance of single fits that lies between points: an intraclass
    correlation.

    ICC(3, 1) of Shrout and Fleiss 1979 (doi:10.1037/0033-2909.86.2.420), with variances summed over
    dimensions: 1 where all fits put every point at one place, 0 on average where they put them
    anywhere, if they had not been turned onto each other.

    Parameters
    ----------
    positions
        (..., fit, point, dimension).

    Returns
    -------
    ndarray
        (...): at most 1, and not below -1 / (fits - 1).
    """
    fits, points = positions.shape[-3:-1]
    centred = positions - positions.mean(-2, keepdims=True)
    means = centred.mean(-3, keepdims=True)
    between = fits * (means**2).sum((-3, -2, -1)) / (points - 1)
    within = ((centred - means) ** 2).sum((-3, -2, -1)) / ((points - 1) * (fits - 1))
    shares: NDArray[np.float64] = (between - within) / (between + (fits - 1) * within)
    return shares


def chance_reliability(
    configurations: NDArray[np.float64], *, scale: bool, permutations: int, seed: int
) -> NDArray[np.float64]:
    """Return (permutation,): the reliability of configurations whose points are permuted.

    In all but the first, and then aligned, which makes of any what it can (Peres-Neto
    and Jackson 2001, doi:10.1007/s004420100720, for two).

    Parameters
    ----------
    configurations
        (fit, point, dimension).
    scale
        As in `align_configurations`.
    permutations
        How many.
    seed
        Of them.
    """
    generator = np.random.default_rng(seed)
    fits, points = configurations.shape[:2]
    batch = max(BATCH_ENTRIES // configurations.size, 1)
    found = []
    for start in range(0, permutations, batch):
        rows = min(batch, permutations - start)
        orders = np.tile(np.arange(points), (rows, fits, 1))
        orders[:, 1:] = generator.permuted(orders[:, 1:], axis=-1)
        permuted = np.take_along_axis(configurations[None], orders[..., None], axis=2)
        aligned = align_configurations(permuted, scale=scale, tolerance=NULL_TOLERANCE)
        found.append(reliability(aligned.positions))
    return np.concatenate(found)


def _rotation(points: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (..., dimension, dimension) Q for which points Q are nearest to the target."""
    left, _, right = np.linalg.svd(points.swapaxes(-1, -2) @ target)
    rotation: NDArray[np.float64] = left @ right
    return rotation
