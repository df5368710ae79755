"""Planes through thetas, grids on them, and which points lie among the thetas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linprog

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["Plane", "PlaneSource", "in_hull", "read_plane"]

PlaneSource = str | Sequence[str] | Sequence[Sequence[float]]
"""`components`, three model ids, or two directions."""

HULL_TOLERANCE = 1e-6
"""How far outside a point may lie, as a share of the largest coordinate, and count as inside."""

SMALLEST = 1e-6
"""Lengths below this share of the spread of the thetas are none: thetas are single precision."""


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A plane in the space of thetas."""

    origin: NDArray[np.float64]
    """(embedding_dim,): the theta at (0, 0)."""
    axes: NDArray[np.float64]
    """(2, embedding_dim): orthogonal, of unit length, so that distances are those of thetas."""
    names: tuple[str, str]
    """What the axes are."""
    low: NDArray[np.float64]
    """(2,): where what should be seen begins."""
    high: NDArray[np.float64]
    """(2,): and ends."""

    def coordinates(self, thetas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (theta, 2): where thetas are projected to."""
        projected: NDArray[np.float64] = (thetas - self.origin) @ self.axes.T
        return projected

    def thetas(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (point, embedding_dim): the thetas at (point, 2) coordinates."""
        found: NDArray[np.float64] = self.origin + coordinates @ self.axes
        return found

    def grid(self, resolution: int, margin: float) -> NDArray[np.float64]:
        """Return (point, 2), x fastest; the margin is a share of the extent, on every side."""
        beyond = margin * (self.high - self.low)
        x, y = np.linspace(self.low - beyond, self.high + beyond, resolution).T
        return np.stack([part.ravel() for part in np.meshgrid(x, y)], axis=1)


def read_plane(embedding: ModelEmbedding, members: NDArray[np.int64], source: PlaneSource) -> Plane:
    """Return a plane.

    Parameters
    ----------
    embedding
        Has the thetas.
    members
        (network,) positions of the networks whose thetas count.
    source
        `components`: through the mean of the members, along their two leading principal components.
        Three ids of members: through their thetas, the first at the origin, the second on the
        first axis. Two directions (2, embedding_dim): through the mean, the first axis along the
        first direction.

    Raises
    ------
    UnknownName
        If there is no such model.
    InvalidInput
        If thetas or directions span no plane, or a model is not among the members.
    """
    thetas = embedding.thetas.double().numpy()[members]
    mean = thetas.mean(0)
    spread = float(np.linalg.norm(thetas - mean, axis=1).max())
    if isinstance(source, str):
        if source != "components":
            raise _unreadable(source)
        _, lengths, axes = np.linalg.svd(thetas - mean, full_matrices=False)
        if len(lengths) < 2 or not lengths[1] > SMALLEST * np.abs(thetas).max():
            raise InvalidInput(
                f"The thetas of these {len(thetas)} networks lie on one line, and span no plane. "
                "Use more networks, or give two directions."
            )
        # The sign of a singular vector is arbitrary; the largest entry is made positive.
        largest = np.abs(axes[:2]).argmax(1)
        axes = axes[:2] * np.sign(axes[[0, 1], largest])[:, None]
        shares = lengths**2 / (lengths**2).sum()
        names = (
            f"component 1 ({shares[0]:.0%} of the variance)",
            f"component 2 ({shares[1]:.0%})",
        )
        return _seen(mean, axes, names, thetas)
    given = list(source)
    if len(given) == 3 and all(isinstance(model, str) for model in given):
        return _through_three([str(model) for model in given], embedding, members, spread)
    try:
        directions = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise _unreadable(source) from None
    if directions.shape != (2, thetas.shape[1]) or not np.isfinite(directions).all():
        raise _unreadable(source, embedding_dim=thetas.shape[1])
    axes = _orthonormal(directions, 0.0, "The two directions are parallel, or zero")
    plane = _seen(mean, axes, ("direction 1", "direction 2"), thetas)
    if not (plane.high - plane.low > SMALLEST * np.abs(thetas).max()).all():
        raise InvalidInput(
            "All networks are at one place along a direction, so that its extent is not known. "
            "Give directions in which the thetas differ."
        )
    return plane


def in_hull(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points are weighted means of the corners, with no negative weight.

    One linear program per point finds the weighted mean that is nearest in the largest
    coordinate, so that the answer is exact in any number of dimensions and for corners that span
    fewer, up to a share of 1e-6 of the largest coordinate.

    Parameters
    ----------
    points
        (point, dimension).
    corners
        (corner, dimension).

    >>> in_hull(np.array([[0.2, 0.2], [0.8, 0.8]]), np.array([[0.0, 0], [1, 0], [0, 1]])).tolist()
    [True, False]
    """
    centre = corners.mean(0)
    size = float(np.abs(corners - centre).max()) or 1.0
    scaled, ends = (points - centre) / size, (corners - centre) / size
    count, dimensions = ends.shape
    inside = (scaled >= ends.min(0) - HULL_TOLERANCE) & (scaled <= ends.max(0) + HULL_TOLERANCE)
    found: NDArray[np.bool_] = inside.all(1)
    # Unknowns: the weights, and the largest difference d; -d <= ends.T @ weights - point <= d.
    above = np.hstack([ends.T, -np.ones((dimensions, 1))])
    below = np.hstack([-ends.T, -np.ones((dimensions, 1))])
    cost = np.r_[np.zeros(count), 1.0]
    for place in np.flatnonzero(found):
        solved = linprog(
            cost,
            A_ub=np.vstack([above, below]),
            b_ub=np.r_[scaled[place], -scaled[place]],
            A_eq=np.r_[np.ones(count), 0.0][None],
            b_eq=[1.0],
            method="highs",
        )
        if solved.fun is None:  # there is a solution, so that only the solver can fail
            raise InvalidInput(
                f"Whether a theta lies in the hull of others could not be found: {solved.message}"
            )
        found[place] = solved.fun <= HULL_TOLERANCE
    return found


def _through_three(
    models: list[str], embedding: ModelEmbedding, members: NDArray[np.int64], spread: float
) -> Plane:
    positions = [embedding.index(model) for model in models]
    for model, position in zip(models, positions, strict=True):
        if position not in members:
            raise InvalidInput(
                f"The model {model!r} is of the output group "
                f"{embedding.output_groups[position]!r}, not of the one that is scored. Choose "
                "models of one group."
            )
    three = embedding.thetas.double().numpy()[positions]
    axes = _orthonormal(
        three[1:] - three[0], SMALLEST * spread, f"The thetas of {', '.join(models)} lie on a line"
    )
    names = (f"theta, from {models[0]} to {models[1]}", f"theta, towards {models[2]}")
    return _seen(three[0], axes, names, three)


def _orthonormal(
    directions: NDArray[np.float64], shortest: float, problem: str
) -> NDArray[np.float64]:
    """Return (2, dimension): the first direction, and what the second adds, at unit length."""
    first, second = directions
    length = float(np.linalg.norm(first))
    if length > shortest:
        unit = first / length
        rest = second - (second @ unit) * unit
        rest -= (rest @ unit) * unit
        left = float(np.linalg.norm(rest))
        if left > max(shortest, SMALLEST * float(np.linalg.norm(second))):
            return np.stack([unit, rest / left])
    raise InvalidInput(f"{problem}, and span no plane. Choose others.")


def _seen(
    origin: NDArray[np.float64],
    axes: NDArray[np.float64],
    names: tuple[str, str],
    thetas: NDArray[np.float64],
) -> Plane:
    """Return the plane with the extent of some thetas."""
    coordinates = (thetas - origin) @ axes.T
    return Plane(origin, axes, names, coordinates.min(0), coordinates.max(0))


def _unreadable(source: Any, *, embedding_dim: int | str = "embedding_dim") -> InvalidInput:
    return InvalidInput(
        "plane must be 'components', three model ids, or two finite directions of shape "
        f"(2, {embedding_dim}); got {source!r}."
    )
