"""Adapter for any feed-forward network: depth is its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import UnsupportedModel
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

from ._calling import Call, Forward, lengths_parameter
from ._describing import describe_reading
from ._evaluation import reading_mode
from ._layer_choice import Layers, chosen_places, normalised
from ._layer_layouts import known_stages
from ._layer_reading import LayerReading
from ._recording import record_reading
from ._results import Selector, select_output
from ._wrappers import require_hookable, unwrapped

__all__ = ["TorchLayersAdapter"]


class TorchLayersAdapter(Adapter):
    """Record what chosen modules return, in order of computation.

    Every chosen module is a site that has the module's path as its name. One that is called
    several times in a forward pass, as where weights are shared over depth, becomes the sites
    `path.call0`, `path.call1`, ...; it must be called as often for all inputs. A state is copied
    as the module returns it, after the user's own hooks, so that later in-place work (`+=`,
    `ReLU(inplace=True)`) does not reach it.

    Rows are found by running the model on two sizes: a site with one axis of samples and one of
    time steps has a row per step, one without time a row per sample, of any shape: (channels,
    height, width) of feature maps, (tokens, width) of patches, (units,) of vectors. Models may
    take (sample, time, ...) or (time, sample, ...) values. Lengths are handed to models whose
    forward has a parameter for them, as by `torch_recurrent`; other masks with `forward`.

    Parameters
    ----------
    layers
        Patterns over module paths. `*` and `?` stay within one component of a path, `**` crosses
        dots: `layer*` is `layer1` but not `layer1.0`, `encoder.**.relu` any `relu` inside
        `encoder`. `path.call1` is the second call of a module alone. A pattern must match a
        module, and one that it matches must run; the rest of its matches may be silent. A model
        without submodules is named after its class, as in `["linear"]`.

        Where modules return several tensors, a mapping says which is the state:
        `{"block*": 0, "decoder": ["states", -1]}` gives an index, a key or attribute, or a list
        of these; None, `...` or the string "..." is the tensor itself, or the first floating
        tensor of several. Where several patterns match a module, the first counts.

        Without `layers`, the stages of two layouts are recognised: networks with a
        `feature_info`, as timm's have, and residual networks with `layer1`, `layer2`, ..., as
        torchvision's are.
    forward
        `forward(model, values, lengths)` calls the model in its own way.
    output
        Key, attribute or index of the output in what the model returns. It may have any shape,
        as segmentation maps do.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    >>> batch = SequenceBatch(torch.ones(5, 2), torch.ones(5, dtype=torch.int64), has_time=False)
    >>> adapter = TorchLayersAdapter(layers=["[01]"])
    >>> spec = adapter.describe(network, batch)
    >>> [(site.name, site.shape, site.axis) for site in spec.sites]
    [('0', (4,), 'sample'), ('1', (4,), 'sample')]
    >>> adapter.record(network, batch, spec).states["1"].shape
    torch.Size([5, 4])
    """

    name = "torch_layers"

    def __init__(
        self,
        *,
        layers: Sequence[str] | Mapping[str, Selector] | None = None,
        forward: Forward | None = None,
        output: str | int | None = None,
    ) -> None:
        self.layers = normalised(layers)
        self.forward = forward
        self.output = output

    def supports(self, model: object) -> bool:
        """Return whether the model is a module, and `layers` were given or its layout is known.

        A model that `torch.compile`, `DataParallel` or `DistributedDataParallel` wraps is read
        through the module inside.
        """
        if not isinstance(model, nn.Module):
            return False
        model = unwrapped(model)
        if isinstance(model, torch.jit.ScriptModule):
            return False
        return self.layers is not None or known_stages(model) is not None

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        """Run the model on a few samples and find out how it takes and returns them.

        `options` of the result holds `time_first` (the model takes (time, sample, ...) values),
        `takes_lengths`, `ragged_batches` (sequences of different lengths may share a batch: each
        gives what it gives alone), `places` (module, call and part of every site), `calls` of
        each module, `site_axes` and `output_axes`.

        Parameters
        ----------
        model
            An `nn.Module`.
        inputs
            At least one sample, of the kind that will be recorded.

        Raises
        ------
        UnsupportedModel
            The model is scripted, or holds a scripted, compiled or sharded submodule; or no
            `layers` are given and its layout is not known.
        UnknownName
            A pattern matches no module; a selector or `output` names nothing.
        CaptureError
            A chosen module never runs, or not always as often; a state or the output has axes
            that follow neither samples nor steps; samples influence each other; the model raises,
            or is not a function of its inputs.
        """
        model = self._checked(model)
        layers = self._chosen(model)

        def read(time_first: bool, probe: SequenceBatch) -> tuple[LayerReading, Any]:  # noqa: FBT001
            return LayerReading.chosen(
                model,
                probe,
                lambda events: chosen_places(model, layers, events),
                call=Call(self.forward, time_first=time_first),
                select=self._select,
            )

        takes_lengths = inputs.has_time and (
            self.forward is not None or lengths_parameter(model.forward) is not None
        )
        with reading_mode(model):
            return describe_reading(read, inputs, adapter=self.name, takes_lengths=takes_lengths)

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        """Run the model once and return copies of its states and its output.

        Parameters
        ----------
        model
            The model that `spec` describes.
        inputs
            Samples; sequences of equal lengths unless the options of `spec` say `ragged_batches`.
        spec
            What `describe` returned; the name of the output group may have been changed.

        Raises
        ------
        CaptureError
            The model does not behave as it did when it was described.
        """
        model = self._checked(model)
        call = Call(self.forward, time_first=bool(spec.options["time_first"]))
        reading = LayerReading.described(model, spec, call=call, select=self._select)
        with reading_mode(model):
            return record_reading(reading, inputs, spec)

    def _select(self, result: Any) -> Tensor | PackedSequence:
        return select_output(result, self.output)

    def _checked(self, given: object) -> nn.Module:
        if not isinstance(given, nn.Module):
            raise UnsupportedModel(f"expected a torch.nn.Module; got {type(given).__name__}.")
        model = unwrapped(given)
        require_hookable(model)
        return model

    def _chosen(self, model: nn.Module) -> Layers:
        if self.layers is not None:
            return self.layers
        stages = known_stages(model)
        if stages is None:
            raise UnsupportedModel(
                f"the stages of {type(model).__name__} are not known: it has neither the layout "
                "of torchvision's residual networks nor timm's feature_info. Choose modules with "
                "layers=, for example layers=['blocks.*']."
            )
        return dict.fromkeys(stages)
