"""Adapter for networks with recurrent modules of `torch.nn`, or with cells that they step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dynamo_plugin.errors import InvalidInput, UnsupportedModel
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

from ._calling import Call, Forward, lengths_parameter
from ._cell_directions import cells_run_backwards, checked_reversed
from ._describing import describe_reading
from ._evaluation import reading_mode
from ._patterns import checked_patterns
from ._reading import Run
from ._recording import record_reading, still_there
from ._recurrent_disturbing import other_state
from ._recurrent_modules import (
    chosen_modules,
    named_modules,
    recurrent_modules,
    runs_sequences,
)
from ._recurrent_reading import RecurrentReading, Seen
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
        self.layers = checked_patterns(layers, example="encoder.*")
        self.forward = forward
        self.output = output
        self.cell_state = cell_state
        self.reversed_cells = checked_reversed(reversed_cells)

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

        `options` of the result holds `time_first` (the model takes (time, sample, ...) values),
        `takes_lengths`, `ragged_batches` (sequences of different lengths may share a batch: each
        gives what it gives alone), `site_axes`, `output_axes`, `modules`, `reversed_cells` (which
        of them the model calls from the last step to the first) and `cell_state`.

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
        InvalidInput
            The inputs have no time.
        UnknownName
            A pattern of `layers` or `reversed_cells` matches nothing, or `output` names nothing.
        CaptureError
            A recurrent module never runs, runs more than once per forward pass or on another
            number of steps than the inputs have; a cell is not called once per step on the whole
            batch, or its direction does not show; samples influence each other; the model
            raises, is not a function of its inputs, or returns no readable output.
        """
        model = self._checked(model)
        if not inputs.has_time:
            raise InvalidInput(
                f"inputs are one array of shape {tuple(inputs.values.shape[1:])} per sample; a "
                "recurrent network needs sequences: (sample, time) ids or (sample, time, feature) "
                "numbers. Add an axis: values[..., None] is one feature per step."
            )
        chosen = chosen_modules(model, self.layers)

        def read(time_first: bool, probe: SequenceBatch) -> tuple[RecurrentReading, Seen]:  # noqa: FBT001
            call = Call(self.forward, time_first=time_first)
            reading = RecurrentReading(model, chosen, call, self.output, cell_state=self.cell_state)
            return reading.narrowed(probe, all_run=self.layers is not None)

        with reading_mode(model):
            return describe_reading(
                read,
                inputs,
                adapter=self.name,
                takes_lengths=self.forward is not None
                or lengths_parameter(model.forward) is not None,
                settle=self._with_directions,
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
        reading = RecurrentReading(
            model,
            still_there(named_modules(model), options["modules"], kind="module"),
            Call(self.forward, time_first=options["time_first"]),
            self.output,
            cell_state=options["cell_state"],
            reversed_cells=frozenset(options["reversed_cells"]),
        )
        with reading_mode(model):
            return record_reading(reading, inputs, spec)

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

    def _with_directions(
        self, reading: RecurrentReading, probe: SequenceBatch, run: Run
    ) -> RecurrentReading:
        steps = int(probe.lengths[0])
        backwards = cells_run_backwards(
            reading,
            reading.cells,
            probe,
            run,
            said=self.reversed_cells,
            sequences=[name for name, module in reading.modules.items() if runs_sequences(module)],
            disturb=lambda name, at_end: other_state(
                reading.modules[name], steps=steps, at_end=at_end
            ),
        )
        return replace(reading, reversed_cells=backwards)
