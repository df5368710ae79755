"""Mean canonical correlation, and the mean of its square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._axes import singular_values
from dynamo_plugin.metrics._checks import check_count, check_share
from dynamo_plugin.metrics._correlations import Span, check_spans, span_of
from dynamo_plugin.metrics._products import pair_products
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["CCA", "CCAR2", "SVCCA"]


@dataclass(frozen=True, slots=True)
class CCA(Metric[Span]):
    """Mean canonical correlation (Hotelling 1936, doi:10.1093/biomet/28.3-4.321).

    The correlations of the pairs of directions, one in the span of each network's
    centred units, that correlate most, averaged over as many as the smaller network has
    directions. With few samples per unit they are large for networks that have nothing in common:
    about sqrt(units / samples) each. Computed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(CCA()(x, x @ [[1, 2], [3, 4]] + 5), 12)
    1.0
    """

    kind: ClassVar[Literal["similarity"]] = "similarity"
    reference: ClassVar[str] = "Hotelling 1936, doi:10.1093/biomet/28.3-4.321"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """All invertible maps, and offsets."""
        return frozenset({"affine", "orthogonal", "permutation", "scaling", "translation"})

    def prepare(self, states: ArrayLike) -> Span:
        """Find what the units span.

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
        """Return the mean of two networks, from 0 to 1; raises as `Metric`."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[Span], second: Sequence[Span] | None = None
    ) -> NDArray[np.float64]:
        """Return the mean of every two networks; see `Metric.compare_many`."""
        others = first if second is None else second
        check_spans(first, others)
        right = None if second is None else [span.directions for span in second]
        values = np.ones((len(first), len(others)))
        for i, j, products in pair_products([span.directions for span in first], right):
            values[i, j] = self._mean(products)
            if second is None:
                values[j, i] = values[i, j]
        return values

    def _mean(self, products: Floats) -> NDArray[np.float64]:
        """Return (pair,) means, from (pair, direction, direction) products of directions."""
        means: NDArray[np.float64] = singular_values(products).clip(max=1).mean(-1)
        return means


@dataclass(frozen=True, slots=True)
class CCAR2(CCA):
    """Mean squared canonical correlation, R²_CCA.

    Kornblith et al. 2019, arXiv:1905.00414, table 1. The share of variance that the span of the
    one network explains of the whitened units of the other, of that one which has fewer
    directions.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(CCAR2()(x, x @ [[1, 2], [3, 4]] + 5), 12)
    1.0
    """

    reference: ClassVar[str] = "Kornblith et al. 2019, arXiv:1905.00414"

    def _mean(self, products: Floats) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = np.square(products).sum((1, 2)) / min(products.shape[1:])
        return shares.clip(max=1)


@dataclass(frozen=True, slots=True)
class SVCCA(CCA):
    """Mean canonical correlation of leading directions.

    Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017, arXiv:1706.05806: the centred states of each
    network are first reduced to the directions in which they vary most.

    Parameters
    ----------
    directions
        How many; by default 20, or all that the rank of the states allows.
    variance
        Instead of a number: as few as hold this share of the variance, such as 0.99, which is
        what the paper does.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3)) * [9, 9, 1]
    >>> round(SVCCA(directions=2)(x, 2 * x[:, ::-1]), 12)
    1.0
    """

    reference: ClassVar[str] = "Raghu et al. 2017, arXiv:1706.05806"
    directions: int | None = None
    variance: float | None = None

    def __post_init__(self) -> None:
        if self.directions is not None:
            check_count("directions", self.directions, least=1)
        if self.variance is not None:
            check_share("variance", self.variance)
            if self.directions is not None or self.variance == 0:
                raise InvalidInput(
                    "Expected either a number of directions or a share of the variance above 0, "
                    f"got directions={self.directions} and variance={self.variance}."
                )

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rotations, permutations, one factor, offsets: other maps change what varies most."""
        return frozenset({"orthogonal", "permutation", "scaling", "translation"})

    def prepare(self, states: ArrayLike) -> Span:
        """Find the leading directions.

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
        default = 20 if self.variance is None else None
        return span_of(
            states,
            directions=default if self.directions is None else self.directions,
            variance=self.variance,
        )
