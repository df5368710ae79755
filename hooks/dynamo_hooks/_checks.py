"""Whether a model is a function of each sample alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._axes import Axes
from ._probe_batches import otherwise_padded, ragged_probe, varied
from ._reading import Reading, Run
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
    second.check_sites(first.states)
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
    batch = varied(probe)
    try:
        seen = reading.watch(batch)
    except CaptureError:  # changed samples may be none that the model takes
        batch = probe
        seen = reading.watch(batch)
    together = axes.arrange(reading.interpret(seen, batch))
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
            limit = _limit(reading, mixed.dtype, source)
            if not _near(mixed[row : row + 1], single, limit):
                raise CaptureError(
                    f"{name} of a sample depends on the other samples of its batch. The model "
                    "takes its samples along another axis, or normalises over the batch in "
                    "evaluation mode (BatchNorm without running statistics); hand it each batch "
                    "as it wants it with forward=lambda model, values, lengths: ..., for example "
                    "model(values.transpose(0, 1))."
                )


def keeps_padding_out(
    reading: Reading, probe: SequenceBatch, axes: Axes, *, takes_lengths: bool
) -> bool:
    """Return whether padded sequences give what each gives alone, in states and output.

    A model that is told the lengths, and heeds them, is tried with zeros, the padding that it
    will see. Any other must give the same whatever the padding is, and have no states or outputs
    per sample: those could agree by chance, as a maximum over time does.
    """
    if not probe.has_time or int(probe.lengths[0]) == 1:
        return False
    together, alone = ragged_probe(probe)
    try:
        batches = [together]
        if not (takes_lengths and _heeds_lengths(reading, together, axes)):
            if not axes.all_in_time():
                return False
            batches += otherwise_padded(together)
        singles = [axes.arrange(reading.run(batch)) for batch in alone]
        return all(
            _agree(axes.arrange(reading.run(batch)), singles, alone, axes) for batch in batches
        )
    except CaptureError:
        return False


def _heeds_lengths(reading: Reading, together: SequenceBatch, axes: Axes) -> bool:
    """Return whether the model gives something else where it is told that nothing is padding.

    A user's `forward` is handed the lengths, and may ignore them.
    """
    full = together.lengths.max().expand_as(together.lengths).clone()
    for batch in (together, *otherwise_padded(together)):
        told = axes.arrange(reading.run(batch)).values()
        try:
            untold = axes.arrange(reading.run(SequenceBatch(batch.values, full))).values()
        except CaptureError:
            return True
        triples = zip(told, untold, strict=True)
        if not all(_same(one, other, source) for (_, one, source), (_, other, _) in triples):
            return True
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


def _same(first: Tensor, second: Tensor, source: str | None) -> bool:
    if source is not None and source.startswith(_ROUNDED):
        # As close as the precision in which they were computed.
        first, second = first.bfloat16(), second.bfloat16()
    return close(first, second)


def _limit(reading: Reading, dtype: torch.dtype, source: str | None) -> float:
    modules = reading.model.modules() if isinstance(reading.model, nn.Module) else ()
    if any("quantized" in type(module).__module__ for module in modules):
        return _APART_QUANTISED
    limit = _APART.get(dtype, _APART_ROUNDED)
    return limit if source is None else max(limit, _APART_ROUNDED)


def _near(mixed: Tensor, single: Tensor, limit: float) -> bool:
    if mixed.shape != single.shape or mixed.dtype != single.dtype:
        return False
    if mixed.dtype == torch.float16:
        mixed, single = mixed.float(), single.float()
    mixed, single = torch.nan_to_num(mixed), torch.nan_to_num(single)
    distance = torch.linalg.vector_norm(mixed - single)
    return bool(distance <= limit * torch.linalg.vector_norm(single) + 1e-6)
