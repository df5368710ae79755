"""Discrete geodesics: paths of least energy between two points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Energy", "ShortestPath", "path_energy", "shortest_path"]

Energy: TypeAlias = "Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]"
"""From a path (point, dimension) to its energy and the gradient, (point, dimension)."""

SETTLED = 1e-7
"""A path has converged where one more iteration lowers its energy by less than this share."""


@dataclass(frozen=True, slots=True, eq=False)
class ShortestPath:
    """A path of least energy."""

    points: NDArray[np.float64]
    """(point, dimension)."""
    energy: float
    """Of the path; see `path_energy`."""
    converged: bool
    """Whether the last iteration hardly changed the energy."""
    iterations: int
    """How many were made."""
    message: str
    """Why the search ended."""


def path_energy(
    states: Callable[[Tensor], Tensor],
    path: NDArray[np.float64],
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[float, NDArray[np.float64]]:
    """Return the energy of a path and its gradient.

    The energy is the sum of the squares of the steps' chords, times their number. It is at least
    the square of the sum of the chords, and equal to it where all are of one length.

    Parameters
    ----------
    states
        (point, dimension) to (point, number), differentiable: distances are those of its values.
    path
        (point, dimension).
    dtype
        What the states are computed from.
    """
    points = torch.as_tensor(path, dtype=dtype).requires_grad_()
    # Squares of small differences are added up: in double precision.
    steps = states(points).diff(dim=0).double()
    energy = (len(path) - 1) * steps.square().sum()
    (gradient,) = torch.autograd.grad(energy, points)
    return float(energy.detach()), gradient.double().numpy()


def shortest_path(
    energy: Energy,
    start: NDArray[np.float64],
    *,
    basis: NDArray[np.float64],
    iterations: int,
    on_iteration: Callable[[], object] = lambda: None,
) -> ShortestPath:
    """Return the path of least energy with the ends of a given one.

    A discrete geodesic (Arvanitidis et al. 2018, arXiv:1710.11379; Shao et al. 2018,
    arXiv:1711.08014): all inner points are moved at once, by L-BFGS. Its unknowns are displacements
    in coordinates in which the energy of a path in flat space would curve alike in all directions,
    so that far and near points of a path, and large and small dimensions, settle together. It is a
    local minimum: the one that the given path falls into.

    Parameters
    ----------
    energy
        Of a path, with its gradient.
    start
        (point, dimension), at least three points. Its ends stay.
    basis
        (dimension, direction): steps along each of these directions count about alike.
    iterations
        At most so many.
    on_iteration
        Is called after each.

    Raises
    ------
    InvalidInput
        If the energy of a path is not finite.
    """
    inner = len(start) - 2
    laplacian = 2 * np.eye(inner) - np.eye(inner, k=1) - np.eye(inner, k=-1)
    root = np.linalg.inv(np.linalg.cholesky(laplacian)).T
    unit = energy(start)[0]
    if not np.isfinite(unit):
        raise _not_finite()
    if unit == 0:
        return ShortestPath(start.copy(), 0.0, converged=True, iterations=0, message="no length")

    def moved(unknowns: NDArray[np.float64]) -> NDArray[np.float64]:
        path = start.copy()
        path[1:-1] += root @ unknowns.reshape(inner, -1) @ basis.T
        return path

    def objective(unknowns: Any) -> tuple[float, NDArray[np.float64]]:
        value, gradient = energy(moved(unknowns))
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            raise _not_finite()
        return value / unit, (root.T @ gradient[1:-1] @ basis).ravel() / unit

    def count(xk: object) -> None:
        on_iteration()

    found = minimize(
        objective,
        np.zeros(inner * basis.shape[1]),
        jac=True,
        method="L-BFGS-B",
        callback=count,
        options={"maxiter": iterations, "maxfun": 3 * iterations, "ftol": SETTLED, "gtol": SETTLED},
    )
    return ShortestPath(
        moved(found.x), float(found.fun) * unit, bool(found.success), int(found.nit), found.message
    )


def _not_finite() -> InvalidInput:
    return InvalidInput(
        "The states along the path are not finite, so that it has no length. Choose ends nearer "
        "the networks, or fewer geodesic_steps."
    )
