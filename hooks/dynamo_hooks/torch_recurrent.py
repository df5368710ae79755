"""Adapter for modules that hold an `nn.RNN`, `nn.GRU` or `nn.LSTM`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel, suggest
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import (
    JSON,
    OutputSpec,
    RowAxis,
    SequenceBatch,
    SiteSpec,
    Trajectory,
    TrajectorySpec,
)

from ._calling import Call, Forward, lengths_parameter
from ._evaluation import Firing, evaluation_mode, firings
from ._probes import arranged, axis_roles, full_probe, probe_sizes
from ._recurrent_calls import read_call
from ._recurrent_reading import Reading, Run, check_repeatable, mixes_lengths, second_run
from ._tensors import dtype_name, storable
from ._wrappers import require_hookable, unwrapped

__all__ = ["TorchRecurrentAdapter"]


class TorchRecurrentAdapter(Adapter):
    """Record the hidden state of recurrent modules at every step.

    The state is h, the one that the next layer sees; the cell state of an LSTM is not recorded.
    A module that is called `rnn` in the model is the site `rnn`; its layers, where it stacks
    several, are the sites `rnn.layer0`, `rnn.layer1`, ...; a model that is itself the recurrent
    module is the site `rnn`, `gru` or `lstm`. Forward and reverse units of bidirectional modules
    stand side by side, as in `torch.nn`.

    Batches may arrive at the module padded or packed, sample or time first. Lengths are handed
    to models whose forward has a parameter `lengths`, `length`, `seq_lens`, `seq_lengths`,
    `sequence_lengths` or `input_lengths`, as int64 on the CPU.

    Parameters
    ----------
    layers
        Patterns (`fnmatch`) over the paths of recurrent modules; all that run by default.
    forward
        `forward(model, values, lengths)` calls the model in its own way.
    output
        Key, attribute or index of the output in what the model returns.

    Examples
    --------
    >>> batch = SequenceBatch(torch.zeros(3, 5, 2), torch.tensor([5, 5, 5]))
    >>> adapter = TorchRecurrentAdapter()
    >>> network = nn.LSTM(2, 4, num_layers=2, batch_first=True)
    >>> spec = adapter.describe(network, batch)
    >>> [site.name for site in spec.sites], spec.output.axis
    (['lstm.layer0', 'lstm.layer1'], 'time')
    >>> adapter.record(network, batch, spec).states["lstm.layer0"].shape
    torch.Size([3, 5, 4])
    """

    name = "torch_recurrent"

    def __init__(
        self,
        *,
        layers: Sequence[str] | None = None,
        forward: Forward | None = None,
        output: str | int | None = None,
    ) -> None:
        if isinstance(layers, str) or (layers is not None and not layers):
            raise InvalidInput(
                f"layers must be a sequence of at least one pattern, for example ['encoder.*']; "
                f"got {layers!r}."
            )
        self.layers = None if layers is None else tuple(layers)
        self.forward = forward
        self.output = output

    def supports(self, model: object) -> bool:
        """Return whether the model is a module that holds an `nn.RNN`, `nn.GRU` or `nn.LSTM`.

        A model that `torch.compile`, `DataParallel` or `DistributedDataParallel` wraps is read
        through the module inside.
        """
        if not isinstance(model, nn.Module):
            return False
        model = unwrapped(model)
        return not isinstance(model, torch.jit.ScriptModule) and bool(_recurrent_modules(model))

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        """Run the model on a few sequences and find out how it takes and returns them.

        The runs use batches whose sample count differs from the number of steps, so that no
        layout is ever guessed. `options` of the result holds `time_first` (the model takes
        (time, sample, ...) values), `takes_lengths`, `ragged_batches` (sequences of different
        lengths may share a batch: each gives what it gives alone), `modules` and `output_axes`.

        Parameters
        ----------
        model
            An `nn.Module`.
        inputs
            At least one sequence, of the kind that will be recorded.

        Raises
        ------
        UnsupportedModel
            The model is scripted, holds a compiled submodule or no recurrent module.
        UnknownName
            A pattern of `layers` matches no recurrent module, or `output` names nothing.
        CaptureError
            A recurrent module never runs, runs more than once per forward pass or on another
            number of steps than the inputs have; the model raises, is not a function of its
            inputs, or returns no readable output.
        """
        model = self._checked(model)
        if not inputs.has_time:
            raise InvalidInput(
                f"inputs are one array of shape {tuple(inputs.values.shape[1:])} per sample; a "
                "recurrent network needs sequences: (sample, time) ids or (sample, time, feature) "
                "numbers. Add an axis: values[..., None] is one feature per step."
            )
        available = _recurrent_modules(model)
        chosen = self._chosen(available)
        time = int(inputs.lengths.max())
        other_times = [time - 1] if time > 1 else []
        other_times.append(time + 1)
        samples, other_samples = probe_sizes([time, *other_times])
        probe = full_probe(inputs, samples=samples, time=time)
        with evaluation_mode(model):
            reading, run = self._find_layout(model, available, chosen, probe)
            check_repeatable(reading, probe, run)
            second, size = second_run(
                reading, inputs, samples=other_samples, times=[*other_times, time]
            )
            roles = axis_roles(run.output, second.output, [(samples, time), size])
            takes_lengths = self.forward is not None or lengths_parameter(model) is not None
            ragged = takes_lengths and mixes_lengths(reading, probe, roles)
        output = arranged(storable(run.output, "the output"), roles)
        axis: RowAxis = "time" if "time" in roles else "sample"
        units = int(output.shape[-1])
        options: dict[str, JSON] = {
            "time_first": reading.call.time_first,
            "takes_lengths": takes_lengths,
            "ragged_batches": ragged,
            "modules": list(reading.modules),
            "output_axes": list(roles),
        }
        return TrajectorySpec(
            adapter=self.name,
            sites=tuple(
                SiteSpec(name, (int(state.shape[-1]),), dtype_name(state))
                for name, state in run.states.items()
            ),
            output=OutputSpec(
                group=f"output{units}" + ("-per-step" if axis == "time" else ""),
                shape=(units,),
                dtype=dtype_name(output),
                axis=axis,
            ),
            options=options,
        )

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        """Run the model once and return copies of its hidden states and its output.

        Parameters
        ----------
        model
            The model that `spec` describes.
        inputs
            Sequences by decreasing length; of equal lengths unless the options of `spec` say
            `ragged_batches`.
        spec
            What `describe` returned; the name of the output group may have been changed.

        Raises
        ------
        CaptureError
            The model does not behave as it did when it was described.
        """
        model = self._checked(model)
        options: Mapping[str, Any] = spec.options
        if not options["ragged_batches"] and bool((inputs.lengths != inputs.lengths[0]).any()):
            raise CaptureError(
                f"{type(model).__name__} cannot tell padding from data, and was given sequences "
                f"of {int(inputs.lengths.min())} to {int(inputs.lengths.max())} steps in one "
                "batch; record sequences of equal length together."
            )
        available = _recurrent_modules(model)
        modules = {name: available[name] for name in options["modules"] if name in available}
        call = Call(self.forward, time_first=bool(options["time_first"]))
        with evaluation_mode(model):
            run = Reading(model, modules, call, self.output).run(inputs)
        output = arranged(storable(run.output, "the output"), options["output_axes"])
        found = {name: (tuple(t.shape[2:]), dtype_name(t)) for name, t in run.states.items()}
        expected = {site.name: (site.shape, site.dtype) for site in spec.sites}
        if found != expected:
            raise CaptureError(
                f"expected the sites {expected} as they were described; got {found}. "
                "The model changed in between."
            )
        leading: tuple[int, ...] = tuple(inputs.values.shape[:2])
        wanted = (leading if spec.output.axis == "time" else leading[:1]) + spec.output.shape
        if tuple(output.shape) != wanted or dtype_name(output) != spec.output.dtype:
            raise CaptureError(
                f"expected an output of shape {wanted} and dtype {spec.output.dtype}; got "
                f"{tuple(output.shape)} and {dtype_name(output)}. Per-step outputs must have as "
                "many steps as the padded inputs."
            )
        return Trajectory(
            states=run.states, outputs={spec.output.group: output}, lengths=inputs.lengths.clone()
        )

    def _checked(self, given: object) -> nn.Module:
        if not isinstance(given, nn.Module):
            raise UnsupportedModel(
                f"expected a torch.nn.Module with a recurrent module; got {type(given).__name__}."
            )
        model = unwrapped(given)
        require_hookable(model)
        if not _recurrent_modules(model):
            raise UnsupportedModel(
                f"{type(model).__name__} holds no nn.RNN, nn.GRU or nn.LSTM. Cells that a model "
                "steps by hand are not recurrent modules."
            )
        return model

    def _chosen(self, available: Mapping[str, nn.RNNBase]) -> list[str]:
        if self.layers is None:
            return list(available)
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in available):
                raise UnknownName(
                    f"layers: {pattern!r} matches no recurrent module. "
                    f"{suggest(pattern, available)}"
                )
        return [
            name for name in available if any(fnmatchcase(name, pattern) for pattern in self.layers)
        ]

    def _find_layout(
        self,
        model: nn.Module,
        available: Mapping[str, nn.RNNBase],
        chosen: Sequence[str],
        probe: SequenceBatch,
    ) -> tuple[Reading, Run]:
        """Try (sample, time), then (time, sample) inputs; return the reading that fits."""
        faults: list[CaptureError] = []
        for time_first in (False, True):
            call = Call(self.forward, time_first=time_first)
            try:
                with firings(available, read_call) as fired:
                    result = call(model, probe)
                running = self._running(chosen, fired)
                modules = {name: available[name] for name in running}
                reading = Reading(model, modules, call, self.output)
                return reading, reading.interpret(result, fired, probe)
            except CaptureError as error:
                faults.append(error)
        if str(faults[0]) == str(faults[1]):
            raise faults[0]
        raise CaptureError(
            f"{faults[0]} (Given (time, sample, ...) values instead: {faults[1]})"
        ) from faults[0]

    def _running(self, chosen: Sequence[str], fired: Mapping[str, Firing]) -> list[str]:
        """Return the chosen modules that ran, in order of computation."""
        silent = [name for name in chosen if name not in fired]
        running = [name for name in fired if name in chosen]
        if silent and (self.layers is not None or not running):
            raise CaptureError(
                f"recurrent module {', '.join(map(repr, silent))} did not run in the forward pass "
                f"(those that did: {', '.join(map(repr, fired)) or 'none'}). Hooks see modules "
                "that are called as module(...), not module.forward(...); choose with layers= "
                "among those that run, or make the model run it with forward=."
            )
        return running


def _recurrent_modules(model: nn.Module) -> dict[str, nn.RNNBase]:
    """Return site name to module; a model that is itself recurrent is named after its class."""
    return {
        name or type(module).__name__.lower(): module
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase)
    }
