"""Descent in theta with the meta-model frozen: many problems, each with labels of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynamo_plugin.embedding.geometry import pairs_at_once
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._label_task import LabelTask

__all__ = ["Problems", "Subspace", "search"]

MOMENTS = (0.9, 0.999)
"""Decay of Adam's means of gradients and of their squares."""


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """Principal axes of a population of thetas, in units of its standard deviations."""

    mean: NDArray[np.float64]
    """(embedding_dim,)."""
    axes: NDArray[np.float64]
    """(component, embedding_dim): each as long as the standard deviation along it."""

    @classmethod
    def of(cls, thetas: NDArray[np.float64], components: int | None) -> Subspace:
        """Find the leading components of thetas (model, embedding_dim); None for all that vary."""
        mean = thetas.mean(0)
        _, lengths, axes = np.linalg.svd(thetas - mean, full_matrices=False)
        vary = int((lengths > max(1e-6 * lengths[0], 1e-7 * np.abs(thetas).max())).sum())
        if len(thetas) < 2 or not vary:
            raise InvalidInput(
                f"Theta is searched where the networks differ; these {len(thetas)} thetas are all "
                "equal. Embed more networks, or fit longer."
            )
        if components is not None and components > vary:
            raise InvalidInput(
                f"subspace must be at most {vary}, the components along which these thetas vary, "
                f"got {components}."
            )
        kept = slice(0, components or vary)
        deviations = lengths[kept] / np.sqrt(len(thetas) - 1)
        return cls(mean, deviations[:, None] * axes[kept])

    def coordinates(self, thetas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (theta, component): standard deviations from the mean along each axis."""
        squared = (self.axes**2).sum(1)
        found: NDArray[np.float64] = (thetas - self.mean) @ self.axes.T / squared
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Problems:
    """Searches that run side by side; all have the same number of labels."""

    places: NDArray[np.int64]
    """(problem, label) in the pool."""
    trained: NDArray[np.bool_]
    """(problem, label): those that are descended on; the others are validated on."""
    scales: NDArray[np.float64]
    """(problem,): losses are divided by them."""
    starts: NDArray[np.float64]
    """(problem, embedding_dim)."""
    strengths: NDArray[np.float64]
    """(problem,) of the prior."""
    stops: NDArray[np.int64]
    """(problem,): the step whose theta is wanted."""

    def part(self, which: slice) -> Problems:
        """Return some of the problems."""
        return Problems(*(getattr(self, field.name)[which] for field in fields(self)))


def search(
    task: LabelTask,
    subspace: Subspace,
    problems: Problems,
    *,
    steps: int,
    learning_rate: float,
    advance: Callable[[int], object],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimise mean loss + strength |z|^2 / 2 over theta = start + axes (z - z of the start).

    By Adam (Kingma and Ba 2015, arXiv:1412.6980), whose steps are elementwise, so that problems do
    not see one another. What of a start lies outside of the subspace stays as it is.

    Parameters
    ----------
    advance
        Called with the number of problems that made a step.

    Returns
    -------
    tuple of ndarray
        (problem, step + 1): losses summed over the samples that are validated on, before each
        step and after the last. (problem, embedding_dim): theta at the stop.

    Raises
    ------
    InvalidInput
        If a loss is not finite.
    """
    count, labels = problems.places.shape
    validated = np.zeros((count, steps + 1))
    thetas = np.zeros_like(problems.starts)
    pairs = pairs_at_once(task.embedding, torch.as_tensor(task.pool))
    chunk = max(pairs // labels, 1)
    for first in range(0, count, chunk):
        here = slice(first, first + chunk)
        validated[here], thetas[here] = _descend(
            task, subspace, problems.part(here), steps, learning_rate, advance
        )
    return validated, thetas


def _descend(
    task: LabelTask,
    subspace: Subspace,
    problems: Problems,
    steps: int,
    learning_rate: float,
    advance: Callable[[int], object],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    places = torch.as_tensor(problems.places)
    trained = torch.as_tensor(problems.trained)
    weights = (trained / trained.sum(1, keepdim=True)).float()
    scales, strengths, starts, axes, origin = (
        torch.as_tensor(values, dtype=torch.float32)
        for values in (
            problems.scales,
            problems.strengths,
            problems.starts,
            subspace.axes,
            subspace.coordinates(problems.starts),
        )
    )
    moved = torch.zeros_like(origin, requires_grad=True)
    mean, square = torch.zeros_like(origin), torch.zeros_like(origin)
    validated = np.zeros((len(places), steps + 1))
    found = problems.starts.copy()
    for step in range(steps + 1):
        losses = task.run(starts + moved @ axes, places) / scales[:, None]
        if not bool(losses.isfinite().all()):
            raise InvalidInput(
                f"Losses are not finite after {step} steps of the search. Give a lower "
                "learning_rate, or stronger priors."
            )
        validated[:, step] = torch.where(trained, 0.0, losses.detach()).double().sum(1).numpy()
        stopped = problems.stops == step
        found[stopped] += moved.detach().double().numpy()[stopped] @ subspace.axes
        if step == steps:
            break
        objective = (losses * weights).sum(1) + strengths * ((origin + moved) ** 2).sum(1) / 2
        (gradient,) = torch.autograd.grad(objective.sum(), moved)
        with torch.no_grad():
            mean = MOMENTS[0] * mean + (1 - MOMENTS[0]) * gradient
            square = MOMENTS[1] * square + (1 - MOMENTS[1]) * gradient**2
            unbiased = (square / (1 - MOMENTS[1] ** (step + 1))).sqrt() + 1e-8
            moved -= learning_rate * mean / (1 - MOMENTS[0] ** (step + 1)) / unbiased
        advance(len(places))
    return validated, found
