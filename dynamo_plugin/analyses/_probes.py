"""Linear probes of hidden states, from few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from dynamo_plugin.embedding.geometry import pairs_at_once
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._label_task import LabelTask

__all__ = ["Probe", "fit_probe", "recorded_features", "rendered_features", "standardise"]

STRENGTHS = (100.0, 10.0, 1.0, 0.1)
"""L2 penalties that a probe chooses from, strongest first: 1 / C of scikit-learn's logistic
regression, alpha of its ridge regression."""

FLOOR = 1e-3
"""Probability of a class that no label has; none is lower, so that no loss is infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A probe that was fitted on the labels of one draw."""

    outputs: NDArray[np.float64]
    """(row, channel) on the test samples: logarithms of probabilities, log odds, or numbers."""
    validation_loss: float
    """Cross-validated, of the chosen strength."""
    strength: float
    """Of the penalty."""


def rendered_features(
    task: LabelTask, theta: NDArray[np.float64], samples: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (row, unit) states of the network at a theta, one row per output.

    The last stage where there are several. Outputs per sample have the state at the last step of
    recurrent families, and the mean over positions or real steps of layered ones.
    """
    meta_model, embedding = task.embedding.meta_model, task.embedding
    point = torch.as_tensor(theta, dtype=torch.float32)
    per_step = task.output.axis == "time"
    ordered = not meta_model.layered or meta_model.spec.inputs.kind != "array"
    parts = []
    for chunk in torch.as_tensor(samples).split(pairs_at_once(embedding, torch.as_tensor(samples))):
        batch = embedding.population.inputs.batch(chunk.numpy())
        with torch.no_grad():
            states = meta_model(batch.values, point.expand(len(chunk), -1), batch.lengths).states
        values = list(states.values())[-1].double()
        # A stage with one vector per sample has one row, whatever the length of the sample.
        lengths = batch.lengths.clamp(max=values.shape[1])
        if not ordered:
            lengths = torch.full_like(lengths, values.shape[1])
        mask = torch.arange(values.shape[1]) < lengths[:, None]
        if per_step:
            parts.append(values[mask])
        elif meta_model.layered:
            parts.append((values * mask[..., None]).sum(1) / lengths[:, None])
        else:
            parts.append(values[torch.arange(len(values)), lengths - 1])
    found: NDArray[np.float64] = torch.cat(parts).numpy()
    return found


def recorded_features(
    task: LabelTask, model: str, samples: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Return (row, unit) recorded states of a base network, one row per output.

    As `rendered_features`; all sites of a recurrent network, side by side. None where outputs come
    per step, and states were not stored at every step.
    """
    population = task.embedding.population
    layered = task.embedding.meta_model.layered
    per_step = task.output.axis == "time"
    sites = population.spec(model).sites
    parts = []
    for site in sites[-1:] if layered else sites:
        if per_step and (site.axis != "time" or site.every != 1):
            return None
        rows = population.states(model, site.name, samples=samples).astype(np.float64)
        if site.axis == "sample":
            rows = rows.reshape(*rows.shape[:2], -1).mean(-1) if rows.ndim > 2 else rows
        else:
            rows = rows.reshape(len(rows), -1)
            if not per_step:
                counts = -(-np.asarray(population.lengths)[samples] // site.every)
                stops = np.cumsum(counts)
                rows = (
                    np.add.reduceat(rows, stops - counts) / counts[:, None]
                    if layered
                    else rows[stops - 1]
                )
        parts.append(rows)
    return np.concatenate(parts, 1)


def fit_probe(
    task: LabelTask,
    features: NDArray[np.float64],
    targets: NDArray[Any],
    samples: NDArray[np.int64],
    folds: NDArray[np.int64],
    test_features: NDArray[np.float64],
    *,
    scale: float,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Fit a logistic or ridge regression, its penalty chosen by cross-validation.

    Where a fold lacks a class, or all labels are of one, the missing classes have a probability of
    `FLOOR`; a probe that has seen one class only always answers it.

    Parameters
    ----------
    features, targets
        (row, unit) and (row,) classes or (row, channel) numbers.
    samples
        (row,): which labelled sample a row belongs to, from 0.
    folds
        (sample,): those of one number are validated on together.
    test_features
        (row, unit).
    scale
        Losses are divided by it.
    """
    losses = np.zeros(len(strengths))
    of_rows = folds[samples]
    counts = np.bincount(samples)
    for fold in np.unique(folds):
        held = of_rows == fold
        for place, strength in enumerate(strengths):
            outputs = _predict(
                task, features[~held], targets[~held], features[held], strength=strength
            )
            every = task.losses(
                torch.as_tensor(outputs)[:, None],
                torch.as_tensor(targets[held])[:, None],
                torch.ones(len(outputs), 1, dtype=torch.bool),
            ).numpy()
            losses[place] += (every / counts[samples[held]]).sum() / len(folds) / scale
    best = int(np.argmin(losses))
    outputs = _predict(task, features, targets, test_features, strength=strengths[best])
    return Probe(outputs, float(losses[best]), float(strengths[best]))


def _predict(
    task: LabelTask,
    features: NDArray[np.float64],
    targets: NDArray[Any],
    at: NDArray[np.float64],
    *,
    strength: float,
) -> NDArray[np.float64]:
    if not task.classes:
        ridge = Ridge(alpha=strength).fit(features, targets)
        predicted: NDArray[np.float64] = ridge.predict(at).reshape(len(at), -1)
        return predicted
    probabilities = np.full((len(at), max(task.channels, 2)), FLOOR)
    present = np.unique(targets)
    if len(present) == 1:
        probabilities[:, present] = 1.0
    else:
        model = LogisticRegression(C=1 / strength, max_iter=10_000).fit(features, targets)
        probabilities[:, present] = np.maximum(model.predict_proba(at), FLOOR)
    logs = np.log(probabilities)
    found: NDArray[np.float64] = logs[:, 1:] - logs[:, :1] if task.channels == 1 else logs
    return found


def standardise(
    features: NDArray[np.float64], pool_rows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return features of the pool, its rows first, and of the test samples.

    Each unit has mean 0 and variance 1 over the pool, which takes no labels.
    """
    pool = features[:pool_rows]
    deviations = pool.std(0)
    if not np.isfinite(features).all():
        raise InvalidInput("States are not finite, so that nothing can be read from them.")
    scaled = (features - pool.mean(0)) / np.where(deviations > 1e-12, deviations, 1.0)
    return scaled[:pool_rows], scaled[pool_rows:]
