"""What recurrent modules receive and return, read by a hook and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.registry.copying import copied
from dynamo_plugin.types import SequenceBatch

from ._firings import Firing

__all__ = ["Hidden", "RecurrentCall", "Sequences", "checked_call", "read_call", "sample_first"]

Sequences: TypeAlias = Tensor | PackedSequence
Hidden: TypeAlias = Tensor | tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True)
class RecurrentCall:
    """One call of a recurrent module, copied."""

    samples: int | None
    """Sequences in the batch; None where the module was handed a single unbatched sequence."""
    steps: int
    """Padded length of the batch."""
    returned: str
    """Type of the states that the module returned, for messages."""
    states: Tensor | None
    """(sample, time, units), hidden states of the last layer; None where the module returned
    something else."""
    lengths: Tensor | None
    """(sample,) int64, of packed sequences; None where the module ran over the padding."""
    inputs: Sequences | None
    """What the module received; kept only where it is run again."""
    hidden: Hidden
    """Initial state as received; kept only where the module is run again."""
    last: Any
    """Last state as the module returned it; kept only where the module is run again."""
    autocast: torch.dtype | None
    """Dtype to which automatic mixed precision cast while the module ran, if it did."""


def read_call(
    module: Any,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    result: Any,
    *,
    again: bool,
) -> RecurrentCall:
    """Keep what one call of a recurrent module received and returned.

    Parameters
    ----------
    module
        An `nn.RNN`, `nn.GRU` or `nn.LSTM`, or what quantisation makes of one.
    arguments, keywords, result
        Of the call.
    again
        Whether inputs and initial state are needed too, to run the module again.
    """
    received = arguments[0] if arguments else keywords["input"]
    hidden = arguments[1] if len(arguments) > 1 else keywords.get("hx")
    output, last = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    samples: int | None
    if isinstance(received, PackedSequence):
        samples, steps = int(received.batch_sizes[0]), len(received.batch_sizes)
    elif received.dim() == 3:
        first, second = received.shape[:2]
        samples, steps = (first, second) if module.batch_first else (second, first)
    else:
        samples, steps = None, received.shape[0]
    states, lengths = None, None
    if last is not None and (
        isinstance(output, PackedSequence) or (isinstance(output, Tensor) and output.dim() == 3)
    ):
        states, lengths = sample_first(output, batch_first=module.batch_first)
    device = (received.data if isinstance(received, PackedSequence) else received).device.type
    return RecurrentCall(
        samples=samples,
        steps=steps,
        returned=type(output).__name__,
        states=states,
        lengths=lengths,
        inputs=_copied(received) if again else None,
        hidden=_copied(hidden) if again else None,
        last=_copied(last) if again else None,
        autocast=(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None),
    )


def checked_call(name: str, firing: Firing, batch: SequenceBatch) -> RecurrentCall:
    """Return the one call of a recurrent module, which must have seen the whole batch.

    Raises
    ------
    CaptureError
        The module ran several times, or saw other samples or steps.
    """
    if firing.count > 1:
        raise CaptureError(
            f"recurrent module {name!r} ran {firing.count} times in one forward pass; expected "
            "once, on whole sequences. Choose other modules with layers=, or give forward= "
            "that runs it once on all steps."
        )
    call: RecurrentCall = firing.calls[0]
    samples, steps = batch.values.shape[:2]
    if call.samples is None:
        raise CaptureError(
            f"recurrent module {name!r} received one unbatched sequence of {call.steps} steps; "
            f"expected a batch of {samples} sequences."
        )
    if (call.samples, call.steps) == (samples, steps):
        return call
    if (call.samples, call.steps) == (steps, samples):
        reason = (
            "Samples and time are exchanged: batch_first of the module contradicts the layout in "
            "which the model, or another of its modules, takes its inputs"
        )
    elif call.samples == samples:
        reason = (
            "The model shortens or lengthens its sequences (strides, pooling, added tokens, "
            "packing by other lengths), so that a state belongs to no single input step"
        )
    else:
        reason = "The model regroups its sequences"
    raise CaptureError(
        f"recurrent module {name!r} received {call.samples} sequences of {call.steps} steps where "
        f"the inputs are {samples} sequences of {steps} steps. {reason}; choose other modules "
        "with layers=, or change the call with forward=."
    )


def sample_first(sequences: Sequences, *, batch_first: bool) -> tuple[Tensor, Tensor | None]:
    """Return a contiguous (sample, time, ...) copy in the caller's order, made in one pass.

    Packed sequences come with their lengths, (sample,) int64 on the CPU, and are padded with
    zeros.

    >>> from torch.nn.utils.rnn import pack_sequence
    >>> packed = pack_sequence([torch.ones(1, 2), torch.ones(3, 2)], enforce_sorted=False)
    >>> values, lengths = sample_first(packed, batch_first=False)
    >>> values.shape, lengths
    (torch.Size([2, 3, 2]), tensor([1, 3]))
    """
    if isinstance(sequences, Tensor):
        return copied(sequences if batch_first else sequences.transpose(0, 1)), None
    sizes = sequences.batch_sizes
    samples = int(sizes[0])
    # Rows of step t follow those of step t - 1; within a step, sequences stand by length.
    place = torch.arange(samples)
    if sequences.unsorted_indices is not None:
        place = sequences.unsorted_indices.cpu()
    real = place[:, None] < sizes
    rows = ((sizes.cumsum(0) - sizes) + place[:, None]).where(real, 0)
    data = sequences.data.detach()
    values = data.index_select(0, rows.flatten().to(data.device)).unflatten(0, rows.shape)
    if not bool(real.all()):
        values.masked_fill_(~real[..., None].to(data.device), 0)
    return values, real.sum(dim=1)


def _copied(kept: Any) -> Any:
    if isinstance(kept, PackedSequence):
        data = copied(kept.data)
        return PackedSequence(data, kept.batch_sizes, kept.sorted_indices, kept.unsorted_indices)
    if isinstance(kept, tuple):
        return tuple(_copied(part) for part in kept)
    return copied(kept) if isinstance(kept, Tensor) else kept
