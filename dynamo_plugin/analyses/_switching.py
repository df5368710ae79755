"""How alike the outputs of the networks along a path are to those at its ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax

from dynamo_plugin.analyses._scoring import Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["agreement_with", "below_line", "decisions", "mixtures"]

TINY = np.finfo(np.float64).tiny
"""The least probability whose logarithm is taken."""


def decisions(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """Return (...,) classes of (..., channel) logits: the largest, or the sign of a single one."""
    single = outputs.shape[-1] == 1
    found: NDArray[np.int64] = (
        (outputs[..., 0] > 0).astype(np.int64) if single else outputs.argmax(-1)
    )
    return found


def mixtures(
    first: NDArray[Any], second: NDArray[Any], shares: NDArray[np.float64], *, logits: bool
) -> NDArray[np.float64]:
    """Return (share, row, channel): what an ensemble of two networks answers.

    Parameters
    ----------
    first, second
        (row, channel) outputs.
    shares
        (share,): weights of the second network, the first has the rest.
    logits
        Whether probabilities are mixed, and returned as logits; else the outputs themselves.
    """
    ends = np.stack([first, second]).astype(np.float64)
    weights = np.stack([1 - shares, shares], axis=1)
    if not logits:
        values: NDArray[np.float64] = np.einsum("se,erc->src", weights, ends)
        return values
    if ends.shape[-1] == 1:
        # Of both answers, so that neither is rounded to 1.
        yes, no = (np.einsum("se,erc->src", weights, expit(sign * ends)) for sign in (1, -1))
        mixed: NDArray[np.float64] = np.log(np.maximum(yes, TINY)) - np.log(np.maximum(no, TINY))
        return mixed
    chances = np.einsum("se,erc->src", weights, softmax(ends, axis=-1))
    logs: NDArray[np.float64] = np.log(np.maximum(chances, TINY))
    return logs


def agreement_with(
    outputs: NDArray[Any], end: int, counts: NDArray[np.int64], *, logits: bool
) -> Scores | None:
    """Return how the outputs along a path agree with those at an end.

    Parameters
    ----------
    outputs
        (point, row, channel).
    end
        The point that the others are compared with.
    counts
        (sample,): rows of each sample, one after the other.
    logits
        True: the share of equal decisions. False: R2, 1 - sum |y - y_end|^2 / sum |y_end - mean|^2.

    Returns
    -------
    Scores or None
        One per point; None if outputs at the end are constant, so that they have no R2.
    """
    starts = np.cumsum(counts) - counts
    if logits:
        decided = decisions(outputs)
        equal = (decided == decided[end]).astype(np.float64)
        gains = np.add.reduceat(equal, starts, axis=1)
        return Scores("accuracy", gains, counts.astype(np.float64))
    values = outputs.astype(np.float64)
    squares = ((values[end] - values[end].mean(0)) ** 2).sum(-1)
    weights = np.add.reduceat(squares, starts)
    if not weights.sum() > 0:
        return None
    errors = np.add.reduceat(((values - values[end]) ** 2).sum(-1), starts, axis=1)
    return Scores("r2", weights - errors, weights)


def below_line(scores: Scores, positions: NDArray[np.float64]) -> Scores:
    """Return how far below the straight line between the ends' scores each point is.

    That of linear mode connectivity (Frankle et al. 2020, arXiv:1912.05671), where the largest is
    the height of the barrier.

    Parameters
    ----------
    scores
        Of the points, the ends first and last.
    positions
        (point,): from 0 to 1.

    Returns
    -------
    Scores
        The differences; their errors are those of the paired samples.
    """
    line = np.outer(1 - positions, scores.gains[0]) + np.outer(positions, scores.gains[-1])
    return Scores(scores.kind, line - scores.gains, scores.weights)
