"""Reading modules of a flax.nnx network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamo_plugin.errors import CaptureError, DynamoError
from dynamo_plugin.types import JSON, SequenceBatch

from ._calling import Forward, call_failed, lengths_parameter
from ._cell_steps import StepRecorder, fixed_steps_fault
from ._nnx_arrays import is_abstract, is_array, to_jax, to_torch
from ._nnx_calls import Calls, callable_modules, watched_calls
from ._nnx_modules import UNSEEN, is_a, state_array
from ._reading import Reading, Run
from ._results import select_output

__all__ = ["NNXReading"]


@dataclass(frozen=True, slots=True)
class NNXReading(Reading):
    """Which modules of a network are read, and how it is called."""

    model: Any
    """A copy of the network, in evaluation mode."""
    chosen: Mapping[str, Any]
    """Site name to module of the copy."""
    originals: Mapping[str, Any]
    """Path to module of the network itself; these must not run."""
    forward: Forward | None
    """The user's own way of calling it."""
    output: str | int | None
    """Which part of its result is the output."""
    time_first: bool = False
    """Whether the network wants (time, sample, ...) values."""
    stepped_cells: frozenset[str] = frozenset()
    """Sites that the network calls once per step, so that their calls are time."""
    reversed_cells: frozenset[str] = frozenset()
    """Those of them that it calls from the last step to the first."""

    def watch(self, batch: SequenceBatch) -> tuple[dict[str, Calls], Any]:
        """Call the network once; return what its modules did, and its result.

        Raises
        ------
        CaptureError
            A module ran inside a transformation, or the network raised.
        """

        def read(name: str, result: Any) -> Tensor:
            return to_torch(state_array(name, self.chosen[name], result), f"site {name!r}")

        with watched_calls(self.chosen, read, forbidden=self.originals) as called:
            result = self.call(batch)
        return called, result

    def interpret(self, seen: tuple[dict[str, Calls], Any], batch: SequenceBatch) -> Run:
        """Return states and output of a call.

        Raises
        ------
        CaptureError
            A module ran never or several times.
        """
        called, result = seen
        silent = [name for name in self.chosen if name not in called]
        if silent:
            raise CaptureError(
                f"module {', '.join(map(repr, silent))} was not called in the forward pass. "
                f"{UNSEEN} Choose modules that are called with layers=, or give forward= that "
                "calls them."
            )
        states = {name: self._state(name, calls, batch) for name, calls in called.items()}
        return Run.of(states, self._output(result))

    def options(self) -> dict[str, JSON]:
        """Return which modules are cells."""
        return {
            "stepped_cells": [*sorted(self.stepped_cells)],
            "reversed_cells": [*sorted(self.reversed_cells)],
        }

    def fixed_steps_fault(self, steps: int, fault: CaptureError) -> CaptureError | None:
        """Refuse cells: the network may step along something else than its inputs."""
        return fixed_steps_fault(sorted(self.stepped_cells), steps, fault)

    def all_calls(self, batch: SequenceBatch) -> dict[str, Calls]:
        """Call the network; return path to calls of every module, in order of the first return.

        Their results say whether they ran inside a transformation of JAX.
        """
        import jax

        def abstract(_: str, result: Any) -> bool:
            return any(map(is_abstract, jax.tree.leaves(result)))

        modules = callable_modules(self.model)
        with watched_calls(modules, abstract, forbidden=self.originals) as called:
            self.call(batch)
        return called

    def call(self, batch: SequenceBatch) -> Any:
        """Call the network and return what it returns.

        Raises
        ------
        CaptureError
            The network raised; says how it was called.
        """
        given = batch.values.transpose(0, 1).contiguous() if self.time_first else batch.values
        values = to_jax(given, "the inputs")
        lengths = to_jax(batch.lengths, "the lengths")
        name = lengths_parameter(type(self.model).__call__) if batch.has_time else None
        try:
            if self.forward is not None:
                return self.forward(self.model, values, lengths)
            return self.model(values, **({} if name is None else {name: lengths}))
        except DynamoError:
            raise
        except Exception as error:
            if self.forward is not None:
                way = "forward(model, values, lengths)"
            else:
                way = "model(values)" if name is None else f"model(values, {name}=lengths)"
            way = f"as {way} with values of shape {values.shape} and dtype {values.dtype}"
            raise call_failed(self.model, error, way) from error

    def _state(self, name: str, calls: Calls, batch: SequenceBatch) -> Tensor:
        if name in self.stepped_cells:
            samples, steps = batch.values.shape[:2]
            recorder = StepRecorder(
                name,
                type(self.chosen[name]).__name__,
                samples=samples,
                steps=steps,
                backwards=name in self.reversed_cells,
            )
            for result in calls.results:
                recorder.read(result)
            return recorder.states()[0]
        if batch.has_time and is_a("RNNCellBase", self.chosen[name]):
            results: list[Tensor] = calls.results
            if any(result.shape != results[0].shape for result in results):
                raise CaptureError(
                    f"cell {name!r} returned arrays of different shapes from call to call, so "
                    "that its calls are no axis of one state. Choose other modules with layers=."
                )
            return torch.stack(results)
        if calls.count > 1:
            raise CaptureError(
                f"module {name!r} was called {calls.count} times in one forward pass; expected "
                "once. Choose other modules with layers=, or give forward= that calls it once."
            )
        state: Tensor = calls.results[0]
        return state

    def _output(self, result: Any) -> Tensor:
        import jax

        def converted(leaf: Any) -> Any:
            try:
                return to_torch(leaf, "the output") if is_array(leaf) else leaf
            except CaptureError:  # an error only where this part is the output
                return leaf

        output = select_output(jax.tree.map(converted, result), self.output)
        assert isinstance(output, Tensor)  # JAX knows no packed sequences
        return output
