"""One settled way of reading a model, and what is found out by reading it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._calling import Call
from ._evaluation import Firing, firings
from ._probes import AxisRole, arranged, full_probe, ragged_probe
from ._recurrent_calls import checked_call, read_call
from ._recurrent_layers import hidden_states, layer_names
from ._tensors import close, copied, padded, select_output, storable

__all__ = ["Reading", "Run", "check_repeatable", "mixes_lengths", "second_run"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one forward pass gave."""

    states: dict[str, Tensor]
    """Site name to (sample, time, units), in order of computation."""
    output: Tensor
    """As the model returned it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which modules of a model are read, and how it is called."""

    model: nn.Module
    """In evaluation mode, without gradients."""
    modules: Mapping[str, nn.RNNBase]
    """Site name to module, in order of computation."""
    call: Call
    """How the model takes its inputs."""
    output: str | int | None
    """Which part of its result is the output."""

    def run(self, batch: SequenceBatch) -> Run:
        """Run the model once; raises `CaptureError` where it does not behave."""
        with firings(self.modules, read_call) as fired:
            result = self.call(self.model, batch)
        return self.interpret(result, fired, batch)

    def interpret(self, result: Any, fired: Mapping[str, Firing], batch: SequenceBatch) -> Run:
        """Return states and output of a forward pass that has been watched."""
        output = select_output(result, self.output)
        if isinstance(output, PackedSequence):
            output = padded(output)[0]
            if self.call.time_first:
                output = output.transpose(0, 1)
        states: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            captured = checked_call(name, fired.get(name), batch)
            layers = hidden_states(module, captured, name, batch.lengths)
            for site, state in zip(layer_names(name, module.num_layers), layers, strict=True):
                states[site] = storable(state, f"the hidden state of {site!r}")
        return Run(states=states, output=copied(output))


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
    """
    for time in times[:-1]:
        try:
            return reading.run(full_probe(inputs, samples=samples, time=time)), (samples, time)
        except CaptureError:
            continue
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
