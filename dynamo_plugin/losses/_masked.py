"""The mean over the entries that count, which every loss ends with."""

from __future__ import annotations

from torch import Tensor

__all__ = ["masked_mean"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last two dimensions of the entries where mask is true.

    Parameters
    ----------
    values
        (..., time, feature).
    mask
        Boolean, broadcastable to values. Masked entries may hold any finite number.

    Returns
    -------
    Tensor
        (...).
    """
    counted = mask.expand_as(values)
    return values.where(counted, 0.0).sum((-2, -1)) / counted.sum((-2, -1))
