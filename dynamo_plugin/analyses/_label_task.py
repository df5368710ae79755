"""A task with few labels: which samples carry one, and what any network loses on each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo_plugin.analyses._scoring import (
    TargetSource,
    emulated_outputs,
    output_rows,
    targets_of,
    the_output,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["LabelTask", "draw_labels", "fold_numbers"]


class LabelTask:
    """The samples that labels may be drawn from, with their targets.

    A loss is the mean over the steps of a sample: cross entropy of classes (logistic where there
    is one channel), or the squared error summed over channels.

    Parameters
    ----------
    embedding
        Its population is read.
    pool
        (sample,) indices into the population.
    targets, output_group
        As in `TaskScorer`.
    """

    def __init__(
        self,
        embedding: ModelEmbedding,
        pool: NDArray[np.int64],
        *,
        targets: TargetSource | None,
        output_group: str | None,
    ) -> None:
        self.embedding = embedding
        self.output = the_output(embedding, output_group)
        self.pool = pool
        self.channels = math.prod(self.output.shape)
        population = embedding.population
        self.batch = population.inputs.batch(pool)
        aligned = targets_of(embedding, self.output, targets)
        self.classes = aligned.ndim == 1
        per_step = self.output.axis == "time"
        counts = np.diff(population.offsets)[pool] if per_step else np.ones_like(pool)
        mask = np.arange(counts.max()) < counts[:, None]
        self.rows = output_rows(population.offsets, pool, self.output)
        padded = np.zeros((*mask.shape, *aligned.shape[1:]), aligned.dtype)
        padded[mask] = aligned[self.rows]
        self.mask = torch.as_tensor(mask)
        self.targets = torch.as_tensor(padded if self.classes else padded.astype(np.float32))

    @property
    def strata(self) -> NDArray[np.int64]:
        """(sample,): the class of each, where classes come per sample; else all the same."""
        if self.classes and self.output.axis == "sample":
            classes: NDArray[np.int64] = self.targets[:, 0].numpy()
            return classes
        return np.zeros(len(self.pool), np.int64)

    def run(self, thetas: Tensor, places: Tensor) -> Tensor:
        """Return the losses (problem, label) of thetas (problem, embedding_dim).

        Each theta runs on the samples of its own, `places` (problem, label) in the pool.
        """
        inputs, lengths = self.batch.values[places], self.batch.lengths[places]
        found = self.embedding.meta_model(inputs, thetas[:, None], lengths)
        outputs = found.outputs[self.output.group]
        padded = outputs.reshape(*places.shape, self.mask.shape[1], self.channels)
        return self.losses(padded, self.targets[places], self.mask[places])

    def losses(self, outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Return (...,) losses of outputs (..., time, channel)."""
        if not self.classes:
            values = ((outputs - targets) ** 2).sum(-1)
        elif self.channels == 1:
            # Logistic: softplus of the logit, with its sign turned where the class is 1.
            values = F.softplus(torch.where(targets == 1, -outputs[..., 0], outputs[..., 0]))
        else:
            wanted = targets.expand(outputs.shape[:-1])[..., None]
            values = -outputs.log_softmax(-1).gather(-1, wanted)[..., 0]
        return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1)

    def losses_of_rows(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Return (network, sample) losses of outputs (network, row, channel) on the whole pool."""
        padded = torch.zeros(len(outputs), *self.mask.shape, self.channels, dtype=torch.float64)
        padded[:, self.mask] = torch.as_tensor(
            outputs.reshape(len(outputs), len(self.rows), self.channels), dtype=torch.float64
        )
        found: NDArray[np.float64] = self.losses(padded, self.targets, self.mask).numpy()
        return found

    def emulated_losses(self, thetas: Tensor) -> NDArray[np.float64]:
        """Return (theta, sample) losses on the whole pool."""
        found = np.zeros((len(thetas), len(self.rows), self.channels), np.float32)
        starts = np.concatenate([[0], np.cumsum(self.mask.sum(1).numpy())])
        for which, places, outputs in emulated_outputs(
            self.embedding, thetas, self.pool, self.output
        ):
            found[which, starts[places.start] : starts[places.stop]] = outputs
        return self.losses_of_rows(found)

    def recorded_losses(self, models: Sequence[str]) -> NDArray[np.float64]:
        """Return (model, sample) losses of recorded outputs on the whole pool."""
        population = self.embedding.population
        return np.concatenate(
            [
                self.losses_of_rows(population.outputs(model, samples=self.pool)[None])
                for model in models
            ]
        )

    def scales(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what losses on labelled samples (draw, label) are divided by.

        1 for classes; the variance of the labelled targets, summed over channels, for numbers, or 1
        where these do not vary.
        """
        if self.classes:
            return np.ones(len(places))
        targets, mask = self.targets[places].double(), self.mask[places][..., None]
        count = mask.sum((1, 2), keepdim=True)
        centred = targets - (targets * mask).sum((1, 2), keepdim=True) / count
        variances = ((centred**2 * mask).sum((1, 2, 3)) / count[:, 0, 0, 0]).numpy()
        found: NDArray[np.float64] = np.where(variances > 1e-12, variances, 1.0)
        return found


def draw_labels(
    strata: NDArray[np.int64], count: int, repeats: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return (repeat, count) places, each stratum with its share as nearly as whole numbers allow.

    The first k of a draw are a stratified draw of k, so that larger draws contain smaller ones.
    """
    shuffled = np.stack([generator.permutation(len(strata)) for _ in range(repeats)])
    drawn = strata[shuffled]
    keys = np.zeros(drawn.shape)
    for stratum in np.unique(strata):
        here = drawn == stratum
        rank = np.cumsum(here, 1) - 1 + generator.random((repeats, 1))
        keys += np.where(here, rank / (strata == stratum).sum(), 0.0)
    order = np.argsort(keys, axis=1, kind="stable")[:, :count]
    found: NDArray[np.int64] = np.take_along_axis(shuffled, order, 1)
    return found


def fold_numbers(strata: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Return (draw, label) fold numbers for labels with strata (draw, label); strata are spread."""
    order = np.argsort(strata, axis=1, kind="stable")
    numbers = np.empty_like(strata)
    np.put_along_axis(
        numbers, order, np.broadcast_to(np.arange(strata.shape[1]) % folds, strata.shape), 1
    )
    return numbers
