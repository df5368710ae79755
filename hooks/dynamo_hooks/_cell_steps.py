"""The states of a cell that the model's own loop calls once per step."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from dynamo_plugin.errors import CaptureError

__all__ = ["MEND", "StepRecorder", "fixed_steps_fault"]

MEND = "Choose other modules with layers=."
"""What to do about a cell that cannot be read."""


def fixed_steps_fault(
    cells: Collection[str], steps: int, fault: CaptureError
) -> CaptureError | None:
    """Return why cells cannot be read in a model that takes one number of steps only.

    It may step along something else than its inputs. None where there are no cells.
    """
    if not cells:
        return None
    return CaptureError(
        f"cells must be called once per step, whatever the number of steps. On {steps} steps "
        f"{', '.join(map(repr, cells))} was; on another number: {fault}"
    )


class StepRecorder:
    """Writes what one cell returns, call by call, into tensors that hold all steps.

    The state of a call is the tensor that it returns, (sample, units...), or the first of a
    tuple; the cell state is the second, if it has the same shape. Nothing is raised while the
    model runs, so that the number of calls is known when a fault is reported.

    Parameters
    ----------
    name, kind
        Path and class of the cell, for messages.
    samples, steps
        Size of the padded batch.
    backwards
        Whether the model steps from the last step to the first.
    cell_state
        Whether cell states are wanted of cells that return them.
    mend
        What to do about a module that is not called once per step, for messages.

    Examples
    --------
    >>> import torch
    >>> recorder = StepRecorder("cell", "GRUCell", samples=2, steps=2, backwards=True)
    >>> for step in (1.0, 0.0):
    ...     recorder.read(torch.full((2, 3), step))
    >>> recorder.states()[0][0]
    tensor([[0., 0., 0.],
            [1., 1., 1.]])
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        samples: int,
        steps: int,
        backwards: bool = False,
        cell_state: bool = False,
        mend: str = MEND,
    ) -> None:
        self.cell = f"cell {name!r} ({kind})"
        self.mend = mend
        self.samples = samples
        self.steps = steps
        self.backwards = backwards
        self.cell_state = cell_state
        self._calls = 0
        self._written: list[Tensor] = []
        self._fault: str | None = None

    def read(self, result: Any) -> None:
        """Write what one call returned, so that later in-place work cannot reach it."""
        call = self._calls
        self._calls += 1
        if self._fault is not None or call >= self.steps:
            return
        states = self._parts(result)
        if self._fault is None and call == 0:
            self._written = [
                state.new_empty(self.samples, self.steps, *state.shape[1:]) for state in states
            ]
        kinds = [(state.shape[1:], state.dtype, state.device) for state in states]
        before = [(whole.shape[2:], whole.dtype, whole.device) for whole in self._written]
        if self._fault is None and kinds != before:
            self._fault = (
                f"returned {_shown(states)} in call {call}, other than before; expected one "
                "shape, dtype and device at all steps"
            )
        if self._fault is not None:
            return
        step = self.steps - 1 - call if self.backwards else call
        for whole, state in zip(self._written, states, strict=True):
            whole[:, step] = state.detach()

    def states(self) -> list[Tensor]:
        """Return the hidden state and, if there is one, the cell state: (sample, time, units...).

        Raises
        ------
        CaptureError
            The cell was not called once per step on the whole batch, or returned no state.
        """
        if self._calls != self.steps:
            raise CaptureError(
                f"{self.cell} was called {self._calls} times on inputs of {self.steps} steps; "
                f"expected once per step, whatever the number of steps. {self._reason()}. "
                f"{self.mend}"
            )
        if self._fault is not None:
            raise CaptureError(f"{self.cell} {self._fault}. {MEND}")
        return self._written

    def _parts(self, result: Any) -> list[Tensor]:
        parts = list(result) if isinstance(result, tuple | list) else [result]
        state = parts[0] if parts else None
        where = f"in call {self._calls - 1}"
        if not isinstance(state, Tensor):
            self._fault = (
                f"returned {type(result).__name__} {where}; expected a tensor (sample, units), or "
                "a tuple with such a tensor first"
            )
            return []
        if state.dim() < 2:
            self._fault = (
                f"returned a state of shape {tuple(state.shape)} {where}; expected "
                f"({self.samples}, units), one row for each sample of the batch. Call it on "
                "batches, not on single samples"
            )
            return []
        if len(state) != self.samples:
            self._fault = (
                f"returned the states of {len(state)} samples {where}, of a batch of "
                f"{self.samples}. The model drops sequences that have ended, or regroups them; "
                "keep all of them in the batch, or let those of equal length share one"
            )
            return []
        second = parts[1] if self.cell_state and len(parts) > 1 else None
        if isinstance(second, Tensor) and second.shape == state.shape:
            return [state, second]
        return [state]

    def _reason(self) -> str:
        if self._fault is not None and self._calls == self.samples * self.steps:
            return "It seems to see one sample at a time: call it on whole batches"
        if self._calls > self.steps and self._calls % self.steps == 0:
            return (
                "Where layers or directions share a cell, or a step takes several calls, a state "
                "belongs to no single step"
            )
        return "The model steps along something else than its inputs, or stops early"


def _shown(states: list[Tensor]) -> str:
    return " and ".join(
        f"{str(state.dtype).removeprefix('torch.')} of {tuple(state.shape)} on {state.device}"
        for state in states
    )
