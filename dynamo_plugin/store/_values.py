"""What the values of a block are like, found in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["are_finite", "are_zero"]


def are_zero(values: NDArray[Any]) -> bool:
    """Return whether all values are zero.

    >>> are_zero(np.array([0.0, -0.0])), are_zero(np.array([0, 1]))
    (True, False)
    """
    if values.dtype == np.float16:  # NumPy has no fast loop for it; the bits tell as much
        return not bool((values.view(np.uint16) & np.uint16(0x7FFF)).any())
    if not values.size:
        return True
    return not values[:1].any() and bool(values.min() == 0 == values.max())


def are_finite(values: NDArray[Any]) -> bool:
    """Return whether no value is NaN or infinite.

    >>> are_finite(np.array([1.0, 2.0])), are_finite(np.array([1.0, np.nan]))
    (True, False)
    """
    if values.dtype == np.float16:
        exponent = values.view(np.uint16) & np.uint16(0x7C00)
        return not bool((exponent == 0x7C00).any())
    if not values.size or values.dtype.kind != "f":
        return True
    # NaN comes out of both, infinities out of one; no array of truth values is made
    return bool(np.isfinite(values.min()) and np.isfinite(values.max()))
