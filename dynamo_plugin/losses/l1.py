"""Absolute distance between states."""

from __future__ import annotations

from torch import Tensor

from dynamo_plugin.losses._masked import masked_mean

__all__ = ["l1"]


def l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Absolute distance between hidden states, averaged over time steps and units.

    The alternative d_h of DYNAMO (Cotler et al. 2023, arXiv:2302.14078, section 2.2).

    Parameters
    ----------
    prediction, target
        (..., time, unit), of one shape.
    mask
        Boolean, broadcastable to prediction: which entries count.

    Returns
    -------
    Tensor
        (...): one value per sample.

    Examples
    --------
    >>> import torch
    >>> l1(torch.zeros(1, 2), torch.tensor([[1., -3.]]), torch.ones(1, 1, dtype=torch.bool))
    tensor(2.)
    """
    return masked_mean((prediction - target).abs(), mask)
