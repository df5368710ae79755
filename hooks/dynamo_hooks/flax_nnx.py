"""Adapter for flax.nnx modules, the neural networks of JAX."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dynamo_plugin.errors import UnsupportedModel
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

from ._calling import Forward, lengths_parameter
from ._cell_directions import cells_run_backwards, checked_reversed
from ._describing import describe_reading
from ._nnx_arrays import fingerprint
from ._nnx_calls import callable_modules
from ._nnx_modules import matching_modules, named_modules, outermost_modules, stepped_cells
from ._nnx_reading import NNXReading
from ._patterns import checked_patterns
from ._reading import Run
from ._recording import record_reading, still_there

__all__ = ["FlaxNNXAdapter"]


class FlaxNNXAdapter(Adapter):
    """Record what the modules of a `flax.nnx` network return.

    By default the modules that the network itself calls, seen through `nnx.Sequential`, without
    `nnx.Dropout`: in a feed-forward network its layers, whose order is the trajectory, in a
    recurrent one its `nnx.RNN`, with one state per step. An `nnx.RNN` that is itself the model is
    the site `rnn`. A recurrent cell that the network steps in a Python loop is one site: its calls
    are time, and whether they run from the last step to the first is found out by changing the
    inputs at either end. Networks may take (sample, time, ...) or (time, sample, ...) values.

    Flax has no hooks, so `__call__` of the classes is exchanged while a network runs. What runs
    inside `nnx.jit`, `jax.lax.scan` and the like has no values to record and is refused; an
    `nnx.RNN` itself is read, its cell is not.

    The network runs as a copy (`nnx.clone`, which shares the arrays) in evaluation mode
    (`deterministic=True`, `use_running_average=True`), so that flags, batch statistics and random
    streams of the network stay as they are. Inputs reach it as JAX arrays on the default device:
    float64 as float32 and int64 as int32, unless `jax_enable_x64` is on.

    Parameters
    ----------
    layers
        Patterns over module paths, such as `layers.0` or `encoder.dense*`: `*` stays within one
        component, `**` crosses dots.
    forward
        `forward(model, values, lengths)` calls the network in its own way, with JAX arrays. It
        must use the model that it is given, which is the copy.
    output
        Key, attribute or index of the output in what the network returns.
    reversed_cells
        Patterns over the cells that the network calls from the last step to the first; needed
        where that does not show.

    Examples
    --------
    >>> import torch
    >>> from flax import nnx
    >>> network = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu)
    >>> batch = SequenceBatch(torch.zeros(5, 3), torch.ones(5, dtype=torch.int64), has_time=False)
    >>> spec = FlaxNNXAdapter().describe(network, batch)
    >>> [(site.name, site.shape, site.axis) for site in spec.sites]
    [('layers.0', (4,), 'sample')]
    """

    name = "flax_nnx"

    def __init__(
        self,
        *,
        layers: Sequence[str] | None = None,
        forward: Forward | None = None,
        output: str | int | None = None,
        reversed_cells: Sequence[str] | None = None,
    ) -> None:
        self.layers = checked_patterns(layers, example="layers.*")
        self.forward = forward
        self.output = output
        self.reversed_cells = checked_reversed(reversed_cells)

    def supports(self, model: object) -> bool:
        """Return whether the model is an `nnx.Module`; flax is not imported to find out."""
        nnx = sys.modules.get("flax.nnx")
        return nnx is not None and isinstance(model, nnx.Module)

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        """Run the network on a few samples and find out what its modules return.

        Parameters
        ----------
        model
            An `nnx.Module`.
        inputs
            At least one sample, of the kind that will be recorded.

        Raises
        ------
        UnsupportedModel
            The model is no `nnx.Module`.
        UnknownName
            A pattern of `layers` matches no module, or `output` names nothing.
        InvalidInput
            Ids do not fit 32 bits where JAX has no more.
        CaptureError
            A module runs never, several times or inside a transformation of JAX, or returns
            something that cannot be stored; the network raises, or is not a function of each of
            its samples.
        """
        copy = self._copied(model)
        named = matching_modules(copy, self.layers) if self.layers is not None else {}
        unread = NNXReading(copy, {}, callable_modules(model), self.forward, self.output)

        def read(time_first: bool, probe: SequenceBatch) -> tuple[NNXReading, Any]:  # noqa: FBT001
            reading = replace(unread, time_first=time_first)
            called = reading.all_calls(probe)
            chosen = named or outermost_modules(copy, called)
            steps = int(probe.lengths[0])
            cells = stepped_cells(copy, chosen, called, steps) if inputs.has_time else frozenset()
            reading = replace(reading, chosen=chosen, stepped_cells=cells)
            return reading, reading.watch(probe)

        return describe_reading(
            read,
            inputs,
            adapter=self.name,
            takes_lengths=inputs.has_time
            and (self.forward is not None or lengths_parameter(type(copy).__call__) is not None),
            settle=self._with_directions,
        )

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        """Run the network once and return what its modules and it itself gave, as torch tensors.

        Parameters
        ----------
        model
            The network that `spec` describes.
        inputs
            Sequences by decreasing length, of equal lengths unless the options of `spec` say
            `ragged_batches`; or single arrays.
        spec
            What `describe` returned; the name of the output group may have been changed.

        Raises
        ------
        CaptureError
            The network does not behave as it did when it was described.
        """
        copy = self._copied(model)
        options: Any = spec.options
        names = [site.name for site in spec.sites]
        reading = NNXReading(
            copy,
            still_there(named_modules(copy), names, kind="module"),
            callable_modules(model),
            self.forward,
            self.output,
            time_first=options["time_first"],
            stepped_cells=frozenset(options["stepped_cells"]),
            reversed_cells=frozenset(options["reversed_cells"]),
        )
        return record_reading(reading, inputs, spec)

    def fingerprint(self, model: Any) -> str:
        """Return the SHA-256 of the class and of `nnx.state`, random streams left out."""
        if not self.supports(model):
            raise UnsupportedModel(f"expected a flax.nnx.Module; got {type(model).__name__}.")
        return fingerprint(model)

    def _copied(self, model: object) -> Any:
        """Return a copy in evaluation mode that shares arrays, and nothing else, with the model."""
        if not self.supports(model):
            raise UnsupportedModel(f"expected a flax.nnx.Module; got {type(model).__name__}.")
        from flax import nnx

        copy: Any = nnx.clone(model)
        nnx.Module.set_attributes(
            copy, deterministic=True, use_running_average=True, raise_if_not_found=False
        )
        return copy

    def _with_directions(self, reading: NNXReading, probe: SequenceBatch, run: Run) -> NNXReading:
        cells = [name for name in run.states if name in reading.stepped_cells]
        backwards = cells_run_backwards(reading, cells, probe, run, said=self.reversed_cells)
        return replace(reading, reversed_cells=backwards)
