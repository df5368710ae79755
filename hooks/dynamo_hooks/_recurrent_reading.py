"""Reading recurrent modules, and cells that the model steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import JSON, SequenceBatch

from ._calling import Call
from ._cell_steps import MEND, StepRecorder, fixed_steps_fault
from ._firings import Firing, firings
from ._reading import AxisRole, Reading, Run
from ._recurrent_calls import checked_call, read_call
from ._recurrent_layers import has_cell_state, layer_names, layer_states
from ._recurrent_modules import recurrent_modules, runs_sequences
from ._results import select_output

__all__ = ["RecurrentReading"]


@dataclass(slots=True)
class Seen:
    """What was seen during one forward pass."""

    fired: Mapping[str, Firing]
    """Path to what a module did, in order of the first call of each."""
    recorders: Mapping[nn.Module, StepRecorder]
    """Cell to what it wrote down step by step."""
    result: Any = None
    """What the model returned."""


@dataclass(frozen=True, slots=True)
class RecurrentReading(Reading):
    """Which modules of a model are read, and how it is called."""

    proves_layout: ClassVar[bool] = True  # modules are seen to get the whole batch, as it should be

    model: nn.Module
    modules: Mapping[str, nn.Module]
    """Path to module, in order of computation: recurrent ones, and cells called step by step."""
    call: Call
    """How the model takes its inputs."""
    output: str | int | None
    """Which part of its result is the output."""
    cell_state: bool
    """Whether the cell states of LSTMs are read too."""
    reversed_cells: frozenset[str] = frozenset()
    """Paths of the cells that the model calls from the last step to the first."""

    @property
    def cells(self) -> dict[str, nn.Module]:
        """Path to module for those that are called step by step."""
        return {name: module for name, module in self.modules.items() if not runs_sequences(module)}

    def narrowed(self, batch: SequenceBatch, *, all_run: bool) -> tuple[RecurrentReading, Seen]:
        """Call the model once; return the reading of the modules that ran, in their order.

        Raises
        ------
        CaptureError
            None of them ran, or, where all should, one did not.
        """
        seen = self._watch(batch, beside=recurrent_modules(self.model))
        running = {name: self.modules[name] for name in seen.fired if name in self.modules}
        if not running or (all_run and len(running) < len(self.modules)):
            raise _silent([name for name in self.modules if name not in seen.fired], seen.fired)
        return replace(self, modules=running), seen

    def watch(self, batch: SequenceBatch) -> Seen:
        """Call the model once; return what its modules did, and its result."""
        return self._watch(batch, beside={})

    def _watch(self, batch: SequenceBatch, *, beside: Mapping[str, nn.Module]) -> Seen:
        samples, steps = batch.values.shape[:2]
        cells = self.cells
        torch_cells = recurrent_modules(self.model) if cells else {}
        recorders = {
            module: StepRecorder(
                name,
                type(module).__name__,
                samples=samples,
                steps=steps,
                backwards=name in self.reversed_cells,
                cell_state=self.cell_state,
                mend=MEND if name in torch_cells else _MEND_ANY_MODULE,
            )
            for name, module in cells.items()
        }

        read = set(self.modules.values())

        def reader(
            module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any
        ) -> Any:
            if module in recorders:
                return recorders[module].read(result)
            if module not in read:  # beside them, for messages
                return None
            again = module.num_layers > 1 or (self.cell_state and has_cell_state(module))
            return read_call(module, arguments, keywords, result, again=again)

        with firings({**beside, **self.modules}, reader, keep=None if recorders else 1) as fired:
            seen = Seen(fired, recorders)
            seen.result = self.call(self.model, batch)
        return seen

    def interpret(self, seen: Seen, batch: SequenceBatch) -> Run:
        """Return states, (sample, time, units...), and output of a call.

        Raises
        ------
        CaptureError
            A module did not run as it should.
        """
        silent = [name for name in self.modules if name not in seen.fired]
        if silent:
            raise _silent(silent, seen.fired)
        output = select_output(seen.result, self.output)
        states: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            for site, parts in self._sites(name, module, seen, batch):
                for label, part in zip(_labels(site, len(parts)), parts, strict=True):
                    if label in states:
                        raise CaptureError(
                            f"two sites would be called {label!r}: a module, and the cell state "
                            f"of {site!r}. Choose one of them with layers=."
                        )
                    states[label] = part
        return Run.of(states, output)

    def known_axes(self, state: Tensor) -> tuple[AxisRole, ...]:
        """Return (sample, time, unit, ...): states are put together so."""
        units: list[AxisRole] = ["unit"] * (state.dim() - 2)
        return ("sample", "time", *units)

    def fixed_steps_fault(self, steps: int, fault: CaptureError) -> CaptureError | None:
        """Refuse cells: the model may step along something else than its inputs."""
        return fixed_steps_fault(self.cells, steps, fault)

    def options(self) -> dict[str, JSON]:
        """Return which modules are read, and how."""
        return {
            "modules": list(self.modules),
            "reversed_cells": [*sorted(self.reversed_cells)],
            "cell_state": self.cell_state,
        }

    def _sites(
        self, name: str, module: nn.Module, seen: Seen, batch: SequenceBatch
    ) -> Iterable[tuple[str, list[Tensor]]]:
        if module in seen.recorders:
            return [(name, seen.recorders[module].states())]
        call = checked_call(name, seen.fired[name], batch)
        layers = layer_states(module, call, name, batch.lengths, cell_state=self.cell_state)
        return zip(layer_names(name, len(layers)), layers, strict=True)


_MEND_ANY_MODULE = (
    "A module that is neither a recurrent one of torch.nn nor called once per step is read by "
    'adapter="torch_layers"; or choose other modules with layers=.'
)


def _silent(silent: list[str], fired: Iterable[str]) -> CaptureError:
    return CaptureError(
        f"module {', '.join(map(repr, silent))} did not run in the forward pass (those that did: "
        f"{', '.join(map(repr, fired)) or 'none'}). Hooks see modules that are called as "
        "module(...), not module.forward(...), and a model must take the same path for all "
        "inputs; choose with layers= among those that run, or make the model run it with forward=."
    )


def _labels(site: str, states: int) -> tuple[str, ...]:
    """Return the site names of a module's hidden state and, where there are two, cell state."""
    return (site, f"{site}.cell")[:states]
