"""Which cells a model calls from the last step to the first.

Call k of a cell belongs to step k, or to the step as far from the end. Counting cannot tell, but
the causality of the loop can: what happens at the last step reaches only the last call of a cell
that runs forwards, and every call of one that runs backwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
from torch import Tensor

from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, suggest
from dynamo_plugin.types import SequenceBatch

from ._patterns import matches
from ._probe_batches import next_that_occurs
from ._reading import Reading, Run
from ._tensors import close

__all__ = ["Disturb", "cells_run_backwards", "checked_reversed", "moved_state", "with_other_step"]

Disturb: TypeAlias = Callable[[str, bool], AbstractContextManager[None]]
"""Takes the name of a site and whether at its end; lets it have another state there, so that
nothing else of the site follows from it: at the last call of a cell, at one step of what a module
that runs whole sequences returns."""


def checked_reversed(patterns: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return what a user gave as `reversed_cells`; raises `InvalidInput` if it is a string."""
    if isinstance(patterns, str):
        raise InvalidInput(
            "reversed_cells must be a sequence of patterns, for example ['backward.*']; got "
            f"{patterns!r}."
        )
    return None if patterns is None else tuple(patterns)


def cells_run_backwards(
    reading: Reading,
    cells: Collection[str],
    probe: SequenceBatch,
    run: Run,
    *,
    said: Sequence[str] | None = None,
    sequences: Sequence[str] = (),
    disturb: Disturb | None = None,
) -> frozenset[str]:
    """Return the cells that the model calls from the last step to the first.

    Changing the inputs at either end settles the cells that read them. It does not settle those
    above a bidirectional layer, whose every step has seen all inputs. There the states of sites
    of known direction are changed instead, where that can be done.

    Parameters
    ----------
    reading
        A reading that takes no cell for a reversed one.
    cells
        Their sites, in order of computation.
    probe
        Sequences of equal length.
    run
        What the reading gave on the probe.
    said
        Patterns over the cells that run backwards, where the user said which do.
    sequences
        Names of modules that run whole sequences, whose states can be changed too.
    disturb
        Changes a state.

    Raises
    ------
    CaptureError
        The direction of a cell does not show.
    UnknownName
        A pattern matches no cell.
    """
    if said is not None:
        return _as_said(cells, said)
    steps = int(probe.lengths[0])
    if steps == 1 or not cells:
        return frozenset()

    def changes(batch: SequenceBatch) -> dict[str, list[bool]]:
        states = reading.run(batch).states
        return {name: _changed(run.states[name], states[name]) for name in cells}

    backwards: dict[str, bool] = {}
    after_first, after_last = (changes(with_other_step(probe, step)) for step in (0, steps - 1))
    for name in cells:
        verdict = _from_inputs(after_first[name], after_last[name])
        if verdict is not None:
            backwards[name] = verdict
    # Per cell, what it did after changes at the first and at the last step.
    seen: dict[str, tuple[list[list[bool]], list[list[bool]]]] = {name: ([], []) for name in cells}
    sources = deque([*sequences, *backwards])
    while disturb is not None and sources and len(backwards) < len(cells):
        source = sources.popleft()
        for at_end in (not backwards[source],) if source in backwards else (False, True):
            with disturb(source, at_end):
                for name, changed in changes(probe).items():
                    seen[name][at_end].append(changed)
        for name in cells:
            verdict = None if name in backwards else _from_states(*seen[name])
            if verdict is not None:
                backwards[name] = verdict
                sources.append(name)
    unsettled = [name for name in cells if name not in backwards]
    if unsettled:
        raise CaptureError(
            f"whether the model calls cell {', '.join(map(repr, unsettled))} from the first step "
            "to the last or from the last to the first does not show in what its states depend "
            "on. Choose with layers= also the cells that it reads, or say which cells run "
            "backwards: reversed_cells=['backward.*'], for example, or reversed_cells=[] if none "
            "does."
        )
    return frozenset(name for name, reverse in backwards.items() if reverse)


def _as_said(cells: Collection[str], said: Sequence[str]) -> frozenset[str]:
    for pattern in said:
        if not any(matches(name, pattern) for name in cells):
            raise UnknownName(
                f"reversed_cells: {pattern!r} matches no cell that is recorded. "
                f"{suggest(pattern, cells)}"
            )
    return frozenset(name for name in cells if any(matches(name, pattern) for pattern in said))


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
        values[:, step] = next_that_occurs(now, values)
        return SequenceBatch(values, probe.lengths)
    steps = values.reshape(-1, values[0, 0].numel())
    distances = torch.cdist(now.reshape(len(now), -1).double(), steps.double())
    if bool((distances.amax(dim=1) > 0).all()):
        values[:, step] = steps[distances.argmax(dim=1)].reshape(now.shape)
    else:
        values[:, step] = moved_state(now)
    return SequenceBatch(values, probe.lengths)


def moved_state(state: Tensor) -> Tensor:
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
