"""Whether a model is a function of each sample alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._probes import ragged_probe
from ._runs import Axes, Reading, Run
from ._tensors import close

__all__ = ["check_repeatable", "check_samples_apart", "keeps_padding_out"]

# Distance of a sample's states, in a batch and alone, relative to their norm: other kernels run on
# other batch shapes, also with TF32, under autocast and in half precision.
_APART = {torch.float64: 1e-4, torch.float32: 2e-2}
_APART_ROUNDED = 5e-2
# Ranges of dynamically quantised modules are those of the batch.
_APART_QUANTISED = 0.3
_ROUNDED = ("bfloat16", "float8", "qint", "quint")


def check_repeatable(reading: Reading, probe: SequenceBatch, first: Run) -> None:
    """Run once more and compare.

    Raises
    ------
    CaptureError
        The model is not a function of its inputs.
    """
    second = reading.run(probe)
    for (name, before, source), (_, after, _) in zip(first.values(), second.values(), strict=True):
        if not _same(before, after, source):
            raise CaptureError(
                f"{name} differs between two runs on the same inputs. The model keeps a state "
                "between calls or draws random numbers in evaluation mode; give forward= that "
                "resets it first."
            )


def check_samples_apart(reading: Reading, probe: SequenceBatch, axes: Axes) -> None:
    """Run samples in a batch and alone, and compare.

    Raises
    ------
    CaptureError
        A sample's states depend on which others share its batch, or the model cannot take one
        sample alone.
    """
    batch = _varied(probe)
    try:
        seen = reading.watch(batch)
    except CaptureError:  # reversed samples may be none that the model knows
        batch = probe
        seen = reading.watch(batch)
    together = axes.arrange(reading.interpret(seen, batch))
    quantised = any("quantized" in type(module).__module__ for module in reading.model.modules())
    for row in (0, len(batch.values) - 1):
        one = SequenceBatch(
            batch.values[row : row + 1], batch.lengths[row : row + 1], has_time=batch.has_time
        )
        try:
            alone = axes.arrange(reading.run(one))
        except CaptureError as error:
            raise CaptureError(
                f"with a batch of one sample, {error} Batches of any number of samples must give "
                "the same kind of result."
            ) from error
        pairs = zip(together.values(), alone.values(), strict=True)
        for (name, mixed, source), (_, single, _) in pairs:
            if not _near(mixed[row : row + 1], single, source, quantised=quantised):
                raise CaptureError(
                    f"{name} of a sample depends on the other samples of its batch. The model "
                    "takes its samples along another axis, or normalises over the batch in "
                    "evaluation mode (BatchNorm without running statistics); hand it each batch "
                    "as it wants it with forward=."
                )


def keeps_padding_out(
    reading: Reading, probe: SequenceBatch, axes: Axes, *, takes_lengths: bool
) -> bool:
    """Return whether padded sequences give what each gives alone, in states and output.

    A model that is told the lengths is tried with zeros, the padding that it will see. One that
    is not must give the same whatever the padding is, and have no states or outputs per sample:
    those could agree by chance, as a maximum over time does.
    """
    if not probe.has_time or int(probe.lengths[0]) == 1:
        return False
    if not takes_lengths and not axes.all_in_time():
        return False
    together, alone = ragged_probe(probe)
    batches = [together] if takes_lengths else [together, *_otherwise_padded(together)]
    try:
        singles = [axes.arrange(reading.run(batch)) for batch in alone]
        return all(
            _agree(axes.arrange(reading.run(batch)), singles, alone, axes) for batch in batches
        )
    except CaptureError:
        return False


def _agree(mixed: Run, singles: list[Run], alone: list[SequenceBatch], axes: Axes) -> bool:
    roles = [*axes.sites.values(), axes.output]
    for row, (single, batch) in enumerate(zip(singles, alone, strict=True)):
        real = int(batch.lengths[0])
        triples = zip(mixed.values(), single.values(), roles, strict=True)
        for (_, padded, source), (_, plain, _), axis in triples:
            part = padded[row : row + 1]
            if not _same(part[:, :real] if "time" in axis else part, plain, source):
                return False
    return True


def _otherwise_padded(together: SequenceBatch) -> Iterator[SequenceBatch]:
    """Yield the batch with steps after the end of its shorter sequence that are not zero."""
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


def _varied(probe: SequenceBatch) -> SequenceBatch:
    """Return the probe with every second sample reversed, as its samples may all be the same."""
    values = probe.values.clone()
    axis = 1 if probe.has_time else -1
    values[1::2] = values[1::2].flip(axis)
    return SequenceBatch(values, probe.lengths, has_time=probe.has_time)


def _same(first: Tensor, second: Tensor, source: str | None) -> bool:
    if source is not None and source.startswith(_ROUNDED):
        # As close as the precision in which they were computed.
        first, second = first.bfloat16(), second.bfloat16()
    return close(first, second)


def _near(mixed: Tensor, single: Tensor, source: str | None, *, quantised: bool) -> bool:
    if mixed.shape != single.shape or mixed.dtype != single.dtype:
        return False
    limit = _APART.get(mixed.dtype, _APART_ROUNDED)
    if source is not None:
        limit = max(limit, _APART_ROUNDED)
    if quantised:
        limit = _APART_QUANTISED
    if mixed.dtype == torch.float16:
        mixed, single = mixed.float(), single.float()
    mixed, single = torch.nan_to_num(mixed), torch.nan_to_num(single)
    distance = torch.linalg.vector_norm(mixed - single)
    return bool(distance <= limit * torch.linalg.vector_norm(single) + 1e-6)
