"""Distances between networks, from what the meta-model does at their thetas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from dynamo_plugin.embedding.model_embedding import ModelEmbedding
    from dynamo_plugin.types import SequenceBatch

__all__ = [
    "functional_distances",
    "pairs_at_once",
    "pullback_metric",
    "pullback_thetas",
    "rendered_rows",
    "rendered_states",
]

PAIRS = 2048
"""Most pairs of a model and a sample that run at once."""

ROWS = 400_000
"""Most rows of states (steps, or positions of all stages) that they have together."""

PULLBACK_SAMPLES = (16, 64)
"""Fewest and most held-out samples that the pull-back metric is averaged over."""

PULLBACK_ROWS = 8192
"""Rows of states that are enough; samples of many rows, as images have, are dear and tell more."""


def rendered_rows(
    embedding: ModelEmbedding, inputs: Tensor, lengths: Tensor, thetas: Tensor
) -> dict[str, Tensor]:
    """Return what the networks at some thetas do, in a space that all of them share.

    Parameters
    ----------
    inputs, lengths
        (sample, ...) and (sample,).
    thetas
        (model, embedding_dim).

    Returns
    -------
    dict
        Stage to (model, row, unit): aligned base states, V(theta) h, where one map serves all
        models; else the states of the meta-model. At real rows, sample after sample.
    """
    states = embedding.meta_model(inputs[None], thetas[:, None], lengths[None]).states
    models = torch.arange(len(thetas), device=thetas.device)
    shared = embedding.common_maps
    if shared is None and embedding.config.state_map == "amortised":
        shared = embedding.state_maps
    found = {}
    for stage, values in states.items():
        mapped = values if shared is None else shared[stage](values, models, thetas)
        rows = mapped.flatten(1, 2)
        if not embedding.meta_model.layered or embedding.meta_model.spec.inputs.kind != "array":
            time = torch.arange(mapped.shape[2], device=mapped.device)
            rows = mapped[:, time < lengths[:, None]]
        found[stage] = rows
    return found


def rendered_states(
    embedding: ModelEmbedding, inputs: Tensor, lengths: Tensor, thetas: Tensor
) -> Tensor:
    """Return what the networks at some thetas do as one vector each; see `rendered_rows`.

    Returns
    -------
    Tensor
        (model, number), scaled so that the square of a difference is the mean over units and rows
        of one stage, averaged over stages.
    """
    rows = rendered_rows(embedding, inputs, lengths, thetas).values()
    return torch.cat(
        [part.flatten(1) / (part.shape[1] * part.shape[2] * len(rows)) ** 0.5 for part in rows], 1
    )


@torch.no_grad()
def functional_distances(embedding: ModelEmbedding) -> NDArray[np.float64]:
    """Return (model, model): root mean square difference of the rendered states.

    Over held-out samples, real rows, units and stages.
    """
    gram = torch.zeros(len(embedding), len(embedding), dtype=torch.float64)
    samples = embedding.held_out_samples
    pairs = pairs_at_once(embedding, samples)
    count = 0
    for chunk in samples.split(max(pairs // len(embedding), 1)):
        batch = embedding.population.inputs.batch(chunk.numpy())
        states = rendered_states(embedding, batch.values, batch.lengths, embedding.thetas)
        # Centred over models, which no difference sees, so that nothing cancels below.
        rows = (states - states.mean(0)).double()
        weight = int(batch.lengths.sum())
        gram += weight * (rows @ rows.T)
        count += weight
    norms = gram.diagonal()
    squared = (norms[:, None] + norms[None] - 2 * gram) / count
    distances = squared.clamp(min=0).sqrt().fill_diagonal_(0).numpy()
    symmetric: NDArray[np.float64] = (distances + distances.T) / 2
    return symmetric


def pairs_at_once(embedding: ModelEmbedding, samples: Tensor) -> int:
    """Return how many pairs of a model and one of some samples may run at once; at least one."""
    return max(min(PAIRS, ROWS // _rows_per_sample(embedding, samples)), 1)


def _rows_per_sample(embedding: ModelEmbedding, samples: Tensor) -> int:
    """Return how many rows of states the longest of some samples has, over all stages."""
    spec = embedding.meta_model.spec
    steps = int(embedding.population.lengths[samples.numpy()].max())
    if not spec.stages:
        return steps
    return sum(
        steps if stage.axis == "time" else math.prod(stage.positions) for stage in spec.stages
    )


@torch.no_grad()
def pullback_metric(embedding: ModelEmbedding) -> NDArray[np.float64]:
    """Return G = E[J^T J], J the derivative of the rendered states by theta.

    The mean is over models, some held-out samples, real rows, units and stages, so that
    (a - b)^T G (a - b) is, to first order, the mean squared difference of what the networks at a
    and b do.

    Returns
    -------
    ndarray
        (embedding_dim, embedding_dim) float64, symmetric and positive semidefinite.
    """
    thetas = embedding.thetas
    dims = thetas.shape[1]
    metric = torch.zeros(dims, dims, dtype=torch.float64)
    count = 0
    samples = embedding.held_out_samples
    fewest, most = PULLBACK_SAMPLES
    enough = -(-PULLBACK_ROWS // _rows_per_sample(embedding, samples))
    for chunk in samples[: min(max(fewest, enough), most)].split(8):
        batch = embedding.population.inputs.batch(chunk.numpy())

        def rendered(theta: Tensor, batch: SequenceBatch = batch) -> Tensor:
            return rendered_states(embedding, batch.values, batch.lengths, theta)

        weight = int(batch.lengths.sum())
        for some in thetas.split(32):
            with sdpa_kernel(SDPBackend.MATH):  # the fast ones have no forward derivative
                changes = [
                    torch.func.jvp(rendered, (some,), (direction.expand_as(some),))[1].flatten()
                    for direction in torch.eye(dims, dtype=thetas.dtype)
                ]
            rows = torch.stack(changes).double()
            metric += weight * (rows @ rows.T)
            count += weight * len(some)
    return (metric / count).numpy()


def pullback_thetas(embedding: ModelEmbedding) -> NDArray[np.float64]:
    """Return (model, embedding_dim): thetas whose Euclidean distances are those of the pull-back
    metric, in the directions in which it is diagonal.
    """
    strengths, axes = np.linalg.eigh(pullback_metric(embedding))
    stretched: NDArray[np.float64] = (
        embedding.thetas.double().numpy() @ axes * np.sqrt(strengths.clip(min=0))
    )
    return stretched
