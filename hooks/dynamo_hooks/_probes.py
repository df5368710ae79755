"""Small batches whose shapes tell the axes of foreign tensors apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

__all__ = ["AxisRole", "arranged", "axis_roles", "full_probe", "probe_sizes", "ragged_probe"]

AxisRole: TypeAlias = Literal["sample", "time", "unit"]


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


def axis_roles(
    first: Tensor,
    second: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    what: str = "the output",
    unit_axes: int | None = 1,
    mend: str = "Choose another part of the result with output=, or reshape it in forward=.",
) -> tuple[AxisRole, ...]:
    """Say what each axis of a tensor is, from two runs on batches of different sizes.

    Parameters
    ----------
    first, second
        What the same model gave on two batches without padding.
    sizes
        (samples, time) of the two batches. Sample counts differ; a time never equals a sample
        count. Where inputs have no time, the times are 0, which no axis is long.
    what
        What messages call the tensor.
    unit_axes
        Most axes that follow neither; None for any number, such as those of feature maps.
    mend
        How to mend it, for messages.

    Returns
    -------
    tuple of str
        One of `sample`, `time` and `unit` per axis: sample once, time at most once.

    Raises
    ------
    CaptureError
        An axis follows neither, two follow the same, or the times do not differ and an axis
        could be either.
    """
    samples, times = zip(*sizes, strict=True)
    came = f"shapes {tuple(first.shape)} and {tuple(second.shape)} for inputs of " + " and ".join(
        f"{sample} samples x {time} steps" for sample, time in sizes
    )
    most = "any number" if unit_axes is None else f"at most {unit_axes}"
    expected = (
        f"expected one axis of samples, at most one of time steps and {most} of units, in any "
        "order, such as (sample, unit) or (sample, time, unit)"
    )
    roles: list[AxisRole] = []
    for pair in zip(first.shape, second.shape, strict=False):
        if pair == samples:
            roles.append("sample")
        elif pair == times:
            if times[0] == times[1]:
                raise CaptureError(
                    f"{what} has {came}: an axis of {pair[0]} may be the time steps or the "
                    "units, and the model cannot be run on another number of steps to find out. "
                    f"{mend}"
                )
            roles.append("time")
        elif pair[0] == pair[1]:
            roles.append("unit")
        else:
            raise CaptureError(
                f"{what} has {came}: axis {len(roles)} follows neither. {expected}. {mend}"
            )
    if (
        first.dim() != second.dim()
        or roles.count("sample") != 1
        or roles.count("time") > 1
        or (unit_axes is not None and roles.count("unit") > unit_axes)
    ):
        raise CaptureError(f"{what} has {came}; {expected}. {mend}")
    return tuple(roles)


def arranged(output: Tensor, roles: Sequence[str], *, what: str = "the output") -> Tensor:
    """Return a tensor as (sample, units...) or (sample, time, units...), one unit if it has none.

    >>> arranged(torch.zeros(7, 2), ["time", "sample"]).shape
    torch.Size([2, 7, 1])
    """
    if output.dim() != len(roles):
        raise CaptureError(
            f"{what} has shape {tuple(output.shape)}; on the first samples it had the axes "
            f"({', '.join(roles)}). The model must give the same kind of result every time."
        )
    order = [
        axis
        for role in ("sample", "time", "unit")
        for axis, found in enumerate(roles)
        if found == role
    ]
    output = output.permute(order)
    return output if "unit" in roles else output.unsqueeze(-1)
