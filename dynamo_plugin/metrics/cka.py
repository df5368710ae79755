"""Centred kernel alignment: whether two networks find the same samples alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._axes import reduced
from dynamo_plugin.metrics._checks import check_choice, check_positive
from dynamo_plugin.metrics._distances import condensed, squared_distances
from dynamo_plugin.metrics._products import dot_products, pair_products
from dynamo_plugin.metrics._states import as_samples, centred, check_same_samples
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["CKA", "PreparedCKA"]

Estimator = Literal["biased", "unbiased", "debiased"]

_ESTIMATORS: Final = ("biased", "unbiased", "debiased")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedCKA:
    """One network; made by `CKA.prepare`."""

    samples: int
    features: Floats
    """Linear: (unit, sample) centred states. RBF: (pair of samples,) centred kernel of norm 1."""
    squares: NDArray[np.float64]
    """(sample,): diagonal of the linear kernel, where the estimator takes it away."""
    norm: float
    """Square root of the network's HSIC with itself."""


@dataclass(frozen=True, slots=True)
class CKA(Metric[PreparedCKA]):
    """Centred kernel alignment, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).

    Kornblith, Norouzi, Lee and Hinton 2019, arXiv:1905.00414. K and L are the kernels of the two
    networks on the same samples. HSIC is, up to a factor that cancels,

    - `biased`: <HKH, HLH> with H = I - 11ᵀ/n (Gretton et al. 2005, doi:10.1007/11564089_7);
    - `unbiased`: the estimator of Song et al. 2012 (JMLR 13, 1393), as Nguyen, Raghu and Kornblith
      2021 (arXiv:2010.15327) use it;
    - `debiased`: <HKH, HLH> without the diagonals (Lange et al. 2023, PMLR 221,
      "Deep networks as paths on the manifold of neural representations").

    The biased value grows with the number of units over the number of samples even for networks
    that have nothing in common; the other two do not, and can be slightly negative.

    Parameters
    ----------
    kernel
        `linear`, or `rbf`: exp(-d² / 2s²) with s the `bandwidth` times the median distance between
        two samples.
    estimator
        See above.
    bandwidth
        Of `rbf`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(CKA()(x, 2 * x[:, ::-1] + 1), 12)
    1.0
    """

    kind: ClassVar[Literal["similarity"]] = "similarity"
    reference: ClassVar[str] = "Kornblith et al. 2019, arXiv:1905.00414"
    kernel: Literal["linear", "rbf"] = "linear"
    estimator: Estimator = "biased"
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        check_choice("kernel", self.kernel, ("linear", "rbf"))
        check_choice("estimator", self.estimator, _ESTIMATORS)
        check_positive("bandwidth", self.bandwidth)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rotations, permutations, one factor, offsets."""
        return frozenset({"orthogonal", "permutation", "scaling", "translation"})

    def prepare(self, states: ArrayLike) -> PreparedCKA:
        """Centre the states, or their kernel.

        Parameters
        ----------
        states
            (sample, unit).

        Raises
        ------
        InvalidInput
            If there are fewer than four samples, states are not finite, or none varies; for `rbf`
            also where most samples are equal.
        """
        x = as_samples(states)
        samples = len(x)
        deviations = centred(x)
        if self.kernel == "rbf":
            vector = self._kernel_vector(deviations)
            return PreparedCKA(samples, vector, np.zeros(1), 1.0)
        features = reduced(deviations)
        squares = np.zeros(1)
        if self.estimator != "biased":
            squares = np.square(features).sum(0, dtype=np.float64)
        gram = features @ features.T
        own = self._hsic(
            _sum_of_squares(gram[None]), squares @ squares, squares.sum() ** 2, samples
        )
        return PreparedCKA(samples, features, squares, self._root(float(own[0])))

    def compare(self, first: PreparedCKA, second: PreparedCKA) -> float:
        """Return the alignment of two networks, at most 1 for `biased`; raises as `Metric`."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[PreparedCKA], second: Sequence[PreparedCKA] | None = None
    ) -> NDArray[np.float64]:
        """Return the alignment of every two networks; see `Metric.compare_many`."""
        others = first if second is None else second
        for network in others:
            check_same_samples(first[0].samples, network.samples)
        for network in first:
            check_same_samples(network.samples, others[0].samples)
        right = None if second is None else [network.features for network in second]
        left = [network.features for network in first]
        if self.kernel == "rbf":
            values = dot_products(left, right)
        else:
            samples = first[0].samples
            diagonals = np.stack([network.squares for network in first])
            other_diagonals = np.stack([network.squares for network in others])
            shared = diagonals @ other_diagonals.T
            totals = np.outer(diagonals.sum(1), other_diagonals.sum(1))
            values = np.ones((len(first), len(others)))
            for i, j, products in pair_products(left, right):
                hsic = self._hsic(_sum_of_squares(products), shared[i, j], totals[i, j], samples)
                values[i, j] = hsic / [
                    first[a].norm * others[b].norm for a, b in zip(i, j, strict=True)
                ]
                if second is None:
                    values[j, i] = values[i, j]
        if second is None:
            np.fill_diagonal(values, 1.0)
        return values

    def _hsic(
        self,
        products: NDArray[np.float64],
        shared: NDArray[np.float64],
        totals: NDArray[np.float64],
        samples: int,
    ) -> NDArray[np.float64]:
        """Return HSIC up to a factor, from features: no kernel is needed.

        Of centred features every row of the kernel sums to zero, so that what the estimators take
        away are the products of its diagonals alone.
        """
        if self.estimator == "biased":
            return products
        if self.estimator == "debiased":
            return products - shared
        return (
            products - samples / (samples - 2) * shared + totals / ((samples - 1) * (samples - 2))
        )

    def _kernel_vector(self, deviations: Floats) -> Floats:
        """Return the centred kernel as a vector of norm 1: above the diagonal, and the diagonal."""
        samples = deviations.shape[1]
        squared = squared_distances(deviations)
        median = float(np.median(np.sqrt(condensed(squared))))
        if median <= 0:
            raise InvalidInput(
                "Expected samples whose states differ; the median distance between two of them is "
                "0, so that the RBF kernel has no width. Leave repeated samples out, or use the "
                "linear kernel."
            )
        kernel = np.exp(squared / squared.dtype.type(-2 * (self.bandwidth * median) ** 2))
        if self.estimator == "unbiased":
            np.fill_diagonal(kernel, 0)
            rows = kernel.sum(1, dtype=np.float64) / (samples - 2)
            whole = rows.sum() / (samples - 1)
        else:
            rows = kernel.mean(1, dtype=np.float64)
            whole = rows.mean()
        kernel -= (rows[:, None] + (rows - whole)).astype(kernel.dtype)
        diagonal = np.diag(kernel) if self.estimator == "biased" else np.zeros(0, kernel.dtype)
        vector = np.concatenate([condensed(kernel) * kernel.dtype.type(np.sqrt(2)), diagonal])
        norm = self._root(float(dot_products([vector], [vector])[0, 0]))
        vector /= vector.dtype.type(norm)
        return vector

    def _root(self, own: float) -> float:
        if own <= 0:
            raise InvalidInput(
                f"The {self.estimator} estimate of the network's alignment with itself is not "
                "positive: there are too few samples for so many units. Use more samples, or "
                "estimator='biased'."
            )
        return float(np.sqrt(own))


def _sum_of_squares(products: Floats) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.square(products).sum((1, 2), dtype=np.float64)
    return sums
