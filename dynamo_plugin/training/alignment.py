"""Generalised Procrustes analysis: one rotation per model lays their states on each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamo_plugin.metamodels import aligned_units
from dynamo_plugin.training.targets import SAMPLES_PER_READ, Targets

__all__ = ["Alignment", "align_states", "rotation_onto"]

ROWS = 8192
"""Rows of states that rotations are computed from: where states have d dimensions, a few tens of d
rows fix a rotation."""

BYTES = 2**29
"""What the rows of all models may take; fewer are read where they would take more."""

PASSES = 100
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Alignment:
    """What is found when the states of all models are rotated onto each other."""

    rotations: Tensor
    """(model, aligned units, widest): Q_n, rows orthonormal; Q_n (h - mean_n) / scale_n is
    aligned."""
    deviations: Tensor
    """(model, model) float64: mean over rows of <d_m, d_n>, d the deviation of an aligned state
    from the mean of all models. Its eigenvectors are the principal components of the models."""
    explained: float
    """Share of the variance of all aligned states that their mean over models has."""


def align_states(
    targets: Targets,
    samples: Tensor,
    mean: Tensor,
    scale: Tensor,
    *,
    stage: str,
    generator: torch.Generator,
) -> Alignment:
    """Rotate the states of all models onto their common mean.

    Generalised orthogonal Procrustes analysis (Gower 1975, doi:10.1007/BF02291478; in the order of
    ten Berge 1977, doi:10.1007/BF02293950: every model is rotated onto the mean of the others, in
    turn, until the fit no longer improves). Nothing but the states enters. Models with fewer units
    are padded with zeros, and states of more than 256 units are reduced to as many principal
    components, each model's its own; the common axes are the principal axes of the mean.

    Parameters
    ----------
    targets
        Reads the stored states.
    samples
        (sample,) int64 indices of the training samples; some of them are drawn.
    mean, scale
        (model, widest) and (model,): statistics of the states.
    stage
        Which states.
    generator
        Draws the samples.
    """
    states = _read(targets, samples, mean.shape, stage, generator)
    states = (states - mean[:, None]) / scale[:, None, None]
    bases = None
    if aligned_units([states.shape[2]]) < states.shape[2]:
        bases = torch.stack([_principal_axes(own) for own in states])
        states = states @ bases.mT
    models, rows, width = states.shape
    rotations = torch.eye(width).repeat(models, 1, 1)
    turned = torch.empty_like(states)
    total = torch.zeros(rows, width)
    for model in range(models):  # each joins the mean of those before it
        if model:
            rotations[model] = rotation_onto(total.T @ states[model])
        turned[model] = states[model] @ rotations[model].T
        total += turned[model]
    fit = float(total.square().sum(dtype=torch.float64))
    for _ in range(PASSES):
        for model in range(models):
            total -= turned[model]
            rotations[model] = rotation_onto(total.T @ states[model])
            torch.matmul(states[model], rotations[model].T, out=turned[model])
            total += turned[model]
        before, fit = fit, float(total.square().sum(dtype=torch.float64))
        if fit - before <= TOLERANCE * before:
            break
    common = total / models
    axes = torch.linalg.eigh((common.T @ common).double()).eigenvectors.flip(-1).float()
    deviations = (turned - common).flatten(1)
    gram = torch.zeros(models, models, dtype=torch.float64)
    for part in deviations.split(2**16, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    explained = models * float(common.square().sum()) / float(states.square().sum())
    rotations = axes.T @ rotations
    return Alignment(rotations if bases is None else rotations @ bases, gram / rows, explained)


def _principal_axes(states: Tensor) -> Tensor:
    """Return (aligned units, unit): directions of the largest second moment of (row, unit)."""
    wide = states.double()
    width = aligned_units([states.shape[1]])
    axes: Tensor
    if len(states) < states.shape[1]:
        left = torch.linalg.eigh(wide @ wide.T).eigenvectors
        axes = left.flip(1)[:, :width].T @ wide
        axes = torch.linalg.qr(axes.T).Q.T  # orthonormal, where there are fewer directions, too
    else:
        axes = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1)[:, :width].T
    return axes.to(states.dtype)


def rotation_onto(products: Tensor) -> Tensor:
    """Return the Q, of orthonormal rows, for which states Q^T are nearest to targets.

    Schoenemann 1966 (doi:10.1007/BF02289451).

    Parameters
    ----------
    products
        (..., target unit, unit): target^T states, summed over rows.
    """
    left, _, right = torch.linalg.svd(products.double(), full_matrices=False)
    rotation: Tensor = (left @ right).to(products.dtype)
    return rotation


def _read(
    targets: Targets, samples: Tensor, shape: torch.Size, stage: str, generator: torch.Generator
) -> Tensor:
    """Return (model, row, widest): states of some samples at steps that all models stored."""
    models, widest = shape
    budget = max(min(ROWS, BYTES // (models * widest * 4)), 4 * aligned_units([widest]))
    order = samples[torch.randperm(len(samples), generator=generator)]
    everything = torch.arange(models)
    parts: list[Tensor] = []
    found = 0
    for chunk in order.split(SAMPLES_PER_READ // 8):
        batch = targets.batch(everything, chunk)
        kept = batch.masks[stage].all(0)
        parts.append(batch.states[stage][:, kept].cpu())
        found += parts[-1].shape[1]
        if found >= budget:
            break
    return torch.cat(parts, 1)[:, :budget]
