"""One settled way of reading a model, and what is found out by reading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._axes import arranged
from ._calling import Call
from ._firings import Firing, firings
from ._probe_batches import full_probe, ragged_probe
from ._reading import AxisRole
from ._recurrent_calls import checked_call, read_call
from ._recurrent_cells import StepRecorder, cell_names
from ._recurrent_layers import has_cell_state, layer_names, layer_states
from ._recurrent_modules import runs_sequences
from ._results import select_output
from ._tensors import close, copied, padded, stored_state

__all__ = ["Reading", "Run", "check_repeatable", "mixes_lengths", "second_run"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one forward pass gave."""

    states: dict[str, Tensor]
    """Site name to (sample, time, units...), in order of computation, contiguous."""
    source_dtypes: dict[str, str | None]
    """Site name to the dtype in which the model computed it, where another one is stored."""
    output: Tensor
    """As the model returned it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which modules of a model are read, and how it is called."""

    model: nn.Module
    """In evaluation mode, without gradients."""
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

    def run(self, batch: SequenceBatch) -> Run:
        """Run the model once; raises `CaptureError` where it does not behave."""
        return self._observed(batch)[1]

    def first_run(
        self, batch: SequenceBatch, *, beside: Mapping[str, nn.Module], all_run: bool
    ) -> tuple[Reading, Run]:
        """Run the model once; return the reading of those modules that ran, in their order.

        Parameters
        ----------
        batch
            What the model is shown.
        beside
            Modules that messages name if they ran.
        all_run
            Whether every module must run, not only one.

        Raises
        ------
        CaptureError
            The model does not behave, or none of the modules ran.
        """
        return self._observed(batch, beside=beside, all_run=all_run, narrow=True)

    def _observed(
        self,
        batch: SequenceBatch,
        *,
        beside: Mapping[str, nn.Module] | None = None,
        all_run: bool = True,
        narrow: bool = False,
    ) -> tuple[Reading, Run]:
        samples, steps = batch.values.shape[:2]
        recorders = {
            module: StepRecorder(
                name,
                samples=samples,
                steps=steps,
                backwards=name in self.reversed_cells,
                cell_state=self.cell_state,
            )
            for name, module in self.cells.items()
        }
        read = set(self.modules.values())

        def reader(
            module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any
        ) -> Any:
            if module in recorders:
                return recorders[module].read(result)
            if module not in read:
                return None
            again = module.num_layers > 1 or (self.cell_state and has_cell_state(module))
            return read_call(module, arguments, keywords, result, again=again)

        watched = {**(beside or {}), **self.modules}
        with firings(watched, reader, keep=None if recorders else 1) as fired:
            result = self.call(self.model, batch)
        silent = [name for name in self.modules if name not in fired]
        running = {name: self.modules[name] for name in fired if name in self.modules}
        if silent and (all_run or not running):
            raise CaptureError(
                f"module {', '.join(map(repr, silent))} did not run in the forward pass (those "
                f"that did: {', '.join(map(repr, fired)) or 'none'}). Hooks see modules that are "
                "called as module(...), not module.forward(...), and a model must take the same "
                "path for all inputs; choose with layers= among those that run, or make the model "
                "run it with forward=."
            )
        reading = replace(self, modules=running) if narrow else self
        return reading, reading._interpreted(result, fired, recorders, batch)

    def _interpreted(
        self,
        result: Any,
        fired: Mapping[str, Firing],
        recorders: Mapping[nn.Module, StepRecorder],
        batch: SequenceBatch,
    ) -> Run:
        output = select_output(result, self.output)
        if isinstance(output, PackedSequence):
            output = padded(output)[0]
            if self.call.time_first:
                output = output.transpose(0, 1)
        states: dict[str, Tensor] = {}
        source_dtypes: dict[str, str | None] = {}
        for name, module in self.modules.items():
            for site, parts in self._sites(name, module, fired[name], recorders, batch):
                for label, part in zip(cell_names(site, len(parts)), parts, strict=True):
                    if label in states:
                        raise CaptureError(
                            f"two sites would be called {label!r}: a module, and the cell state "
                            f"of {site!r}. Choose one of them with layers=."
                        )
                    states[label], source_dtypes[label] = stored_state(part, f"site {label!r}")
        return Run(states=states, source_dtypes=source_dtypes, output=copied(output))

    def _sites(
        self,
        name: str,
        module: nn.Module,
        firing: Firing,
        recorders: Mapping[nn.Module, StepRecorder],
        batch: SequenceBatch,
    ) -> Iterable[tuple[str, list[Tensor]]]:
        if module in recorders:
            return [(name, recorders[module].states(module))]
        call = checked_call(name, firing, batch)
        layers = layer_states(module, call, name, batch.lengths, cell_state=self.cell_state)
        return zip(layer_names(name, len(layers)), layers, strict=True)


def check_repeatable(reading: Reading, probe: SequenceBatch, first: Run) -> None:
    """Run once more and compare.

    Raises
    ------
    CaptureError
        The model is not a function of its inputs.
    """
    second = reading.run(probe)
    pairs = [(name, first.states[name], second.states[name]) for name in first.states]
    for name, before, after in [*pairs, ("the output", first.output, second.output)]:
        if not close(before, after):
            raise CaptureError(
                f"{name} differs between two runs on the same inputs. The model keeps a state "
                "between calls or draws random numbers in evaluation mode; give forward= that "
                "resets it first."
            )


def second_run(
    reading: Reading, inputs: SequenceBatch, *, samples: int, times: Sequence[int]
) -> tuple[Run, tuple[int, int]]:
    """Run on the first of the given numbers of steps that the model takes; return it, and size.

    Some models take one number of steps only; it stands last.

    Raises
    ------
    CaptureError
        The model takes none; or it steps through cells and takes no other number, so that it may
        step along something else than its inputs.
    """
    for time in times[:-1]:
        try:
            return reading.run(full_probe(inputs, samples=samples, time=time)), (samples, time)
        except CaptureError as error:
            fault = error
    if reading.cells:
        raise CaptureError(
            f"cells must be called once per step, whatever the number of steps. On {times[-1]} "
            f"steps {', '.join(map(repr, reading.cells))} was; on another number: {fault}"
        ) from fault
    last = full_probe(inputs, samples=samples, time=times[-1])
    return reading.run(last), (samples, times[-1])


def mixes_lengths(reading: Reading, probe: SequenceBatch, roles: Sequence[AxisRole]) -> bool:
    """Return whether padded sequences give what each gives alone, in states and output."""
    if int(probe.lengths[0]) == 1:
        return False
    together, alone = ragged_probe(probe)
    try:
        mixed = reading.run(together)
        singles = [reading.run(batch) for batch in alone]
        outputs = [arranged(run.output, roles) for run in (mixed, *singles)]
    except CaptureError:
        return False
    for row, (single, batch) in enumerate(zip(singles, alone, strict=True)):
        real = int(batch.lengths[0])
        output = outputs[0][row : row + 1]
        pairs = [(output[:, :real] if "time" in roles else output, outputs[1 + row])]
        for name, state in single.states.items():
            pairs.append((mixed.states[name][row : row + 1, :real], state))
        if not all(close(one, other) for one, other in pairs):
            return False
    return True
