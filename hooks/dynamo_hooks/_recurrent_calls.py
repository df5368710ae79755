"""What recurrent modules receive and return, read by a hook and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._evaluation import Firing
from ._tensors import copied

__all__ = ["Hidden", "RecurrentCall", "Sequences", "checked_call", "read_call"]

Sequences: TypeAlias = Tensor | PackedSequence
Hidden: TypeAlias = Tensor | tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True)
class RecurrentCall:
    """One call of a recurrent module, copied."""

    samples: int | None
    """Sequences in the batch; None where the module was handed a single unbatched sequence."""
    steps: int
    """Padded length of the batch."""
    output: Any
    """Hidden states of the last layer, as the module returned them."""
    inputs: Sequences | None
    """What the module received; kept only where there are layers to unroll."""
    hidden: Hidden
    """Initial state as received; kept only where there are layers to unroll."""


def read_call(
    module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any
) -> RecurrentCall:
    """Keep what one call of a recurrent module received and returned."""
    assert isinstance(module, nn.RNNBase)
    received = arguments[0] if arguments else keywords["input"]
    hidden = arguments[1] if len(arguments) > 1 else keywords.get("hx")
    output = result[0] if isinstance(result, tuple) and result else None
    samples: int | None
    if isinstance(received, PackedSequence):
        samples, steps = int(received.batch_sizes[0]), len(received.batch_sizes)
    elif received.dim() == 3:
        first, second = received.shape[:2]
        samples, steps = (first, second) if module.batch_first else (second, first)
    else:
        samples, steps = None, received.shape[0]
    stacked = module.num_layers > 1
    return RecurrentCall(
        samples=samples,
        steps=steps,
        output=_copied(output) if isinstance(output, Tensor | PackedSequence) else output,
        inputs=_copied(received) if stacked else None,
        hidden=_copied_hidden(hidden) if stacked else None,
    )


def checked_call(name: str, firing: Firing | None, batch: SequenceBatch) -> RecurrentCall:
    """Return the one call of a recurrent module, which must have seen the whole batch.

    Raises
    ------
    CaptureError
        The module did not run, ran several times, or saw other samples or steps.
    """
    if firing is None:
        raise CaptureError(
            f"recurrent module {name!r} did not run, though it ran when the model was "
            "described. The model must take the same path for all inputs."
        )
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


def _copied(sequence: Sequences) -> Sequences:
    if isinstance(sequence, Tensor):
        return copied(sequence)
    return PackedSequence(
        copied(sequence.data),
        sequence.batch_sizes,
        sequence.sorted_indices,
        sequence.unsorted_indices,
    )


def _copied_hidden(hidden: Any) -> Hidden:
    if hidden is None:
        return None
    if isinstance(hidden, Tensor):
        return copied(hidden)
    return copied(hidden[0]), copied(hidden[1])
