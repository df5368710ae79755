"""Projection-weighted canonical correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from dynamo_plugin.metrics._checks import check_choice
from dynamo_plugin.metrics._correlations import Span, check_spans, span_of
from dynamo_plugin.metrics._products import pair_products
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["PWCCA"]

_WEIGHTS: Final = ("absolute", "variance")
_SIDES: Final = ("mean", "first", "second")
_SMALLEST = 1e-4
"""Correlations below this are lost in their squares; such pairs go through singular values."""


@dataclass(frozen=True, slots=True)
class PWCCA(Metric[Span]):
    """Projection-weighted canonical correlation, Σᵢ αᵢ ρᵢ / Σᵢ αᵢ.

    ρᵢ are the canonical correlations, hᵢ the canonical directions of one network, of norm 1 over
    samples, and xⱼ its centred units. Two weightings were published:

    - `absolute`: αᵢ = Σⱼ |<hᵢ, xⱼ>| (Morcos, Raghu and Bengio 2018, arXiv:1806.05759);
    - `variance`: αᵢ = Σⱼ <hᵢ, xⱼ>², the variance that hᵢ explains, to which Kornblith et al. 2019
      (arXiv:1905.00414) relate it: with ρᵢ² in the place of ρᵢ it is the R²
      of linear regression.

    The weights are those of one network, so that the order of two matters; by default the value is
    the mean of both orders. Computed in float64.

    Parameters
    ----------
    weights
        See above.
    side
        Whose weights: `first` (as published), `second`, or the `mean` of both values.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(PWCCA()(x, x @ [[1, 2], [3, 4]] + 5), 12)
    1.0
    """

    kind: ClassVar[Literal["similarity"]] = "similarity"
    reference: ClassVar[str] = "Morcos et al. 2018, arXiv:1806.05759"
    weights: Literal["absolute", "variance"] = "absolute"
    side: Literal["mean", "first", "second"] = "mean"

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, _WEIGHTS)
        check_choice("side", self.side, _SIDES)

    @property
    def symmetric(self) -> bool:
        """Only the mean of both orders."""
        return self.side == "mean"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """One factor, offsets, permutations; rotations where weights are variances."""
        found: set[Invariance] = {"permutation", "scaling", "translation"}
        if self.weights == "variance":
            found.add("orthogonal")
        return frozenset(found)

    def prepare(self, states: ArrayLike) -> Span:
        """Find what the units span, and how they lie in it.

        Parameters
        ----------
        states
            (sample, unit).

        Raises
        ------
        InvalidInput
            If there are fewer than four samples, or no more than directions; if states are not
            finite, or none varies.
        """
        return span_of(states)

    def compare(self, first: Span, second: Span) -> float:
        """Return the weighted correlation of two networks, from 0 to 1; raises as `Metric`."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[Span], second: Sequence[Span] | None = None
    ) -> NDArray[np.float64]:
        """Return the weighted correlation of every two networks; see `Metric.compare_many`."""
        others = first if second is None else second
        check_spans(first, others)
        right = None if second is None else [span.directions for span in second]
        values = np.ones((len(first), len(others)))
        for i, j, products in pair_products([span.directions for span in first], right):
            left, correlations, opposite = _canonical(products)
            of_first = [first[place].loadings for place in i]
            of_second = [others[place].loadings for place in j]
            by_first = self._weighted(left, correlations, of_first)
            by_second = self._weighted(opposite, correlations, of_second)
            sides = {"first": by_first, "second": by_second, "mean": (by_first + by_second) / 2}
            values[i, j] = sides[self.side]
            if second is None:
                reverse = {"first": "second", "second": "first", "mean": "mean"}
                values[j, i] = sides[reverse[self.side]]
        return values

    def _weighted(
        self,
        turns: NDArray[np.float64],
        correlations: NDArray[np.float64],
        loadings: Sequence[NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Return (pair,) values with the weights of one of the two networks."""
        values = np.empty(len(turns))
        for place, (turn, rho, loads) in enumerate(zip(turns, correlations, loadings, strict=True)):
            projected = turn.T @ loads
            weight = np.abs(projected) if self.weights == "absolute" else np.square(projected)
            alpha = weight.sum(1)
            values[place] = alpha @ rho / alpha.sum()
        return values.clip(max=1)


def _canonical(
    products: Floats,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return a singular value decomposition (pair, direction, value), (pair, value), (pair,
    direction, value) of products of directions.

    By the eigenvectors of C Cᵀ, which are found in half the time, where no value is so small that
    its square is lost.
    """
    if products.shape[1] > products.shape[2]:
        right, values, left = _canonical(products.transpose(0, 2, 1))
        return left, values, right
    wide = products.astype(np.float64, copy=False)
    _, left = np.linalg.eigh(wide @ wide.transpose(0, 2, 1))
    left = left[:, :, ::-1]
    right = wide.transpose(0, 2, 1) @ left
    values = np.linalg.norm(right, axis=1)
    lost = values.min(1) < _SMALLEST
    right /= np.where(values < _SMALLEST, 1, values)[:, None, :]
    if lost.any():
        left[lost], values[lost], transposed = np.linalg.svd(wide[lost], full_matrices=False)
        right[lost] = transposed.transpose(0, 2, 1)
    return left, values.clip(max=1), right
