"""Adapter for the models of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import UnsupportedModel
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

from ._calling import Call, Caller, Forward
from ._describing import describe_reading
from ._evaluation import reading_mode
from ._huggingface_blocks import block_places
from ._huggingface_calls import HuggingFaceCall, accepts, weights_kept
from ._layer_choice import Event, chosen_places, normalised
from ._layer_places import Place
from ._layer_reading import LayerReading
from ._recording import record_reading
from ._results import Selector, select_output
from ._wrappers import require_hookable, unwrapped

__all__ = ["HuggingFaceAdapter"]


class HuggingFaceAdapter(Adapter):
    """Record the residual stream of a `transformers.PreTrainedModel` before and after each block.

    Sites, in order of computation, under the same names in every architecture:

    - `embeddings`, what the first block receives (`hidden_states[0]` of most models);
    - `block0`, `block1`, ..., what each call of a block returns (`hidden_states[i + 1]`);
    - `final_norm`, what the normalisation after the last block returns, where there is one.

    transformers puts the last state behind that normalisation: `hidden_states[-1]` of GPT-2,
    Llama or T5 is `final_norm`, and what the last block itself returns is not among them. Here
    both are sites. `hidden_states` of Mamba and RWKV have no embeddings and begin with `block0`.
    The option `places` of a specification holds the module path of every site.

    The model is called with `input_ids` or `inputs_embeds`, or with its main input
    (`pixel_values`), an `attention_mask` made from the lengths, and without a cache. Of an
    encoder-decoder give the encoder (`model.get_encoder()`), or its call as `forward`.

    Parameters
    ----------
    layers
        Patterns over module paths, or a mapping of patterns to selectors, in place of the sites
        above; see `TorchLayersAdapter`.
    forward
        `forward(model, values, lengths)` calls the model in its own way.
    output
        Key, attribute or index of the output in what the model returns; by default `logits`, or
        `last_hidden_state` of a model without a head.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2Model
    >>> special = {"bos_token_id": 0, "eos_token_id": 0}
    >>> network = GPT2Model(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20, **special))
    >>> batch = SequenceBatch(torch.tensor([[3, 1, 4], [1, 5, 0]]), torch.tensor([3, 2]))
    >>> adapter = HuggingFaceAdapter()
    >>> spec = adapter.describe(network, batch)
    >>> [site.name for site in spec.sites], spec.options["ragged_batches"]
    (['embeddings', 'block0', 'block1', 'final_norm'], True)
    >>> adapter.record(network, batch, spec).states["block0"].shape
    torch.Size([2, 3, 8])
    """

    name = "huggingface"

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
        """Return whether the model is a `transformers.PreTrainedModel`, maybe wrapped."""
        return isinstance(model, nn.Module) and _is_pretrained(unwrapped(model))

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        """Run the model on a few samples, and find its blocks and the axes of their states.

        The options of the result are those of `TorchLayersAdapter`.

        Parameters
        ----------
        model
            A `transformers.PreTrainedModel`.
        inputs
            At least one sample: ids or vectors per step, or images.

        Raises
        ------
        UnsupportedModel
            The model is none of transformers, an encoder-decoder, or compiled inside.
        InvalidInput
            It takes inputs of another kind.
        UnknownName
            A pattern matches no module; a selector or `output` names nothing.
        CaptureError
            Its blocks are not found; the model raises, or does not behave.
        """
        model = self._checked(model)
        call = self._call()

        def read(time_first: bool, probe: SequenceBatch) -> tuple[LayerReading, Any]:  # noqa: FBT001
            def choose(events: Sequence[Event]) -> dict[str, Place]:
                if self.layers is None:
                    return block_places(model, call, probe)
                return chosen_places(model, self.layers, events)

            return LayerReading.chosen(model, probe, choose, call=call, select=self._select)

        takes_lengths = inputs.has_time and (
            self.forward is not None or accepts(model, "attention_mask")
        )
        with weights_kept(model), reading_mode(model):
            return describe_reading(
                read,
                inputs,
                adapter=self.name,
                takes_lengths=takes_lengths,
                layouts=[False],
            )

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
        call = self._call()
        reading = LayerReading.described(model, spec, call=call, select=self._select)
        with weights_kept(model), reading_mode(model):
            return record_reading(reading, inputs, spec)

    def _call(self) -> Caller:
        if self.forward is not None:
            return Call(self.forward, time_first=False)
        return HuggingFaceCall()

    def _select(self, result: Any) -> Tensor | PackedSequence:
        selector = self.output
        if selector is None and isinstance(result, Mapping) and "logits" not in result:
            selector = "last_hidden_state" if "last_hidden_state" in result else None
        return select_output(result, selector)

    def _checked(self, given: object) -> nn.Module:
        model = unwrapped(given) if isinstance(given, nn.Module) else None
        if model is None or not _is_pretrained(model):
            raise UnsupportedModel(
                f"expected a transformers.PreTrainedModel; got {type(given).__name__}. Other "
                "modules are read by adapter='torch_layers'."
            )
        require_hookable(model)
        if self.forward is None and accepts(model, "decoder_input_ids"):
            raise UnsupportedModel(
                f"{type(model).__name__} is an encoder-decoder, whose decoder needs inputs of its "
                "own. Record model.get_encoder(), or give forward= that calls the model with both."
            )
        return model


def _is_pretrained(model: nn.Module) -> bool:
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(model).__mro__
    )
