"""Nearest-neighbour overlap: whether the same samples lie next to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._checks import check_choice, check_count
from dynamo_plugin.metrics._states import as_samples, centred, check_same_samples
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["NeighbourOverlap"]

_NEARNESS: Final = ("euclidean", "cosine")
_PIECE = 2**24  # numbers of a (sample, sample) piece


@dataclass(frozen=True, slots=True)
class NeighbourOverlap(Metric["NDArray[np.int64]"]):
    """Mean Jaccard similarity of the sets of the nearest neighbours of every sample.

    Of the k samples nearest to each sample in one network and in the other, the share of those in
    both among those in either (Klabunde, Schumacher, Strohmaier and Lemmerich 2025,
    doi:10.1145/3728458). Of equally near ones the earlier samples count. Chance is about
    k / (2 samples).

    Parameters
    ----------
    neighbours
        k, fewer than samples - 1.
    nearness
        `euclidean`, or `cosine`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(30, 3))
    >>> NeighbourOverlap(neighbours=5)(x, 2 * x[:, ::-1] + 1)
    1.0
    """

    kind: ClassVar[Literal["similarity"]] = "similarity"
    reference: ClassVar[str] = "Klabunde et al. 2025, doi:10.1145/3728458"
    neighbours: int = 10
    nearness: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self) -> None:
        check_count("neighbours", self.neighbours, least=1)
        check_choice("nearness", self.nearness, _NEARNESS)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rotations, permutations, one factor; offsets if by Euclidean distance."""
        found: set[Invariance] = {"orthogonal", "permutation", "scaling"}
        if self.nearness == "euclidean":
            found.add("translation")
        return frozenset(found)

    @property
    def is_metric(self) -> bool:
        """A mean of Jaccard distances keeps the triangle inequality."""
        return True

    def prepare(self, states: ArrayLike) -> NDArray[np.int64]:
        """Find the neighbours.

        Parameters
        ----------
        states
            (sample, unit).

        Returns
        -------
        ndarray
            (sample, neighbour), sorted: sample * samples + neighbour.

        Raises
        ------
        InvalidInput
            If there are too few samples, states are not finite, none varies, or for `cosine` a
            sample's are all zero.
        """
        x = as_samples(states)
        samples = len(x)
        if samples < self.neighbours + 2:
            raise InvalidInput(
                f"Expected at least {self.neighbours + 2} samples, of which {self.neighbours} are "
                f"neighbours; got {samples}. Use more samples or fewer neighbours."
            )
        points = centred(x).T.astype(np.float64)
        if self.nearness == "cosine":
            points = x.astype(np.float64)
            norms = np.linalg.norm(points, axis=1)
            if not norms.all():
                raise InvalidInput(
                    f"Expected samples that have a cosine, but the states of sample "
                    f"{int(norms.argmin())} are zero. Leave it out, or use nearness='euclidean'."
                )
            points = points / norms[:, None]
        nearest = _nearest(points, self.neighbours)
        return np.sort(nearest + samples * np.arange(samples)[:, None], axis=1)

    def compare(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        """Return the overlap of two networks, from 0 to 1; raises as `Metric`."""
        check_same_samples(len(first), len(second))
        samples, count = first.shape
        both = np.isin(first.ravel(), second.ravel(), assume_unique=True)
        shared = both.reshape(samples, count).sum(1)
        return float((shared / (2 * count - shared)).mean())


def _nearest(points: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return (sample, neighbour) places of the nearest others, of equally near ones the first."""
    squares = np.square(points).sum(1)
    scale = squares.max()
    found = []
    size = max(1, _PIECE // len(points))
    for start in range(0, len(points), size):
        rows = np.arange(start, min(start + size, len(points)))
        distances = squares[rows, None] + squares - 2 * points[rows] @ points.T
        # what differs by rounding only is equally near
        distances = np.round(distances / scale, 12)
        distances[np.arange(len(rows)), rows] = np.inf
        candidates = np.partition(distances, count - 1, axis=1)[:, count - 1 : count]
        # the first places among those no farther than the last neighbour, nearer ones before
        order = np.where(distances < candidates, 0, np.where(distances == candidates, 1, 2))
        found.append(np.argsort(order.astype(np.int8), axis=1, kind="stable")[:, :count])
    return np.concatenate(found)
