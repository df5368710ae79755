"""Paths of thetas, and how long they are by what the networks on them do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from dynamo_plugin.analyses._geodesic import path_energy, shortest_path
from dynamo_plugin.embedding.geometry import pairs_at_once, pullback_metric, rendered_states

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["FunctionalMetric", "ThetaPath", "theta_paths"]

FINER = 4
"""Pieces that every step of a path is cut into to measure its length."""

PLACES = 4
"""Points of a path where the metric is looked at before the search, at most."""

WEAKEST = 1e-8
"""Directions that change the states less than this, as a share of the square of the strongest, are
taken for as strong."""


@dataclass(frozen=True, slots=True, eq=False)
class ThetaPath:
    """A path of thetas."""

    thetas: NDArray[np.float64]
    """(point, embedding_dim)."""
    distances: NDArray[np.float64]
    """(point,): how far along the path each point is, by what the networks do."""
    energy: float
    """See `path_energy`."""
    converged: bool | None
    """Whether the search for it came to rest; None if there was none."""
    iterations: int | None
    """How many were made."""
    note: str
    """What is to be said about it."""


class FunctionalMetric:
    """Distances between the networks at thetas on some samples: those of their rendered states.

    The distance of two thetas is the root mean square difference of the states, over real rows,
    units and stages, as in `ModelEmbedding.distances("functional")`.

    Parameters
    ----------
    embedding
        Its population is read.
    samples
        (sample,) indices, at least one.
    """

    def __init__(self, embedding: ModelEmbedding, samples: NDArray[np.int64]) -> None:
        self.embedding = embedding
        self.samples = torch.as_tensor(samples)
        self._pairs = pairs_at_once(embedding, self.samples)
        self._rows = int(embedding.population.lengths[samples].sum())

    def energy(self, path: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the energy of a path (point, embedding_dim) and its gradient."""
        energy, gradient = 0.0, np.zeros_like(path)
        for states, share in self._parts(len(path)):
            value, slope = path_energy(states, path, dtype=self.embedding.thetas.dtype)
            energy += share * value
            gradient += share * slope
        return energy, gradient

    @torch.no_grad()
    def distances(self, path: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (point,): how far along a path its points are; the last is its length.

        Every step is measured in several pieces, so that a step that bends is not cut short.
        """
        pieces = (len(path) - 1) * FINER
        fine = _on_path(path, np.arange(pieces + 1) / pieces)
        thetas = torch.as_tensor(fine, dtype=self.embedding.thetas.dtype)
        squares = np.zeros(pieces)
        for states, share in self._parts(len(fine)):
            steps = states(thetas).diff(dim=0).double()
            squares += share * steps.square().sum(1).numpy()
        lengths = np.sqrt(squares).reshape(-1, FINER).sum(1)
        return np.concatenate([[0.0], np.cumsum(lengths)])

    def basis(self, thetas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (embedding_dim, direction): steps that change the states alike at some thetas.

        The inverse root of the pull-back metric, on the samples as `pullback_metric` takes them.
        """
        here = dataclasses.replace(
            self.embedding,
            thetas=torch.as_tensor(thetas, dtype=self.embedding.thetas.dtype),
            held_out_samples=self.samples,
            bound_population=self.embedding.population,
        )
        strengths, axes = np.linalg.eigh(pullback_metric(here))
        if not strengths[-1] > 0:
            return np.eye(len(strengths))
        units: NDArray[np.float64] = axes / np.sqrt(np.maximum(strengths, WEAKEST * strengths[-1]))
        return units

    def _parts(self, points: int) -> list[tuple[Callable[[Tensor], Tensor], float]]:
        """Return what renders some of the samples at a time, and the share of the rows they are."""
        population = self.embedding.population

        def part(chunk: Tensor) -> tuple[Callable[[Tensor], Tensor], float]:
            batch = population.inputs.batch(chunk.numpy())
            rows = int(batch.lengths.sum())
            return (
                lambda thetas: rendered_states(self.embedding, batch.values, batch.lengths, thetas),
                rows / self._rows,
            )

        return [part(chunk) for chunk in self.samples.split(max(self._pairs // points, 1))]


def theta_paths(
    metric: FunctionalMetric,
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    kinds: Sequence[str],
    points: int,
    iterations: int,
    progress: bool,
) -> dict[str, ThetaPath]:
    """Return the straight path and the geodesic from one theta to another, those asked for.

    Parameters
    ----------
    metric
        What is short.
    first, second
        (embedding_dim,): the ends.
    kinds
        `linear`, `geodesic` or both; others are no paths of thetas.
    points
        Of every path.
    iterations
        Of the search for the geodesic, at most.
    progress
        Whether to show a bar on stderr.

    Raises
    ------
    InvalidInput
        If states along the way are not finite.
    """
    found: dict[str, ThetaPath] = {}
    if not {"linear", "geodesic"} & set(kinds):
        return found
    positions = np.linspace(0, 1, points)
    line = np.outer(1 - positions, first) + np.outer(positions, second)
    distances = metric.distances(line)
    length = float(distances[-1])
    note = "" if length > 0 else "the networks at both ends do the same on these samples"
    if "linear" in kinds:
        found["linear"] = ThetaPath(line, distances, metric.energy(line)[0], None, None, note)
    if "geodesic" not in kinds:
        return found
    # On the straight line, with steps of one length: of its paths the one of least energy.
    even = np.interp(np.linspace(0, length, points), distances, positions) if length else positions
    start = np.outer(1 - even, first) + np.outer(even, second)
    start[[0, -1]] = line[[0, -1]]
    basis = metric.basis(start[:: -(-points // PLACES)])
    with tqdm(total=iterations, desc="geodesic", unit="step", disable=not progress) as bar:
        path = shortest_path(
            metric.energy, start, basis=basis, iterations=iterations, on_iteration=bar.update
        )
    if not path.converged:
        note = (
            f"the search for the geodesic ended before it came to rest, after {path.iterations} "
            f"iterations ({path.message}); use more geodesic_steps"
        )
    thetas, energy, along = path.points, path.energy, metric.distances(path.points)
    if along[-1] > length:
        thetas, energy, along = line, metric.energy(line)[0], distances
        note = "; ".join(
            [*filter(None, [note]), "the straight path is as short as any that was found"]
        )
    found["geodesic"] = ThetaPath(thetas, along, energy, path.converged, path.iterations, note)
    return found


def _on_path(path: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (position, dimension): where a path (point, dimension) is, from 0 to 1."""
    places = np.linspace(0, 1, len(path))
    found = [np.interp(positions, places, path[:, dim]) for dim in range(path.shape[1])]
    return np.stack(found, axis=1)
