"""Distances that only an embedding has: between thetas, and between the networks at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._states import as_array
from dynamo_plugin.registry.interfaces import Invariance, Metric, Reads

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["FunctionalDistance", "PullbackDistance", "Rendered", "ThetaDistance"]

_REFERENCE = "Cotler et al. 2023, arXiv:2302.14078"

_PIECE = 4 * 2**20
"""Numbers of all networks that are compared at once."""


@dataclass(frozen=True, slots=True)
class ThetaDistance(Metric["NDArray[np.float64]"]):
    """Euclidean distance between thetas (Cotler et al. 2023, arXiv:2302.14078).

    The distance that `ModelEmbedding.distances("theta")` gives.

    Examples
    --------
    >>> ThetaDistance()([0.0, 3.0], [4.0, 0.0])
    5.0
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = _REFERENCE
    reads: ClassVar[Reads] = "theta"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """None: thetas of one embedding share their axes."""
        return frozenset()

    @property
    def is_metric(self) -> bool:
        """Euclidean distances keep the triangle inequality."""
        return True

    def prepare(self, states: ArrayLike) -> NDArray[np.float64]:
        """Check a theta.

        Parameters
        ----------
        states
            (embedding_dim,), the theta of one network.

        Raises
        ------
        InvalidInput
            If it has another number of axes, or is not finite.
        """
        return as_array(states, axes=("dimension",), what="thetas").astype(np.float64)

    def compare(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        """Return the distance of two networks.

        Raises
        ------
        InvalidInput
            If their thetas have different lengths.
        """
        if len(first) != len(second):
            raise InvalidInput(
                f"Expected thetas of the same embedding, got {len(first)} and {len(second)} "
                "dimensions."
            )
        return float(np.linalg.norm(first - second))


@dataclass(frozen=True, slots=True)
class PullbackDistance(ThetaDistance):
    """Distance between thetas in the metric that they have where they act.

    G = E[JᵀJ] with J the derivative of the rendered states by theta: the mean over networks and
    held-out inputs, so that (a - b)ᵀ G (a - b) is to first order the mean squared difference of
    what the networks at a and b do (pull-back metric; Arvanitidis, Hansen and Hauberg 2018,
    arXiv:1710.11379). The distance that `ModelEmbedding.distances("pullback")` gives.

    Prepared of coordinates in which G is the unit matrix, in which it is Euclidean.
    """

    reference: ClassVar[str] = "Arvanitidis et al. 2018, arXiv:1710.11379"
    reads: ClassVar[Reads] = "pullback"


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """What one rendered network does; made by `FunctionalDistance.prepare`."""

    shapes: tuple[tuple[int, int], ...]
    """(row, unit) of every stage."""
    values: Floats
    """(number,): all stages, scaled so that the square of a difference is the mean over rows and
    units of a stage, averaged over stages."""


@dataclass(frozen=True, slots=True)
class FunctionalDistance(Metric[Rendered]):
    """Root mean square difference of what two rendered networks do: sqrt E‖h(θ) - h(θ')‖².

    The mean is over inputs, steps and units of a stage of the meta-model, then over stages. States
    of rendered networks lie in one space, so that they are compared as they are (Cotler et al.
    2023, arXiv:2302.14078). The distance that `ModelEmbedding.distances("functional")` gives.

    Examples
    --------
    >>> FunctionalDistance()([[0.0, 1.0], [2.0, 3.0]], [[2.0, 3.0], [4.0, 5.0]])
    2.0
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = _REFERENCE
    reads: ClassVar[Reads] = "rendered"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """None: rendered networks share their units."""
        return frozenset()

    @property
    def is_metric(self) -> bool:
        """Euclidean distances keep the triangle inequality."""
        return True

    def prepare(self, states: ArrayLike | Sequence[ArrayLike]) -> Rendered:
        """Lay the states of a rendered network out as one vector.

        Parameters
        ----------
        states
            One (row, unit) array per stage of the meta-model; or the one array where there is only
            one stage.

        Raises
        ------
        InvalidInput
            If an array has another number of axes, or is not finite.
        """
        stages = [as_array(stage, axes=("row", "unit")) for stage in _as_stages(states)]
        return Rendered(
            tuple((stage.shape[0], stage.shape[1]) for stage in stages),
            np.concatenate([stage.ravel() / (stage.size * len(stages)) ** 0.5 for stage in stages]),
        )

    def compare(self, first: Rendered, second: Rendered) -> float:
        """Return the distance of two networks.

        Raises
        ------
        InvalidInput
            If they were rendered on different inputs, or at thetas of different embeddings.
        """
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[Rendered], second: Sequence[Rendered] | None = None
    ) -> NDArray[np.float64]:
        """Return the distance of every two networks; see `Metric.compare_many`."""
        networks = [*first, *(second or ())]
        for network in networks:
            if network.shapes != networks[0].shapes:
                raise InvalidInput(
                    "Expected states of the same inputs and the same meta-model, got "
                    f"(row, unit) {networks[0].shapes} and {network.shapes}."
                )
        count, numbers = len(networks), len(networks[0].values)
        gram = np.zeros((count, count))
        piece = max(_PIECE // count, 1)
        for start in range(0, numbers, piece):
            part = np.stack([network.values[start : start + piece] for network in networks])
            # Centred over networks, which no difference sees, so that nothing cancels below.
            rows = part.astype(np.float64) - part.mean(0, dtype=np.float64)
            gram += rows @ rows.T
        norms = np.diag(gram)
        squared = norms[:, None] + norms - 2 * gram
        distances = np.sqrt(squared.clip(min=0))
        if second is not None:
            apart: NDArray[np.float64] = distances[: len(first), len(first) :]
            return apart
        np.fill_diagonal(distances, 0)
        square: NDArray[np.float64] = (distances + distances.T) / 2
        return square


def _as_stages(states: Any) -> Sequence[ArrayLike]:
    """Return the arrays of all stages, of the one array or of several."""
    if isinstance(states, Sequence) and states and np.ndim(states[0]) == 2:
        return list(states)
    return [states]
