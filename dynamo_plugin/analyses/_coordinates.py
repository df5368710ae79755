"""Where models lie, so that Euclidean distances are those that an analysis asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["Distance", "model_coordinates"]

Distance: TypeAlias = Literal["theta", "functional"]


def model_coordinates(
    embedding: ModelEmbedding, distance: Distance
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points (model, dimension), and the distances between them (model, model).

    Parameters
    ----------
    embedding
        Its population is read for functional distances.
    distance
        `theta`: the thetas. `functional`: points with these distances, by classical scaling
        (Torgerson 1952, doi:10.1007/BF02288916).

    Raises
    ------
    InvalidInput
        If there is no such distance.
    """
    if distance not in ("theta", "functional"):
        raise InvalidInput(f"distance must be 'theta' or 'functional', got {distance!r}.")
    distances = embedding.distances(distance).to_numpy()
    if distance == "theta":
        return embedding.thetas.double().numpy(), distances
    return _classical_scaling(distances), distances


def _classical_scaling(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (model, dimension) with these Euclidean distances."""
    squared = distances**2
    centred = squared - squared.mean(0) - squared.mean(1, keepdims=True) + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    kept = values > 1e-12 * max(float(values[-1]), 0.0)
    coordinates: NDArray[np.float64] = vectors[:, kept] * np.sqrt(values[kept])
    return coordinates if kept.any() else np.zeros((len(distances), 1))
