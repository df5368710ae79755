"""What comparisons by canonical correlation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._axes import principal_axes
from dynamo_plugin.metrics._states import as_samples, centred, check_same_samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Span", "check_spans", "span_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """What the units of one network span."""

    directions: NDArray[np.float64]
    """(direction, sample), orthonormal."""
    loadings: NDArray[np.float64]
    """(direction, unit): inner products of directions and centred units."""


def span_of(
    states: ArrayLike,
    *,
    directions: int | None = None,
    variance: float | None = None,
) -> Span:
    """Return what the units of one network span, or a part of it.

    Parameters
    ----------
    states
        (sample, unit).
    directions, variance
        Which leading directions to keep; all by default.

    Raises
    ------
    InvalidInput
        If there are fewer than four samples, states are not finite, none varies, or the directions
        span everything that so few samples can do: correlations would be 1 whatever is compared.
    """
    x = as_samples(states)
    axes = principal_axes(centred(x), directions=directions, variance=variance)
    if len(axes.directions) >= len(x) - 1:
        raise InvalidInput(
            f"Expected more samples than directions; {len(x)} samples have only {len(x) - 1} "
            "directions, and the units span all of them, so that every canonical correlation is 1. "
            "Use more samples, or svcca with fewer directions."
        )
    return Span(axes.directions, axes.loadings)


def check_spans(first: Sequence[Span], second: Sequence[Span]) -> None:
    """Raise `InvalidInput` where networks have different numbers of samples."""
    for span in (*first, *second):
        check_same_samples(first[0].directions.shape[1], span.directions.shape[1])
