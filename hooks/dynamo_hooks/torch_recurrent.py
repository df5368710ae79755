"""Adapter for networks with recurrent modules of `torch.nn`, or with cells that they step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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

from ._axes import arranged, axis_roles
from ._calling import Call, Forward, lengths_parameter
from ._cell_directions import cells_run_backwards
from ._evaluation import evaluation_mode
from ._patterns import matches
from ._probe_batches import full_probe, probe_sizes
from ._recurrent_modules import chosen_modules, named_modules, recurrent_modules
from ._recurrent_reading import Reading, Run, check_repeatable, mixes_lengths, second_run
from ._tensors import dtype_name, storable
from ._wrappers import require_hookable, unwrapped

__all__ = ["TorchRecurrentAdapter"]


class TorchRecurrentAdapter(Adapter):
    """Record the hidden state of recurrent modules and of cells at every step.

    The state is h, the one that the next layer sees. A module that is called `rnn` in the model
    is the site `rnn`; its layers, where it stacks several, are the sites `rnn.layer0`,
    `rnn.layer1`, ...; a model that is itself the recurrent module is the site `rnn`, `gru` or
    `lstm`. Forward and reverse units of bidirectional modules stand side by side, as in
    `torch.nn`. The cell state of the site `rnn` is the site `rnn.cell`, if it is asked for.

    A cell that the model's own loop calls once per step is a site too: its calls are time. Those
    of `torch.nn` are found; others are named with `layers`. The state of a call is the returned
    tensor, (sample, units...), or the first of a returned tuple. Whether the loop runs from the
    last step to the first is found out by changing inputs and states at either end.

    Batches may arrive at the module padded or packed, sample or time first. Lengths are handed
    to models whose forward has a parameter `lengths`, `length`, `seq_lens`, `seq_lengths`,
    `sequence_lengths` or `input_lengths`, as int64 on the CPU. LSTMs and GRUs that were quantised
    dynamically are read like others, but for their cell states.

    Parameters
    ----------
    layers
        Patterns over module paths: `*` stays within one component, `**` crosses dots. One that
        matches recurrent modules or cells of `torch.nn` chooses these; one that matches none
        chooses other modules, which must be called once per step. By default all recurrent
        modules and cells that run.
    forward
        `forward(model, values, lengths)` calls the model in its own way.
    output
        Key, attribute or index of the output in what the model returns.
    cell_state
        Record cell states too: of LSTMs, and the second tensor that a cell returns, if it has the
        shape of the first. Other modules have none.
    reversed_cells
        Patterns over the paths of cells that the model calls from the last step to the first;
        needed where that does not show.

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
        cell_state: bool = False,
        reversed_cells: Sequence[str] | None = None,
    ) -> None:
        if isinstance(layers, str) or (layers is not None and not layers):
            raise InvalidInput(
                f"layers must be a sequence of at least one pattern, for example ['encoder.*']; "
                f"got {layers!r}."
            )
        if isinstance(reversed_cells, str):
            raise InvalidInput(
                "reversed_cells must be a sequence of patterns, for example ['backward.*']; got "
                f"{reversed_cells!r}."
            )
        self.layers = None if layers is None else tuple(layers)
        self.forward = forward
        self.output = output
        self.cell_state = cell_state
        self.reversed_cells = None if reversed_cells is None else tuple(reversed_cells)

    def supports(self, model: object) -> bool:
        """Return whether the model holds recurrent modules or cells of `torch.nn`.

        Where `layers` names the cells, any module will do. A model that `torch.compile`,
        `DataParallel` or `DistributedDataParallel` wraps is read through the module inside.
        """
        if not isinstance(model, nn.Module):
            return False
        model = unwrapped(model)
        if isinstance(model, torch.jit.ScriptModule):
            return False
        return self.layers is not None or bool(recurrent_modules(model))

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        """Run the model on a few sequences and find out how it takes and returns them.

        The runs use batches whose sample count differs from the number of steps, so that no
        layout is ever guessed. `options` of the result holds `time_first` (the model takes
        (time, sample, ...) values), `takes_lengths`, `ragged_batches` (sequences of different
        lengths may share a batch: each gives what it gives alone), `modules`, `reversed_cells`
        (which of them the model calls from the last step to the first), `cell_state` and
        `output_axes`.

        Parameters
        ----------
        model
            An `nn.Module`.
        inputs
            At least one sequence, of the kind that will be recorded.

        Raises
        ------
        UnsupportedModel
            The model is scripted, holds a compiled submodule or no recurrent module; or cell
            states are asked of a quantised LSTM.
        UnknownName
            A pattern of `layers` or `reversed_cells` matches nothing, or `output` names nothing.
        CaptureError
            A recurrent module never runs, runs more than once per forward pass or on another
            number of steps than the inputs have; a cell is not called once per step on the whole
            batch, or its direction does not show; the model raises, is not a function of its
            inputs, or returns no readable output.
        """
        model = self._checked(model)
        if not inputs.has_time:
            raise InvalidInput(
                f"inputs are one array of shape {tuple(inputs.values.shape[1:])} per sample; a "
                "recurrent network needs sequences: (sample, time) ids or (sample, time, feature) "
                "numbers. Add an axis: values[..., None] is one feature per step."
            )
        time = int(inputs.lengths.max())
        other_times = [time - 1] if time > 1 else []
        other_times.append(time + 1)
        samples, other_samples = probe_sizes([time, *other_times])
        probe = full_probe(inputs, samples=samples, time=time)
        with evaluation_mode(model):
            reading, run = self._find_layout(model, probe)
            check_repeatable(reading, probe, run)
            second, size = second_run(
                reading, inputs, samples=other_samples, times=[*other_times, time]
            )
            reversed_cells = self._reversed(reading, probe, run)
            reading = replace(reading, reversed_cells=reversed_cells)
            roles = axis_roles(run.output, second.output, [(samples, time), size])
            if roles.count("unit") > 1:
                raise CaptureError(
                    f"the output has shapes {tuple(run.output.shape)}; expected at most one axis "
                    "of units. Reshape it in forward=."
                )
            takes_lengths = self.forward is not None or lengths_parameter(model.forward) is not None
            ragged = takes_lengths and mixes_lengths(reading, probe, roles)
        output = arranged(storable(run.output, "the output"), roles)
        axis: RowAxis = "time" if "time" in roles else "sample"
        units = int(output.shape[-1])
        options: dict[str, JSON] = {
            "time_first": reading.call.time_first,
            "takes_lengths": takes_lengths,
            "ragged_batches": ragged,
            "modules": list(reading.modules),
            "reversed_cells": [*sorted(reversed_cells)],
            "cell_state": self.cell_state,
            "output_axes": list(roles),
        }
        return TrajectorySpec(
            adapter=self.name,
            sites=tuple(
                SiteSpec(
                    name,
                    tuple(state.shape[2:]),
                    dtype_name(state),
                    source_dtype=run.source_dtypes[name],
                )
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
        available = named_modules(model)
        missing = [name for name in options["modules"] if name not in available]
        if missing:
            raise CaptureError(
                f"the model has no module {missing[0]!r}, which it had when it was described. "
                "The model changed in between."
            )
        reading = Reading(
            model,
            {name: available[name] for name in options["modules"]},
            Call(self.forward, time_first=bool(options["time_first"])),
            self.output,
            cell_state=bool(options["cell_state"]),
            reversed_cells=frozenset(options["reversed_cells"]),
        )
        with evaluation_mode(model):
            run = reading.run(inputs)
        output = arranged(storable(run.output, "the output"), options["output_axes"])
        found = {
            name: (tuple(state.shape[2:]), dtype_name(state), run.source_dtypes[name])
            for name, state in run.states.items()
        }
        expected = {site.name: (site.shape, site.dtype, site.source_dtype) for site in spec.sites}
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
        if self.layers is None and not recurrent_modules(model):
            raise UnsupportedModel(
                f"{type(model).__name__} holds no nn.RNN, nn.GRU or nn.LSTM and no cell of "
                "torch.nn. Name other cells, which the model calls once per step, with layers=."
            )
        return model

    def _find_layout(self, model: nn.Module, probe: SequenceBatch) -> tuple[Reading, Run]:
        """Try (sample, time), then (time, sample) inputs; return the reading that fits."""
        chosen = chosen_modules(model, self.layers)
        faults: list[CaptureError] = []
        for time_first in (False, True):
            call = Call(self.forward, time_first=time_first)
            reading = Reading(model, chosen, call, self.output, cell_state=self.cell_state)
            try:
                return reading.first_run(
                    probe, beside=recurrent_modules(model), all_run=self.layers is not None
                )
            except CaptureError as error:
                faults.append(error)
        if str(faults[0]) == str(faults[1]):
            raise faults[0]
        raise CaptureError(
            f"{faults[0]} (Given (time, sample, ...) values instead: {faults[1]})"
        ) from faults[0]

    def _reversed(self, reading: Reading, probe: SequenceBatch, run: Run) -> frozenset[str]:
        if self.reversed_cells is None:
            return cells_run_backwards(reading, probe, run)
        for pattern in self.reversed_cells:
            if not any(matches(name, pattern) for name in reading.cells):
                raise UnknownName(
                    f"reversed_cells: {pattern!r} matches no cell that is recorded. "
                    f"{suggest(pattern, reading.cells)}"
                )
        return frozenset(
            name
            for name in reading.cells
            if any(matches(name, pattern) for pattern in self.reversed_cells)
        )
