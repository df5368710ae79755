"""Which samples are kept aside, and which models and samples each step sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dynamo_plugin.errors import InvalidInput

__all__ = ["draw_batches", "split_samples"]


def split_samples(samples: int, *, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split sample indices at random into a training and a held-out part.

    Parameters
    ----------
    samples
        Number of samples of the population.
    held_out
        Share of the second part; both parts get at least one sample.
    seed
        Decides the split.

    Returns
    -------
    tuple of Tensor
        (training,) and (held out,) int64 indices, sorted, disjoint, together all.

    Raises
    ------
    InvalidInput
        If there are fewer than two samples.
    """
    if samples < 2:
        raise InvalidInput(
            f"A fit needs at least 2 samples, one to train on and one kept aside for the reported "
            f"figures; this population has {samples}. Capture on more inputs."
        )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    count = min(max(round(samples * held_out), 1), samples - 1)
    return order[count:].sort().values, order[:count].sort().values


def draw_batches(
    samples: Tensor,
    *,
    batch_size: int,
    models: int,
    models_per_step: int | None,
    generator: torch.Generator,
    lengths: Tensor | None = None,
    buckets: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (models, samples) index pairs without end.

    Samples are drawn without replacement, epoch after epoch; a batch may join the end of one
    epoch and the beginning of the next. Models are drawn anew at every step.

    Parameters
    ----------
    samples
        (sample,) indices to draw from.
    batch_size
        Samples per step, at most as many as there are.
    models
        Number of models.
    models_per_step
        Models per step; None for all of them.
    generator
        Source of randomness.
    lengths
        (sample of the population,): number of steps of each; needed for buckets.
    buckets
        So many batches are drawn at once, and cut anew in the order of lengths: samples of one
        batch are then about equally long, and little of it is padding.
    """
    drawn = _draw_samples(samples, min(batch_size, len(samples)), generator)
    if buckets > 1:
        assert lengths is not None
        drawn = _by_length(drawn, lengths, buckets, generator)
    for batch in drawn:
        if models_per_step is None or models_per_step >= models:
            chosen = torch.arange(models)
        else:
            chosen = torch.randperm(models, generator=generator)[:models_per_step].sort().values
        yield chosen, batch


def _draw_samples(samples: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    queue = samples[:0]
    while True:
        if len(queue) < batch_size:
            shuffled = samples[torch.randperm(len(samples), generator=generator)]
            # What is left of the last epoch goes first; it is not drawn twice in one batch.
            fresh = shuffled[~torch.isin(shuffled, queue)]
            queue = torch.cat([queue, fresh, shuffled[torch.isin(shuffled, queue)]])
        batch, queue = queue[:batch_size], queue[batch_size:]
        yield batch


def _by_length(
    drawn: Iterator[Tensor], lengths: Tensor, buckets: int, generator: torch.Generator
) -> Iterator[Tensor]:
    while True:
        batches = [next(drawn) for _ in range(buckets)]
        pool = torch.cat(batches)
        if len(pool.unique()) == len(pool):  # else one batch might hold a sample twice
            pool = pool[lengths[pool].argsort(stable=True)]
            batches = list(pool.split(len(batches[0])))
        for place in torch.randperm(buckets, generator=generator).tolist():
            yield batches[place]
