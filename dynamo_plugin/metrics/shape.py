"""Generalised shape metrics: between Procrustes and canonical correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from dynamo_plugin.metrics._axes import principal_axes
from dynamo_plugin.metrics._checks import check_choice, check_share
from dynamo_plugin.metrics._rotation import Turnable, rotation_distances
from dynamo_plugin.metrics._states import as_samples, centred
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ShapeMetric"]

_MEASURES: Final = ("angular", "euclidean")


@dataclass(frozen=True, slots=True)
class ShapeMetric(Metric[Turnable]):
    """Generalised shape metric with partial whitening.

    Williams, Kunz, Kornblith and Linderman 2021, arXiv:2110.14739. Centred states X
    become φ(X) = X (a I + (1 - a) (XᵀX)^(-1/2)), brought to Frobenius norm 1; the distance is that
    of Procrustes between φ(X) and φ(Y). With a (`alpha`) 1 it is Procrustes itself; 0 whitens: for
    r and s directions it is the arc cosine of the sum of canonical correlations over sqrt(r s).

    Between the two, what a does depends on the scale of the states and on the number of
    samples. With `relative=True`, which is ours, singular values are divided by their root mean
    square first, and it does not.

    Parameters
    ----------
    alpha
        From 0 to 1.
    measure
        `angular`, or `euclidean`.
    relative
        Whether alpha is relative to the scale of the states.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> mixed = x @ [[1, 2, 0], [0, 1, 3], [1, 0, 1]]
    >>> round(ShapeMetric(alpha=0)(x, mixed), 7), ShapeMetric(alpha=1)(x, mixed) > 0.1
    (0.0, True)
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "Williams et al. 2021, arXiv:2110.14739"
    alpha: float = 0.5
    measure: Literal["angular", "euclidean"] = "angular"
    relative: bool = False

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_choice("measure", self.measure, _MEASURES)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rotations, permutations, offsets; a factor if alpha is relative; all maps if it is 0."""
        found: set[Invariance] = {"orthogonal", "permutation", "translation"}
        if self.relative or self.alpha in (0, 1):
            found.add("scaling")
        if self.alpha == 0:
            found.add("affine")
        return frozenset(found)

    @property
    def is_metric(self) -> bool:
        """Every alpha keeps the triangle inequality."""
        return True

    def prepare(self, states: ArrayLike) -> Turnable:
        """Whiten the states in part.

        Parameters
        ----------
        states
            (sample, unit).

        Raises
        ------
        InvalidInput
            If there are fewer than four samples, states are not finite, or none varies.
        """
        x = as_samples(states)
        deviations = centred(x)
        axes = principal_axes(deviations)
        scales = axes.scales
        if self.relative:
            scales = scales / np.sqrt(np.square(scales).mean())
        else:
            scales = scales * float(np.linalg.norm(x.astype(np.float64) - x.mean(0, np.float64)))
        weights = self.alpha * scales + (1 - self.alpha)
        weights = weights / np.linalg.norm(weights)
        return Turnable((weights[:, None] * axes.directions).astype(x.dtype))

    def compare(self, first: Turnable, second: Turnable) -> float:
        """Return the distance of two networks; raises as `Metric`."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[Turnable], second: Sequence[Turnable] | None = None
    ) -> NDArray[np.float64]:
        """Return the distance of every two networks; see `Metric.compare_many`."""
        return rotation_distances(first, second, self.measure)
