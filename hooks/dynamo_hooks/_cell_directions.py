"""Which cells a model calls from the last step to the first.

Call k of a cell belongs to step k, or to the step as far from the end. Counting cannot tell, but
the causality of the loop can: what happens at the last step reaches only the last call of a cell
that runs forwards, and every call of one that runs backwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._recurrent_cells import with_state
from ._recurrent_modules import runs_sequences
from ._recurrent_reading import Reading, Run
from ._tensors import close

__all__ = ["cells_run_backwards", "with_other_step"]


def cells_run_backwards(reading: Reading, probe: SequenceBatch, run: Run) -> frozenset[str]:
    """Return the paths of the cells that the model calls from the last step to the first.

    Changing the inputs at either end settles the cells that read them. It does not settle those
    above a bidirectional layer, whose every step has seen all inputs. There the states of modules
    of known direction are changed instead, at one end each, where nothing else of the module
    follows from them: at the last call of a cell, at one step of what a module returns.

    Parameters
    ----------
    reading
        A reading that takes no cell for a reversed one.
    probe
        Sequences of equal length.
    run
        What the reading gave on the probe.

    Raises
    ------
    CaptureError
        The direction of a cell does not show.
    """
    steps = int(probe.lengths[0])
    if steps == 1 or not reading.cells:
        return frozenset()

    def changes(batch: SequenceBatch) -> dict[str, list[bool]]:
        states = reading.run(batch).states
        return {name: _changed(run.states[name], states[name]) for name in reading.cells}

    backwards: dict[str, bool] = {}
    after_first, after_last = (changes(with_other_step(probe, step)) for step in (0, steps - 1))
    for name in reading.cells:
        verdict = _from_inputs(after_first[name], after_last[name])
        if verdict is not None:
            backwards[name] = verdict
    # Per cell, what it did after changes at the first and at the last step.
    seen: dict[str, tuple[list[list[bool]], list[list[bool]]]] = {
        name: ([], []) for name in reading.cells
    }
    sources = deque(name for name in reading.modules if name not in reading.cells)
    sources.extend(backwards)
    while sources and len(backwards) < len(reading.cells):
        source = sources.popleft()
        module = reading.modules[source]
        ends = (False, True) if runs_sequences(module) else (not backwards[source],)
        for at_end in ends:
            with _other_state(module, steps=steps, at_end=at_end):
                for name, changed in changes(probe).items():
                    seen[name][at_end].append(changed)
        for name in reading.cells:
            verdict = None if name in backwards else _from_states(*seen[name])
            if verdict is not None:
                backwards[name] = verdict
                sources.append(name)
    unsettled = [name for name in reading.cells if name not in backwards]
    if unsettled:
        raise CaptureError(
            f"whether the model calls cell {', '.join(map(repr, unsettled))} from the first step "
            "to the last or from the last to the first does not show in what its states depend "
            "on. Choose with layers= also the cells that it reads, or say which cells run "
            "backwards: reversed_cells=['backward.*'], for example, or reversed_cells=[] if none "
            "does."
        )
    return frozenset(name for name, reverse in backwards.items() if reverse)


def with_other_step(probe: SequenceBatch, step: int) -> SequenceBatch:
    """Return the batch with other inputs at one step, such as occur in it.

    Of ids the next that occurs, of numbers those of the step that differs most.

    >>> ids = SequenceBatch(torch.tensor([[3, 5, 9]]), torch.tensor([3]))
    >>> with_other_step(ids, 2).values
    tensor([[3, 5, 3]])
    """
    values = probe.values.clone()
    now = values[:, step]
    if not values.is_floating_point():
        known = values.unique()
        values[:, step] = known[(torch.searchsorted(known, now.contiguous()) + 1) % len(known)]
        return SequenceBatch(values, probe.lengths)
    steps = values.reshape(-1, values[0, 0].numel())
    distances = torch.cdist(now.reshape(len(now), -1).double(), steps.double())
    if bool((distances.amax(dim=1) > 0).all()):
        values[:, step] = steps[distances.argmax(dim=1)].reshape(now.shape)
    else:
        values[:, step] = _moved(now)
    return SequenceBatch(values, probe.lengths)


@contextmanager
def _other_state(module: nn.Module, *, steps: int, at_end: bool) -> Iterator[None]:
    """Let a module return another state at its last call; one for sequences, at one step."""
    calls = 0

    def hook(module: Any, arguments: Any, result: Any) -> Any:
        nonlocal calls
        calls += 1
        if not runs_sequences(module):
            if calls < steps:
                return None
            return with_state(result, _moved(result if isinstance(result, Tensor) else result[0]))
        output, last = result
        data = output.data if isinstance(output, PackedSequence) else output
        changed = data.clone()
        if isinstance(output, PackedSequence):  # all of one length: a row per step and sample
            samples = int(output.batch_sizes[0])
            part = changed[-samples:] if at_end else changed[:samples]
        else:
            part = changed.select(1 if module.batch_first else 0, -1 if at_end else 0)
        part.copy_(_moved(part))
        if isinstance(output, PackedSequence):
            return output._replace(data=changed), last
        return changed, last

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _moved(state: Tensor) -> Tensor:
    """Return other numbers of the same size, which no normalisation over units takes back."""
    units = torch.arange(state.shape[-1], device=state.device).cos()
    return state + (units * state.abs().max().clamp(min=1)).to(state.dtype)


def _changed(before: Tensor, after: Tensor) -> list[bool]:
    """Return for each call whether the state is another one."""
    return [
        not close(one, other) for one, other in zip(before.unbind(1), after.unbind(1), strict=True)
    ]


def _from_inputs(after_first: Sequence[bool], after_last: Sequence[bool]) -> bool | None:
    """Return whether a cell runs backwards, from what it does after changes of the inputs."""
    early = any(after_first[:-1]), any(after_last[:-1])
    return {(True, False): False, (False, True): True}.get(early)


def _from_states(
    after_first: Sequence[Sequence[bool]], after_last: Sequence[Sequence[bool]]
) -> bool | None:
    """Return whether a cell runs backwards, from what it does after changes of other states.

    Those at one end must reach its last call only, and those at the other end earlier calls.
    """

    def final(changes: Sequence[Sequence[bool]]) -> bool:
        return any(calls[-1] and not any(calls[:-1]) for calls in changes)

    def early(changes: Sequence[Sequence[bool]]) -> bool:
        return any(any(calls[:-1]) for calls in changes)

    if final(after_last) and early(after_first) and not final(after_first):
        return False
    if final(after_first) and early(after_last) and not final(after_last):
        return True
    return None
