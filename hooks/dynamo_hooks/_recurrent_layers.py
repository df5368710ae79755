"""The hidden states inside one call of an `nn.RNN`, `nn.GRU` or `nn.LSTM`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError

from ._recurrent_calls import Hidden, RecurrentCall, Sequences
from ._tensors import close, padded

__all__ = ["hidden_states", "layer_names"]

_KINDS: dict[str, tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = {
    "RNN_TANH": (nn.RNN, {"nonlinearity": "tanh"}),
    "RNN_RELU": (nn.RNN, {"nonlinearity": "relu"}),
    "GRU": (nn.GRU, {}),
    "LSTM": (nn.LSTM, {}),
}


def layer_names(site: str, layers: int) -> tuple[str, ...]:
    """Return the site names of a module: its own, or one per layer.

    >>> layer_names("encoder.rnn", 2)
    ('encoder.rnn.layer0', 'encoder.rnn.layer1')
    """
    return (site,) if layers == 1 else tuple(f"{site}.layer{index}" for index in range(layers))


def hidden_states(
    module: nn.RNNBase, call: RecurrentCall, name: str, lengths: Tensor
) -> list[Tensor]:
    """Return the hidden state of every layer at every step.

    Stacked layers are run again one by one, with the same weights, on the input and the initial
    state that the module received; the last one must give what the module itself gave.

    Parameters
    ----------
    module
        The recurrent module; `torch.nn` documents its state equations.
    call
        What it received and returned.
    name
        Path of the module, for messages.
    lengths
        (sample,) int64, real steps of each sequence. A packed batch must have the same.

    Returns
    -------
    list of Tensor
        Per layer (sample, time, units), forward and reverse units concatenated where the module
        is bidirectional.

    Raises
    ------
    CaptureError
        The module is not what `torch.nn` defines, or was handed other lengths.
    """
    if not isinstance(call.output, Tensor | PackedSequence):
        raise CaptureError(
            f"recurrent module {name!r} ({type(module).__name__}) returned "
            f"{type(call.output).__name__} where torch.nn returns (states, last state). "
            "It changes the contract of the class it derives from, and cannot be read."
        )
    sequences = [call.output]
    if module.num_layers > 1:
        assert call.inputs is not None
        unrolled = _unroll(module, call.inputs, call.hidden)
        if not close(_data(unrolled[-1]), _data(call.output), loose=True):
            raise CaptureError(
                f"the layers of {name!r} ({type(module).__name__}), run one by one, do not give "
                "what the module gave. It computes something else than torch.nn does (an "
                "overridden forward, a hook, dropout that stays on), so that its inner layers "
                "cannot be recorded; choose other modules with layers=."
            )
        sequences = [*unrolled[:-1], call.output]
    return [_sample_first(sequence, module, name, lengths) for sequence in sequences]


def _unroll(module: nn.RNNBase, inputs: Sequences, hidden: Hidden) -> list[Sequences]:
    directions = 2 if module.bidirectional else 1
    layers: list[Sequences] = []
    for index in range(module.num_layers):
        part = slice(index * directions, (index + 1) * directions)
        if hidden is None:
            state: Hidden = None
        elif isinstance(hidden, Tensor):
            state = hidden[part]
        else:
            state = (hidden[0][part], hidden[1][part])
        inputs = _single_layer(module, index)(inputs, state)[0]
        layers.append(inputs)
    return layers


def _single_layer(module: nn.RNNBase, index: int) -> nn.RNNBase:
    """Return a one-layer module that shares the weights of layer `index`."""
    kind, options = _KINDS[module.mode]
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    if module.proj_size:
        options = {**options, "proj_size": module.proj_size}
    layer = kind(
        module.input_size if index == 0 else width * directions,
        module.hidden_size,
        bias=module.bias,
        batch_first=module.batch_first,
        bidirectional=module.bidirectional,
        # Nothing is allocated there, and the caller's random stream is not consumed.
        device="meta",
        **options,
    )
    for name in [name for name, _ in layer.named_parameters()]:
        weight = getattr(module, name.replace("_l0", f"_l{index}"))
        setattr(layer, name, nn.Parameter(weight.detach(), requires_grad=False))
    layer.training = False
    layer.flatten_parameters()
    return layer


def _sample_first(sequence: Sequences, module: nn.RNNBase, name: str, lengths: Tensor) -> Tensor:
    if isinstance(sequence, Tensor):
        return sequence if module.batch_first else sequence.transpose(0, 1)
    values, packed = padded(sequence)
    if not torch.equal(packed, lengths):
        position = int((packed != lengths).nonzero()[0]) if len(packed) == len(lengths) else 0
        raise CaptureError(
            f"{name!r} was handed packed sequences of other lengths than the inputs have: "
            f"sequence {position} of the batch has {int(lengths[position])} steps and arrived "
            f"with {int(packed[position])}. The model reorders, cuts or extends its sequences, so "
            "that states cannot be assigned to steps; hand it the right ones with forward=."
        )
    return values


def _data(sequence: Sequences) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence
