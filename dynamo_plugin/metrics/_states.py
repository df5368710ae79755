"""Arrays as metrics take them: checked, of a floating type, never changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LEAST_SAMPLES", "Floats", "as_array", "as_samples", "centred", "check_same_samples"]

Floats: TypeAlias = "NDArray[np.floating[Any]]"
"""float32 or float64."""

_SAFE = 1e10
"""States are scaled first where one is larger than this or all are smaller than its inverse, so
that squares neither overflow nor vanish."""

_STRIP = 64
"""Samples that are transposed at once."""

LEAST_SAMPLES = 4
"""Fewer samples than this say nothing; unbiased estimates need as many."""


def as_array(values: ArrayLike, *, axes: tuple[str, ...], what: str = "states") -> Floats:
    """Return values as finite floats of so many axes.

    float32 and float64 stay, float16 and bfloat16 become float32, integers float64. Tensors are
    taken from wherever they are.

    Parameters
    ----------
    values
        An array, or a tensor.
    axes
        Their names, for messages.
    what
        What messages call the values.

    Returns
    -------
    ndarray
        Perhaps the one that was given: it must not be changed.

    Raises
    ------
    InvalidInput
        If they are not numbers, not finite, or of another number of axes.
    """
    given: Any = values
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = (given.float() if given.element_size() < 4 else given).numpy()
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise InvalidInput(
            f"Expected {what} that are real numbers, got the dtype {array.dtype}. Convert them "
            "first."
        )
    if array.ndim != len(axes):
        raise InvalidInput(
            f"Expected {what} of shape ({', '.join(axes)}), got {array.shape}. Reshape them first: "
            "what is compared stands on the first axis."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    elif array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.size == 0:
        raise InvalidInput(f"Expected {what}, got none: their shape is {array.shape}.")
    if not np.isfinite(array).all():
        wrong = np.argwhere(~np.isfinite(array))[0]
        place = ", ".join(f"{axis} {index}" for axis, index in zip(axes, wrong, strict=True))
        raise InvalidInput(
            f"Expected finite {what}, but at {place} there is {array[tuple(wrong)]}. Leave such "
            "samples out, or look for what diverged."
        )
    return array


def as_samples(values: ArrayLike, *, what: str = "states", unit: str = "unit") -> Floats:
    """Return (sample, unit) floats of at least four samples; raises as `as_array`."""
    array = as_array(values, axes=("sample", unit), what=what)
    if len(array) < LEAST_SAMPLES:
        raise InvalidInput(
            f"Expected at least {LEAST_SAMPLES} samples, got {len(array)} with {array.shape[1]} "
            f"{unit}s. If that is the wrong way round, transpose the array."
        )
    return array


def centred(states: Floats) -> Floats:
    """Return states without their mean over samples, units first and of total norm 1.

    Parameters
    ----------
    states
        (sample, unit).

    Returns
    -------
    ndarray
        (unit, sample), contiguous, of the same dtype.

    Raises
    ------
    InvalidInput
        If the states are the same for every sample.
    """
    dtype = states.dtype
    deviations = _transposed(states)
    largest = max(float(deviations.max()), -float(deviations.min())) or 1.0
    if not 1 / _SAFE < largest < _SAFE:
        deviations /= dtype.type(largest)
        largest = 1.0
    eps = float(np.finfo(dtype).eps)
    share = np.full(deviations.shape[1], 1 / deviations.shape[1], dtype)
    deviations -= (deviations @ share)[:, None]
    norm = _norm(deviations)
    left = deviations @ share
    if float(np.abs(left).max()) * deviations.size**0.5 > 8 * eps * norm:
        deviations -= left[:, None]  # what rounding left of large offsets
        norm = _norm(deviations)
    if norm <= 4 * eps * np.sqrt(states.size) * largest:
        raise InvalidInput(
            "Expected states that differ between samples; every unit is constant, so that there is "
            "nothing to compare. Choose another site, or other samples."
        )
    deviations /= dtype.type(norm)
    return deviations


def _transposed(states: Floats) -> Floats:
    """Return (unit, sample), contiguous; a strip at a time, which is what a cache holds."""
    turned: Floats = np.empty(states.shape[::-1], states.dtype)
    for start in range(0, len(states), _STRIP):
        turned[:, start : start + _STRIP] = states[start : start + _STRIP].T
    return turned


def _norm(values: Floats) -> float:
    return float(np.sqrt(np.vdot(values, values)))


def check_same_samples(first: int, second: int) -> None:
    """Raise `InvalidInput` where two networks were not shown equally many samples."""
    if first != second:
        raise InvalidInput(
            f"Expected states of the same samples, got {first} and {second} samples. Row i of both "
            "must be the same sample (and the same step)."
        )
