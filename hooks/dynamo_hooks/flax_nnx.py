"""Adapter for flax.nnx modules, the neural networks of JAX."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel, suggest
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

from ._calling import Forward
from ._nnx_arrays import fingerprint
from ._nnx_calls import callable_modules
from ._nnx_reading import NNXReading, outermost_modules, site_name
from ._patterns import matches
from ._site_runs import described, recorded

__all__ = ["FlaxNNXAdapter"]


class FlaxNNXAdapter(Adapter):
    """Record what the modules of a `flax.nnx` network return.

    By default the modules that the network itself calls, seen through `nnx.Sequential`, without
    `nnx.Dropout`: in a feed-forward network its layers, whose order is the trajectory, in a
    recurrent one its `nnx.RNN`, with one state per step. An `nnx.RNN` that is itself the model is
    the site `rnn`. A recurrent cell that the network steps in a Python loop is one site, with the
    output of each call as one step.

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
    ) -> None:
        if isinstance(layers, str) or (layers is not None and not layers):
            raise InvalidInput(
                "layers must be a sequence of at least one pattern, for example ['layers.*']; "
                f"got {layers!r}."
            )
        self.layers = None if layers is None else tuple(layers)
        self.forward = forward
        self.output = output

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
        modules = {site_name(path, each): each for path, each in callable_modules(copy).items()}
        if self.layers is None:
            reading = self._reading(model, copy, {})
            chosen = outermost_modules(reading, inputs)
        else:
            chosen = self._chosen(modules)
        return described(self._reading(model, copy, chosen), inputs, adapter=self.name)

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
        modules = {site_name(path, each): each for path, each in callable_modules(copy).items()}
        missing = [site.name for site in spec.sites if site.name not in modules]
        if missing:
            raise CaptureError(
                f"module {missing[0]!r} was there when the model was described, and is gone. The "
                "model changed in between."
            )
        chosen = {site.name: modules[site.name] for site in spec.sites}
        reading = self._reading(model, copy, chosen)
        return recorded(reading, inputs, spec, model=type(model).__name__)

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

    def _reading(self, model: Any, copy: Any, chosen: Mapping[str, Any]) -> NNXReading:
        return NNXReading(copy, chosen, callable_modules(model), self.forward, self.output)

    def _chosen(self, modules: Mapping[str, Any]) -> dict[str, Any]:
        assert self.layers is not None
        for pattern in self.layers:
            if not any(matches(name, pattern) for name in modules):
                raise UnknownName(
                    f"layers: {pattern!r} matches no module. {suggest(pattern, modules)}"
                )
        return {
            name: module
            for name, module in modules.items()
            if any(matches(name, pattern) for pattern in self.layers)
        }
