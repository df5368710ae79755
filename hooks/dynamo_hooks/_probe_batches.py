"""Small batches that show how a foreign model behaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dynamo_plugin.types import SequenceBatch

__all__ = [
    "full_probe",
    "next_that_occurs",
    "otherwise_padded",
    "probe_sizes",
    "ragged_probe",
    "varied",
]


def probe_sizes(times: Sequence[int]) -> tuple[int, int]:
    """Return two sample counts that differ from each other and from all the given times.

    >>> probe_sizes([3, 4])
    (2, 5)
    """
    free = (size for size in range(2, 5 + len(times)) if size not in times)
    return next(free), next(free)


def full_probe(inputs: SequenceBatch, *, samples: int, time: int) -> SequenceBatch:
    """Return a batch without padding, made of the longest of the given sequences.

    Sequences are repeated where there are too few, and cut or extended by repeating the last
    step where `time` asks for it. Inputs without time are only repeated.
    """
    if not inputs.has_time:
        chosen = torch.arange(samples) % len(inputs.values)
        lengths = torch.ones(samples, dtype=torch.int64)
        return SequenceBatch(inputs.values[chosen], lengths, has_time=False)
    longest = int(inputs.lengths.max())
    rows = (inputs.lengths == longest).nonzero()[:, 0]
    chosen = rows[torch.arange(samples) % len(rows)]
    steps = torch.arange(time).clamp(max=longest - 1)
    values = inputs.values[chosen][:, steps]
    return SequenceBatch(values=values, lengths=torch.full((samples,), time, dtype=torch.int64))


def ragged_probe(full: SequenceBatch) -> tuple[SequenceBatch, list[SequenceBatch]]:
    """Return two sequences of different lengths in one padded batch, and each one alone."""
    time = int(full.lengths[0])
    short = (time + 1) // 2
    values = full.values[:2].clone()
    values[1, short:] = 0
    together = SequenceBatch(values=values, lengths=torch.tensor([time, short]))
    alone = [
        SequenceBatch(values=values[row : row + 1, :length], lengths=torch.tensor([length]))
        for row, length in enumerate((time, short))
    ]
    return together, alone


def otherwise_padded(together: SequenceBatch) -> Iterator[SequenceBatch]:
    """Yield a ragged probe with other padding than zeros: large numbers, or ids that occur."""
    values, short = together.values, int(together.lengths[1])
    steps = values.shape[1] - short
    if values.is_floating_point():
        large = 3 * values.abs().max().clamp(min=1)
        signs = torch.ones_like(values[1, short:])
        signs.view(-1)[::2] = -1
        paddings = [large * signs, -large * signs]
    else:
        paddings = [values.max().expand_as(values[1, short:]), values[0, :steps].flip(0)]
    for padding in paddings:
        padded = values.clone()
        padded[1, short:] = padding
        yield SequenceBatch(padded, together.lengths)


def varied(probe: SequenceBatch) -> SequenceBatch:
    """Return a probe with every second sample changed, as its samples may all be the same.

    It is reversed, so that steps differ, and its numbers are halved, or its ids exchanged for
    others that occur, so that means over steps differ too.

    >>> varied(SequenceBatch(torch.tensor([[1, 2, 2], [1, 2, 2]]), torch.tensor([3, 3]))).values
    tensor([[1, 2, 2],
            [1, 1, 2]])
    """
    values = probe.values.clone()
    changed = values[1::2].flip(1 if probe.has_time else -1)
    values[1::2] = changed / 2 if values.is_floating_point() else next_that_occurs(changed, values)
    return SequenceBatch(values, probe.lengths, has_time=probe.has_time)


def next_that_occurs(ids: Tensor, among: Tensor) -> Tensor:
    """Return for each id the next larger one that occurs, for the largest the smallest.

    >>> next_that_occurs(torch.tensor([3, 9]), torch.tensor([9, 3, 5]))
    tensor([5, 3])
    """
    known: Tensor = among.unique()
    return known[(torch.searchsorted(known, ids.contiguous()) + 1) % len(known)]
