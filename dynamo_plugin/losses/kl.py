"""Kullback-Leibler divergence between logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dynamo_plugin.losses._masked import masked_mean

__all__ = ["kl"]


def kl(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(target || prediction) of logits, in nats per step.

    The output distance d_y for classifiers (Cotler et al. 2023, arXiv:2302.14078, section 2.2).
    A single logit is the log-odds of a Bernoulli variable; several are a softmax.

    Parameters
    ----------
    prediction, target
        (..., time, class) logits, of one shape.
    mask
        Boolean, broadcastable to prediction: which steps count. A step counts if any of its
        classes does.

    Returns
    -------
    Tensor
        (...): one value per sample, averaged over time steps.

    Examples
    --------
    >>> import torch
    >>> once = torch.ones(1, 1, dtype=torch.bool)
    >>> kl(torch.zeros(1, 2), torch.tensor([[100., 0.]]), once)
    tensor(0.6931)
    >>> kl(torch.zeros(1, 1), torch.tensor([[100.]]), once)
    tensor(0.6931)
    """
    if prediction.shape[-1] == 1:
        log_p = F.logsigmoid(_two_sided(target))
        log_q = F.logsigmoid(_two_sided(prediction))
    else:
        log_p = F.log_softmax(target, dim=-1)
        log_q = F.log_softmax(prediction, dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1, keepdim=True)
    return masked_mean(divergence, mask.any(-1, keepdim=True))


def _two_sided(logit: Tensor) -> Tensor:
    """Return the log-odds of both outcomes, (..., 1) -> (..., 2)."""
    return logit * logit.new_tensor([1.0, -1.0])
