"""How many numbers a theta needs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dominant_components"]

DOMINANCE = 2.5
"""How many times the mean of all components after it a component has to hold. Networks that differ
in their seed alone deviate from their mean each in a direction of its own, and the components of
their deviations decline slowly, each about 1.5 times the mean of those after it."""

MOST = 16
"""More components than that are not sought."""


def dominant_components(deviations: Tensor) -> int:
    """Return how many principal components of a population stand out from those after them.

    A component counts, after all before it, while it holds more than 2.5 times the mean of those
    after it and more than an even share of the whole; the first always counts. (Tests against
    random matrices, such as that of Patterson, Price and Reich 2006,
    doi:10.1371/journal.pgen.0020190, do not serve: states have so many rows that any structure is
    significant, the private one of every network too.)

    Parameters
    ----------
    deviations
        (model, model) float64: inner products of the models' deviations from their mean.

    >>> dominant_components(torch.diag(torch.tensor([9.0, 4.0, 1.0, 1.0, 1.0, 0.0]).double()))
    2
    """
    values = torch.linalg.eigvalsh(deviations).flip(0)[:-1].clamp(min=0)  # one less: they sum to 0
    total = float(values.sum())
    count = 1
    while count < min(len(values) - 1, MOST):
        following = float(values[count + 1 :].mean())
        if values[count] <= DOMINANCE * following or values[count] <= total / len(values):
            break
        count += 1
    return count
