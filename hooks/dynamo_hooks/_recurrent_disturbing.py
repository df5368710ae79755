"""Other states in the course of a forward pass, to see what follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._cell_directions import moved_state
from ._recurrent_modules import runs_sequences

__all__ = ["other_state"]


@contextmanager
def other_state(module: nn.Module, *, steps: int, at_end: bool) -> Iterator[None]:
    """Let a module return another state at its last call; one for sequences, at one step.

    The sequences are of equal length, `steps`.
    """
    calls = 0

    def hook(module: Any, arguments: Any, result: Any) -> Any:
        nonlocal calls
        calls += 1
        if not runs_sequences(module):
            if calls < steps:
                return None
            return _with_state(
                result, moved_state(result if isinstance(result, Tensor) else result[0])
            )
        output, last = result
        data = output.data if isinstance(output, PackedSequence) else output
        changed = data.clone()
        if isinstance(output, PackedSequence):  # all of one length: a row per step and sample
            samples = int(output.batch_sizes[0])
            part = changed[-samples:] if at_end else changed[:samples]
        else:
            part = changed.select(1 if module.batch_first else 0, -1 if at_end else 0)
        part.copy_(moved_state(part))
        if isinstance(output, PackedSequence):
            return output._replace(data=changed), last
        return changed, last

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _with_state(result: Any, state: Tensor) -> Any:
    """Return what a cell returned with another hidden state in its place."""
    if isinstance(result, Tensor):
        return state
    if hasattr(result, "_fields"):
        return type(result)(state, *result[1:])
    return type(result)((state, *result[1:]))
