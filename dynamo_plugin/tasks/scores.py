"""How well a network does its task, by the textbook formulas."""

from __future__ import annotations

from torch import Tensor

from dynamo_plugin.errors import InvalidInput

__all__ = ["accuracy", "r2", "sign_accuracy"]


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the share of samples whose largest logit is that of their class.

    Parameters
    ----------
    logits
        (..., sample, class).
    targets
        (sample,) integer classes.

    Returns
    -------
    Tensor
        (...): from 0 to 1.

    Examples
    --------
    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])).item()
    0.5
    """
    return (logits.argmax(-1) == targets).double().mean(-1)


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the coefficient of determination over all samples, steps and channels.

    1 - residual sum of squares / total sum of squares about the mean of each channel, both summed
    over channels: scikit-learn's `r2_score` with `multioutput="variance_weighted"`.

    Parameters
    ----------
    outputs
        (..., sample, time, channel).
    targets
        (sample, time, channel).

    Returns
    -------
    Tensor
        (...): at most 1.

    Raises
    ------
    InvalidInput
        If the targets do not vary, for then there is nothing to explain.

    Examples
    --------
    >>> import torch
    >>> targets = torch.tensor([[[0.0], [2.0]]])
    >>> r2(targets, targets).item(), r2(torch.ones_like(targets), targets).item()
    (1.0, 0.0)
    """
    outputs, targets = outputs.double(), targets.double()
    total = (targets - targets.mean((0, 1))).square().sum()
    if not bool(total > 0):
        raise InvalidInput("R2 needs targets that vary; these are constant. Use more samples.")
    return 1 - (outputs - targets).square().sum((-3, -2, -1)) / total


def sign_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of samples, steps and channels whose sign is the target's.

    Parameters
    ----------
    outputs
        (..., sample, time, channel).
    targets
        (sample, time, channel).

    Returns
    -------
    Tensor
        (...): from 0 to 1.

    Examples
    --------
    >>> import torch
    >>> sign_accuracy(torch.tensor([[[0.9], [0.1]]]), torch.tensor([[[1.0], [-1.0]]])).item()
    0.5
    """
    return (outputs.sign() == targets.sign()).double().mean((-3, -2, -1))
