"""Linear predictivity: how well the states of one network follow from those of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._checks import check_choice, check_count, check_positive
from dynamo_plugin.metrics._products import pair_products
from dynamo_plugin.metrics._states import as_samples, centred, check_same_samples
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Predictivity", "PreparedPredictivity"]

_DIRECTIONS: Final = ("both", "forward", "backward")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPredictivity:
    """One network; made by `Predictivity.prepare`."""

    folds: tuple[NDArray[np.float64], ...]
    """Per fold, (unit, sample) centred states."""
    sums: NDArray[np.float64]
    """(fold, unit): sums over the samples of a fold."""
    means: NDArray[np.float64]
    """(fold, unit): means over the samples of all other folds."""
    solvers: NDArray[np.float64]
    """(fold, unit, unit): inverse of the penalised covariances of all other folds."""
    moments: NDArray[np.float64]
    """(fold, unit, unit): products in a fold, about the means of the others."""


@dataclass(frozen=True, slots=True)
class Predictivity(Metric[PreparedPredictivity]):
    """Cross-validated R² of a ridge regression from one network's states to another's.

    Yamins et al. 2014, doi:10.1073/pnas.1403112111; Schrimpf et al. 2020,
    doi:10.1016/j.neuron.2020.07.040; ridge regression: Hoerl and Kennard 1970,
    doi:10.1080/00401706.1970.10488634. R² is 1 minus the squared error of all units on the samples
    that a regression has not seen, over their squared distance from the mean of those it has; at
    most 1, and negative where predictions are worse than that mean. Computed in float64, from
    products of states: no regression is run on samples.

    Parameters
    ----------
    direction
        `forward`: the first network predicts the second; `backward`; or `both`, the mean.
    penalty
        Of the ridge, in units of the mean variance of the predicting units.
    folds
        Parts that are predicted from the others in turn.
    seed
        Of the assignment of samples to folds; None cuts them as they come, which is stricter where
        neighbouring samples are alike, such as steps of one sequence.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(60, 3))
    >>> forward = Predictivity(direction="forward", penalty=1e-9)
    >>> round(forward(x, x[:, :1]), 6), forward(x[:, :1], x) < 0.5
    (1.0, True)
    """

    kind: ClassVar[Literal["similarity"]] = "similarity"
    reference: ClassVar[str] = "Yamins et al. 2014, doi:10.1073/pnas.1403112111"
    direction: Literal["both", "forward", "backward"] = "both"
    penalty: float = 1e-3
    folds: int = 5
    seed: int | None = 0

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, _DIRECTIONS)
        check_positive("penalty", self.penalty)
        check_count("folds", self.folds, least=2)
        if self.seed is not None:
            check_count("seed", self.seed, least=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rotations, permutations, one factor, offsets."""
        return frozenset({"orthogonal", "permutation", "scaling", "translation"})

    @property
    def symmetric(self) -> bool:
        """Only both directions together."""
        return self.direction == "both"

    @property
    def value_of_itself(self) -> float | None:
        """Less than 1, for the ridge shrinks: how much depends on the network."""
        return None

    def prepare(self, states: ArrayLike) -> PreparedPredictivity:
        """Cut the states into folds, and invert the covariances of their complements.

        Parameters
        ----------
        states
            (sample, unit).

        Raises
        ------
        InvalidInput
            If there are too few samples, states are not finite, or none varies.
        """
        x = as_samples(states)
        samples = len(x)
        if samples < 2 * self.folds:
            raise InvalidInput(
                f"Expected at least {2 * self.folds} samples for {self.folds} folds, got "
                f"{samples}. Use more samples or fewer folds."
            )
        order = np.arange(samples)
        if self.seed is not None:
            order = np.random.default_rng(self.seed).permutation(samples)
        deviations = centred(x).astype(np.float64)
        parts = tuple(
            np.ascontiguousarray(deviations[:, places])
            for places in np.array_split(order, self.folds)
        )
        sizes = np.array([part.shape[1] for part in parts])
        sums = np.stack([part.sum(1) for part in parts])
        others = samples - sizes
        means = (sums.sum(0) - sums) / others[:, None]
        within = np.stack([part @ part.T for part in parts])
        across = within.sum(0) - within - others[:, None, None] * _outer(means, means)
        variance = np.trace(across, axis1=1, axis2=2) / len(deviations)
        if (variance <= 0).any():
            raise InvalidInput(
                "Expected states that vary in every fold; they are constant outside of one. Use "
                "more samples, or fewer folds."
            )
        ridge = self.penalty * variance[:, None, None] * np.eye(len(deviations))
        return PreparedPredictivity(
            parts,
            sums,
            means,
            np.linalg.inv(across + ridge),
            _about(within, sums, sums, means, means, sizes),
        )

    def compare(self, first: PreparedPredictivity, second: PreparedPredictivity) -> float:
        """Return R², at most 1; raises as `Metric`."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self,
        first: Sequence[PreparedPredictivity],
        second: Sequence[PreparedPredictivity] | None = None,
    ) -> NDArray[np.float64]:
        """Return R² of every two networks; see `Metric.compare_many`."""
        others = first if second is None else second
        for network in (*first, *others):
            check_same_samples(_count_samples(first[0]), _count_samples(network))
        values = np.empty((len(first), len(others)))
        products = (
            pair_products(
                [network.folds[fold] for network in first],
                None if second is None else [network.folds[fold] for network in second],
            )
            for fold in range(self.folds)
        )
        for batches in zip(*products, strict=True):
            i, j, _ = batches[0]
            for place, (a, b) in enumerate(zip(i, j, strict=True)):
                within = np.stack([batch[2][place] for batch in batches])
                forward, backward = self._scores(first[a], others[b], within, all_of=second is None)
                values[a, b] = self._choose(forward, backward)
                if second is None:
                    values[b, a] = self._choose(backward, forward)
        if second is None:
            for place, network in enumerate(first):
                within = np.stack([part @ part.T for part in network.folds])
                forward, _ = self._scores(network, network, within, all_of=True)
                values[place, place] = forward
        return values

    def _choose(self, forward: float, backward: float) -> float:
        if self.direction == "both":
            return (forward + backward) / 2
        return forward if self.direction == "forward" else backward

    def _scores(
        self,
        first: PreparedPredictivity,
        second: PreparedPredictivity,
        within: NDArray[np.float64],
        *,
        all_of: bool,
    ) -> tuple[float, float]:
        """Return R² of the second from the first and of the first from the second.

        `within` are (fold, unit, unit) products of both in each fold.
        """
        sizes = np.array([part.shape[1] for part in first.folds])
        others = sizes.sum() - sizes
        seen = within.sum(0) - within - others[:, None, None] * _outer(first.means, second.means)
        unseen = _about(within, first.sums, second.sums, first.means, second.means, sizes)
        forward = backward = np.nan
        if all_of or self.direction != "backward":
            forward = _score(first, second, seen, unseen)
        if all_of or self.direction != "forward":
            backward = _score(second, first, seen.swapaxes(1, 2), unseen.swapaxes(1, 2))
        return forward, backward


def _score(
    first: PreparedPredictivity,
    second: PreparedPredictivity,
    seen: NDArray[np.float64],
    unseen: NDArray[np.float64],
) -> float:
    weights = first.solvers @ seen
    explained = np.einsum("fij,fij->", weights, 2 * unseen - first.moments @ weights)
    total = np.trace(second.moments, axis1=1, axis2=2).sum()
    return float(explained / total)


def _about(
    within: NDArray[np.float64],
    sums: NDArray[np.float64],
    other_sums: NDArray[np.float64],
    means: NDArray[np.float64],
    other_means: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return (fold, unit, unit) products about means that are not those of the fold."""
    shifted: NDArray[np.float64] = (
        within
        - _outer(sums, other_means)
        - _outer(means, other_sums)
        + sizes[:, None, None] * _outer(means, other_means)
    )
    return shifted


def _outer(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    return first[:, :, None] * second[:, None, :]


def _count_samples(network: PreparedPredictivity) -> int:
    return sum(part.shape[1] for part in network.folds)
