"""Squared distance between states."""

from __future__ import annotations

from torch import Tensor

from dynamo_plugin.losses._masked import masked_mean

__all__ = ["l2"]


def l2(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared distance between hidden states, averaged over time steps and units.

    The default hidden distance d_h of DYNAMO (Cotler et al. 2023, arXiv:2302.14078, section 2.2).

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
    >>> mask = torch.tensor([[True], [True], [False]])
    >>> l2(torch.zeros(3, 2), torch.tensor([[1., 1.], [0., 2.], [9., 9.]]), mask)
    tensor(1.5000)
    """
    return masked_mean((prediction - target).square(), mask)
