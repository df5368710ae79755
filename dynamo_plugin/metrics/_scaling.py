"""Points for distances: multidimensional scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["classical_scaling", "stress_scaling"]


def classical_scaling(distances: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """Return (point, dimension) places (Torgerson 1952, doi:10.1007/BF02288916).

    Axes come by decreasing spread; those that the distances do not have are zero. The largest
    coordinate of every axis is positive, so that equal distances give equal places.

    Parameters
    ----------
    distances
        (point, point), symmetric.
    dimensions
        How many.
    """
    squared = distances**2
    centred = squared - squared.mean(0) - squared.mean(1, keepdims=True) + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    largest = np.argsort(values)[::-1][:dimensions]
    places: NDArray[np.float64] = vectors[:, largest] * np.sqrt(values[largest].clip(min=0))
    signs = np.sign(places[np.abs(places).argmax(0), np.arange(places.shape[1])])
    places *= np.where(signs == 0, 1, signs)
    return places


def stress_scaling(
    distances: NDArray[np.float64], places: NDArray[np.float64], *, seed: int
) -> NDArray[np.float64]:
    """Return (point, dimension) places of least stress near the given ones.

    Parameters
    ----------
    distances
        (point, point), symmetric.
    places
        Where to start from; a little noise lets points leave axes that are zero.
    seed
        Of that noise.
    """
    from sklearn.manifold import smacof

    scale = 1e-3 * float(distances.mean())
    start = places + np.random.default_rng(seed).normal(scale=scale, size=places.shape)
    found, _ = smacof(
        distances,
        n_components=places.shape[1],
        init=start,
        n_init=1,
        max_iter=1000,
        eps=1e-9,
        normalized_stress=False,
        random_state=seed,
    )
    moved: NDArray[np.float64] = found - found.mean(0)
    return moved
