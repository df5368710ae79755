"""What the task asks for, per sample or per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.types import RowAxis

__all__ = ["as_targets"]

Array = NDArray[Any]


def as_targets(targets: Any, lengths: NDArray[np.int64]) -> tuple[Array | None, RowAxis | None]:
    """Return targets as flat rows, and what a row is.

    Parameters
    ----------
    targets
        (sample,) or (sample, k): one row per sample. (sample, time, k), padded like the inputs,
        or a list of (time,) or (time, k) arrays of the lengths of the samples: one row per step.
        Integers or floating numbers.
    lengths
        (sample,) steps of each sample.

    Returns
    -------
    targets
        (sample,), (sample, k), (row,) or (row, k), int64, float32 or float64; or None.
    axis
        `sample` or `time`; or None.

    Raises
    ------
    InvalidInput
        Their shape fits neither, or fits both.

    Examples
    --------
    >>> as_targets([[1, 2], [3]], np.array([2, 1]))
    (array([1, 2, 3]), 'time')
    """
    if targets is None:
        return None, None
    samples, time = len(lengths), int(lengths.max())
    parts = None
    if isinstance(targets, list | tuple) or not isinstance(targets, Tensor | np.ndarray):
        parts = [_numbers(part) for part in targets]
        if len(parts) == samples and _per_step(parts, lengths):
            return np.concatenate(parts), "time"
        if len({part.shape for part in parts}) > 1:
            raise InvalidInput(
                f"targets are {len(parts)} arrays of differing shapes; expected one shape, or as "
                f"many steps as each of the {samples} samples has."
            )
        array = np.stack(parts) if parts else np.empty(0)
    else:
        array = _numbers(targets)
    if array.ndim not in (1, 2, 3) or len(array) != samples:
        raise InvalidInput(
            f"targets have shape {array.shape}; expected ({samples},), ({samples}, k) or, per "
            f"step, ({samples}, {time}, k)."
        )
    if array.ndim == 3:
        if array.shape[1] != time:
            raise InvalidInput(
                f"targets have {array.shape[1]} steps; expected {time}, as the longest sample has."
            )
        return array[np.arange(time) < lengths[:, None]], "time"
    if array.ndim == 2 and array.shape[1] == time > 1:
        raise InvalidInput(
            f"targets of shape {array.shape} may be one number for each of {time} steps or {time} "
            f"numbers per sample. Per step, give ({samples}, {time}, 1); per sample, give "
            "PopulationInputs with targets_axis='sample'."
        )
    return array, "sample"


def _per_step(parts: Sequence[Array], lengths: NDArray[np.int64]) -> bool:
    """Return whether the parts are one array of steps per sample, beyond doubt."""
    if any(part.ndim == 0 for part in parts):
        return False
    fits = [len(part) for part in parts] == lengths.tolist()
    one_shape = len({part.shape for part in parts}) == 1
    return fits and (parts[0].ndim == 2 or not one_shape)


def _numbers(value: Any) -> Array:
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        array: Array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    else:
        array = np.asarray(value)
    if array.dtype.kind in "biu":
        return array.astype(np.int64)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype in (np.float32, np.float64):
        return array
    raise InvalidInput(f"targets have dtype {array.dtype}; expected integers or floating numbers.")
