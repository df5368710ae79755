"""Orthogonal Procrustes: how far two networks are apart once one is rotated onto the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from dynamo_plugin.metrics._axes import reduced
from dynamo_plugin.metrics._checks import check_choice
from dynamo_plugin.metrics._rotation import Measure, Turnable, rotation_distances
from dynamo_plugin.metrics._states import as_samples, centred
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Procrustes"]

_MEASURES: Final = ("angular", "euclidean", "squared")


@dataclass(frozen=True, slots=True)
class Procrustes(Metric[Turnable]):
    """Orthogonal Procrustes distance (Schönemann 1966, doi:10.1007/BF02289451).

    States X and Y are centred and brought to Frobenius norm 1. With ‖XᵀY‖_* the sum of the
    singular values, the largest inner product of X and YQ over all rotations and reflections Q:

    - `angular`: arccos ‖XᵀY‖_* (Williams, Kunz, Kornblith and Linderman 2021, arXiv:2110.14739);
    - `euclidean`: min ‖X - YQ‖ = sqrt(2 - 2 ‖XᵀY‖_*);
    - `squared`: its square (Ding, Denain and Steinhardt 2021, arXiv:2108.01661), which does not
      keep the triangle inequality.

    Where networks have different numbers of units, the smaller has units that are zero.

    Parameters
    ----------
    measure
        See above.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.eye(6)[:, :2]
    >>> round(Procrustes()(x, 3 * x[:, ::-1] + 1), 7)
    0.0
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "Schönemann 1966, doi:10.1007/BF02289451"
    measure: Measure = "angular"

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, _MEASURES)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rotations, permutations, one factor, offsets."""
        return frozenset({"orthogonal", "permutation", "scaling", "translation"})

    @property
    def is_metric(self) -> bool:
        """All but `squared` keep the triangle inequality."""
        return self.measure != "squared"

    def prepare(self, states: ArrayLike) -> Turnable:
        """Centre and scale the states.

        Parameters
        ----------
        states
            (sample, unit).

        Raises
        ------
        InvalidInput
            If there are fewer than four samples, states are not finite, or none varies.
        """
        return Turnable(reduced(centred(as_samples(states))))

    def compare(self, first: Turnable, second: Turnable) -> float:
        """Return the distance of two networks; raises as `Metric`."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[Turnable], second: Sequence[Turnable] | None = None
    ) -> NDArray[np.float64]:
        """Return the distance of every two networks; see `Metric.compare_many`."""
        return rotation_distances(first, second, self.measure)
