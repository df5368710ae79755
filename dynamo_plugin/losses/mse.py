"""Squared error between real-valued outputs."""

from __future__ import annotations

from torch import Tensor

from dynamo_plugin.losses._masked import masked_mean

__all__ = ["mse"]


def mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error between outputs, averaged over time steps and output units.

    The output distance d_y for real outputs (Cotler et al. 2023, arXiv:2302.14078, section 2.2).

    Parameters
    ----------
    prediction, target
        (..., time, output), of one shape.
    mask
        Boolean, broadcastable to prediction: which entries count.

    Returns
    -------
    Tensor
        (...): one value per sample.

    Examples
    --------
    >>> import torch
    >>> mse(torch.zeros(1, 2), torch.tensor([[1., -3.]]), torch.ones(1, 1, dtype=torch.bool))
    tensor(5.)
    """
    return masked_mean((prediction - target).square(), mask)
