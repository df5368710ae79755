"""The choice of theta from few labels, by cross-validation, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.analyses._label_task import fold_numbers
from dynamo_plugin.analyses._theta_search import Problems, Subspace, search

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._label_task import LabelTask

__all__ = ["BEST", "Chosen", "Losses", "SearchOptions", "choose_thetas", "cross_validated_best"]

BEST = -1
"""Start code of the emulated network that is best on the labels."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How theta is searched."""

    starts: tuple[int, ...]
    """0 for the mean theta, `BEST`, or 1 + the place of a network in its output group."""
    strengths: tuple[float, ...]
    """Of the prior, strongest first."""
    steps: int
    """Most that are made."""
    learning_rate: float
    """Of Adam, in standard deviations of the population."""


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Losses (network, sample) on the pool."""

    thetas: NDArray[np.float64]
    """(1 + network, embedding_dim): the mean theta, then those of the networks."""
    emulated: NDArray[np.float64]
    """(1 + network, sample): of the networks at these thetas."""
    recorded: NDArray[np.float64]
    """(network, sample): of the base networks."""


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What was chosen in each of some draws of one size."""

    thetas: NDArray[np.float64]
    """(draw, embedding_dim)."""
    start: NDArray[np.int64]
    """(draw,): place among the starts."""
    strength: NDArray[np.float64]
    """(draw,)."""
    steps: NDArray[np.int64]
    """(draw,): 0 where the start was kept."""
    validation: NDArray[np.float64]
    """(draw,): cross-validated loss of the choice."""
    start_validation: NDArray[np.float64]
    """(draw,): cross-validated loss of the best start that does not move."""
    moved: NDArray[np.float64]
    """(draw,): distance from the start, in standard deviations of the population."""


def choose_thetas(
    task: LabelTask,
    subspace: Subspace,
    losses: Losses,
    draws: NDArray[np.int64],
    options: SearchOptions,
    advance: Callable[[int], object],
) -> Chosen:
    """Choose start, strength and number of steps by cross-validation, and refit on all labels.

    Parameters
    ----------
    draws
        (draw, label) places in the pool.
    """
    count, labels = draws.shape
    folds = fold_numbers(task.strata[draws], min(5, labels))
    numbers = np.arange(folds.max() + 1)
    scales = task.scales(draws)
    # Axes of the problems of the cross-validation: (draw, strength, start, fold).
    shape = (count, len(options.strengths), len(options.starts), len(numbers))
    trained = folds[:, None] != numbers[:, None]  # (draw, fold, label)
    starts = _start_places(losses, draws, trained, options.starts)  # (draw, start, fold)
    problems = Problems(
        _spread(draws[:, None, None, None], (*shape, labels)),
        _spread(trained[:, None, None], (*shape, labels)),
        _spread(scales[:, None, None, None], shape),
        _spread(losses.thetas[starts][:, None], (*shape, losses.thetas.shape[1])),
        _spread(np.array(options.strengths)[:, None, None], shape),
        np.zeros(np.prod(shape), np.int64),
    )
    validated, _ = search(
        task,
        subspace,
        problems,
        steps=options.steps,
        learning_rate=options.learning_rate,
        advance=advance,
    )
    # Fewest steps come first, then the strongest prior, so that ties go to less movement.
    table = validated.reshape(*shape, -1).sum(3) / labels
    ordered = table.transpose(0, 3, 1, 2).reshape(count, -1)
    best = ordered.argmin(1)
    steps, strength, start = np.unravel_index(best, (table.shape[3], *shape[1:3]))
    everything = np.ones((count, 1, labels), np.bool_)
    at = _start_places(losses, draws, everything, options.starts)[np.arange(count), start, 0]
    refit = Problems(
        draws,
        everything[:, 0],
        scales,
        losses.thetas[at],
        np.array(options.strengths)[strength],
        steps.astype(np.int64),
    )
    _, thetas = search(
        task,
        subspace,
        refit,
        steps=int(steps.max()),
        learning_rate=options.learning_rate,
        advance=lambda _: None,
    )
    moves = (thetas - losses.thetas[at]) @ np.linalg.pinv(subspace.axes)
    return Chosen(
        thetas,
        start.astype(np.int64),
        np.array(options.strengths)[strength],
        steps.astype(np.int64),
        ordered[np.arange(count), best],
        table[..., 0].min((1, 2)),
        np.where(steps > 0, np.linalg.norm(moves, axis=1), 0.0),
    )


def cross_validated_best(
    losses: NDArray[np.float64], draws: NDArray[np.int64], folds: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the network best on each draw, (draw,), and the loss of choosing so on other folds.

    Parameters
    ----------
    losses
        (network, sample).
    draws, folds
        (draw, label) places in the pool, and fold numbers.
    """
    drawn = losses[:, draws]  # (network, draw, label)
    total = np.zeros(len(draws))
    for fold in range(folds.max() + 1):
        held = folds == fold
        best = (drawn * ~held).sum(2).argmin(0)
        total += (drawn[best, np.arange(len(draws))] * held).sum(1)
    return drawn.sum(2).argmin(0), total / draws.shape[1]


def _start_places(
    losses: Losses,
    draws: NDArray[np.int64],
    trained: NDArray[np.bool_],
    starts: Sequence[int],
) -> NDArray[np.int64]:
    """Return (draw, start, fold): places of the starts among the thetas.

    The network best on the labels is found on those that are trained on, (draw, fold, label).
    """
    summed = np.einsum("ndl,dfl->ndf", losses.emulated[1:, draws], trained.astype(np.float64))
    best = 1 + summed.argmin(0)
    places = [best if start == BEST else np.full_like(best, start) for start in starts]
    return np.stack(places, 1)


def _spread(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a copy of values broadcast to a shape, whose first four axes become one."""
    return np.array(np.broadcast_to(values, shape)).reshape(-1, *shape[4:])
