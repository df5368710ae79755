"""Dynamical similarity analysis: whether two networks move alike, whatever their states mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._axes import principal_axes
from dynamo_plugin.metrics._checks import check_choice, check_count, check_not_negative
from dynamo_plugin.metrics._conjugation import best_residuals
from dynamo_plugin.metrics._states import as_array
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["DSA", "PreparedDSA"]

_MEASURES: Final = ("angular", "euclidean", "wasserstein")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedDSA:
    """One network; made by `DSA.prepare`."""

    operator: NDArray[np.float64]
    """(direction, direction): v(t + 1) ≈ operator @ v(t), in whitened delay coordinates."""
    eigenvalues: NDArray[np.complex128]
    """(direction,) of the operator."""


@dataclass(frozen=True, slots=True)
class DSA(Metric[PreparedDSA]):
    """Dynamical similarity analysis.

    Ostrow, Eisen, Kozachkov and Fiete 2023, arXiv:2306.10168. States with their `delays` - 1
    predecessors are reduced to their leading directions, in which they have norm 1; a linear map A
    takes every step to the next one (dynamic mode decomposition, by least squares). Maps of two
    networks are compared up to an orthogonal change of basis C:

    - `angular`: min arccos <A, C B Cᵀ> / (‖A‖ ‖B‖);
    - `euclidean`: min ‖A - C B Cᵀ‖;
    - `wasserstein`: between the eigenvalues of A and B as points of the complex plane, the root of
      the mean squared distance under the best assignment, which needs no C.

    The minimum over C is searched from several starts, and can be missed: what is found is then too
    large, by some per cent where there are 24 directions. More `starts` find smaller ones. Networks
    need not have seen the same samples. Where one has fewer directions, its map is 0 on the rest.

    Parameters
    ----------
    measure
        See above.
    delays
        States per delay vector; 1 for the state alone.
    interval
        Steps between them.
    rank
        Directions kept, 24 by default, or as many as there are.
    ridge
        Added to the diagonal of the least-squares problem, whose directions have norm 1.
    starts
        Random starts of the search, and as many from eigenvectors with random signs.
    seed
        Of those.

    Examples
    --------
    >>> import numpy as np
    >>> time = np.arange(40) / 3
    >>> slow = np.stack([np.cos(time), np.sin(time)], -1)[None]
    >>> fast = np.stack([np.cos(2 * time), np.sin(2 * time)], -1)[None]
    >>> round(DSA()(slow, -3 * slow), 6), round(DSA()(slow, fast), 3)
    (0.0, 0.333)
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "Ostrow et al. 2023, arXiv:2306.10168"
    reads: ClassVar[Literal["trials"]] = "trials"
    measure: Literal["angular", "euclidean", "wasserstein"] = "angular"
    delays: int = 1
    interval: int = 1
    rank: int = 24
    ridge: float = 0.0
    starts: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, _MEASURES)
        for name in ("delays", "interval", "rank", "starts"):
            check_count(name, getattr(self, name), least=1)
        check_count("seed", self.seed, least=0)
        check_not_negative("ridge", self.ridge)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rotations, permutations, one factor."""
        return frozenset({"orthogonal", "permutation", "scaling"})

    @property
    def is_metric(self) -> bool:
        """The minima keep the triangle inequality; claimed where they are not searched for."""
        return self.measure == "wasserstein"

    def prepare(self, states: ArrayLike | Sequence[ArrayLike]) -> PreparedDSA:
        """Fit the linear map.

        Parameters
        ----------
        states
            (trial, time, unit), or one (time, unit) array per trial. Trials with fewer than
            (delays - 1) * interval + 2 steps say nothing about dynamics, and do not count.

        Raises
        ------
        InvalidInput
            If states are not finite, all zero, or there are no more steps than directions.
        """
        trials = _as_trials(states)
        reach = (self.delays - 1) * self.interval
        delayed = [
            np.concatenate(
                [
                    trial[reach - lag : len(trial) - lag]
                    for lag in range(0, reach + 1, self.interval)
                ],
                axis=1,
            )
            for trial in trials
            if len(trial) >= reach + 2
        ]
        if not delayed:
            raise InvalidInput(
                f"Expected trials of at least {reach + 2} steps, for {self.delays} delays of "
                f"{self.interval}; the longest has {max(map(len, trials))}. Use fewer delays."
            )
        rows = np.concatenate(delayed)
        size = float(np.abs(rows).max())
        if size == 0:
            raise InvalidInput("Expected states that move; all are zero. Choose another site.")
        axes = principal_axes(np.ascontiguousarray(rows.T / size), directions=self.rank)
        ends = np.cumsum([len(block) for block in delayed])
        last = np.zeros(len(rows), bool)
        last[ends - 1] = True
        before = axes.directions[:, ~last]
        after = axes.directions[:, np.roll(~last, 1)]
        if before.shape[1] <= len(before):
            raise InvalidInput(
                f"Expected more steps than directions, got {before.shape[1]} steps and "
                f"{len(before)} directions: any dynamics fit those. Use more trials or a smaller "
                "rank."
            )
        gram = before @ before.T + self.ridge * np.eye(len(before))
        operator: NDArray[np.float64] = np.linalg.lstsq(gram, before @ after.T, rcond=None)[
            0
        ].T.astype(np.float64)
        return PreparedDSA(operator, np.linalg.eigvals(operator).astype(np.complex128))

    def compare(self, first: PreparedDSA, second: PreparedDSA) -> float:
        """Return the distance of two networks."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[PreparedDSA], second: Sequence[PreparedDSA] | None = None
    ) -> NDArray[np.float64]:
        """Return the distance of every two networks; see `Metric.compare_many`."""
        others = first if second is None else second
        values = np.zeros((len(first), len(others)))
        pairs = [
            (i, j)
            for i in range(len(first))
            for j in range(len(others) if second is not None else i)
        ]
        if self.measure == "wasserstein":
            for i, j in pairs:
                values[i, j] = _spectral_distance(first[i].eigenvalues, others[j].eigenvalues)
        elif pairs:
            found = self._searched([first[i] for i, _ in pairs], [others[j] for _, j in pairs])
            for (i, j), value in zip(pairs, found, strict=True):
                values[i, j] = value
        if second is None:
            for i, j in pairs:
                values[j, i] = values[i, j]
        return values

    def _searched(
        self, first: Sequence[PreparedDSA], second: Sequence[PreparedDSA]
    ) -> NDArray[np.float64]:
        """Return (pair,) distances."""
        size = max(len(network.operator) for network in (*first, *second))
        left, right = np.zeros((2, len(first), size, size))
        for place, pair in enumerate(zip(first, second, strict=True)):
            # in an order of their own, so that a search that fails fails the same way both ways
            operators = sorted((network.operator for network in pair), key=lambda a: a.tobytes())
            for matrices, operator in zip((left, right), operators, strict=True):
                matrices[place, : len(operator), : len(operator)] = operator
        a, b = (np.linalg.norm(matrices, axis=(1, 2)) for matrices in (left, right))
        if not a.all() or not b.all():
            raise InvalidInput(
                "Expected dynamics; a network's states are zero after every step. Choose another "
                "site, or other samples."
            )
        residuals = best_residuals(
            left / a[:, None, None], right / b[:, None, None], starts=self.starts, seed=self.seed
        )
        if self.measure == "angular":
            # half the chord is the sine of half the angle
            angles: NDArray[np.float64] = 2 * np.arcsin((residuals / 2).clip(max=1))
            return angles
        apart: NDArray[np.float64] = np.sqrt((a - b) ** 2 + a * b * residuals**2)
        return apart


def _as_trials(states: Any) -> list[NDArray[np.float64]]:
    if isinstance(states, list | tuple):
        trials = [as_array(trial, axes=("time", "unit")) for trial in states]
        if not trials or len({trial.shape[1] for trial in trials}) > 1:
            raise InvalidInput(
                "Expected trials of equally many units, all of shape (time, unit); got "
                f"{[trial.shape for trial in trials[:5]]}."
            )
    else:
        trials = list(as_array(states, axes=("trial", "time", "unit")))
    return [trial.astype(np.float64, copy=False) for trial in trials]


def _spectral_distance(first: NDArray[np.complex128], second: NDArray[np.complex128]) -> float:
    """Return the 2-Wasserstein distance of two sets of points, each of equal weights."""
    # repeated until there are equally many, an assignment is an optimal transport
    count = lcm(len(first), len(second))
    a, b = (
        np.repeat(np.column_stack([z.real, z.imag]), count // len(z), axis=0)
        for z in (first, second)
    )
    costs = cdist(a, b, "sqeuclidean")
    rows, columns = linear_sum_assignment(costs)
    return float(np.sqrt(costs[rows, columns].mean()))
