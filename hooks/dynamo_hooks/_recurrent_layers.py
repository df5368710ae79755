"""The states inside one call of an `nn.RNN`, `nn.GRU` or `nn.LSTM`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError

from ._recurrent_calls import Hidden, RecurrentCall, Sequences, sample_first
from ._recurrent_cell_states import cell_states
from ._recurrent_modules import is_quantised
from ._tensors import close

__all__ = ["has_cell_state", "layer_names", "layer_states"]

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


def has_cell_state(module: Any) -> bool:
    """Return whether a recurrent module keeps a cell state beside its hidden state."""
    return bool(module.mode == "LSTM")


def layer_states(
    module: Any, call: RecurrentCall, name: str, lengths: Tensor, *, cell_state: bool
) -> list[list[Tensor]]:
    """Return the hidden state of every layer at every step, and the cell state.

    Stacked layers are run again one by one, with the same weights, on the input and the initial
    state that the module received; the last one must give what the module itself gave. Cell
    states follow from the hidden states.

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
    cell_state
        Whether cell states are wanted of modules that have them.

    Returns
    -------
    list of list of Tensor
        Per layer h and, where wanted, c: each (sample, time, units) and contiguous, forward and
        reverse units concatenated where the module is bidirectional.

    Raises
    ------
    CaptureError
        The module is not what `torch.nn` defines, or was handed other lengths.
    UnsupportedModel
        Cell states are wanted of a quantised module.
    """
    if call.states is None or call.states.shape[:2] != (call.samples, call.steps):
        what = call.returned
        if call.states is not None:
            what = f"states of shape {tuple(call.states.shape)} as (sample, time, units)"
        raise CaptureError(
            f"recurrent module {name!r} ({type(module).__name__}) returned {what} where torch.nn "
            "returns (states, last state). It changes the contract of the class it derives from, "
            "and cannot be read."
        )
    if call.lengths is not None and not torch.equal(call.lengths, lengths):
        position = int((call.lengths != lengths).nonzero()[0])
        raise CaptureError(
            f"{name!r} was handed packed sequences of other lengths than the inputs have: "
            f"sequence {position} of the batch has {int(lengths[position])} steps and arrived "
            f"with {int(call.lengths[position])}. The model reorders, cuts or extends its "
            "sequences, so that states cannot be assigned to steps; hand it the right ones with "
            "forward=."
        )
    hidden = [call.states]
    if module.num_layers > 1:
        unrolled = _unroll(module, call)
        if not close(unrolled[-1], call.states, loose=True):
            raise CaptureError(
                f"the layers of {name!r} ({type(module).__name__}), run one by one, do not give "
                "what the module gave. It computes something else than torch.nn does (an "
                "overridden forward, a hook, dropout that stays on), so that its inner layers "
                "cannot be recorded; choose other modules with layers=."
            )
        hidden = [*unrolled[:-1], call.states]
    if cell_state and has_cell_state(module):
        cells = cell_states(module, call, hidden, name)
        return [list(pair) for pair in zip(hidden, cells, strict=True)]
    return [[states] for states in hidden]


def _unroll(module: Any, call: RecurrentCall) -> list[Tensor]:
    directions = 2 if module.bidirectional else 1
    inputs = call.inputs
    assert inputs is not None
    data = inputs if isinstance(inputs, Tensor) else inputs.data
    layers: list[Tensor] = []
    precision = (
        nullcontext()
        if call.autocast is None
        else torch.autocast(data.device.type, dtype=call.autocast)
    )
    with precision:
        for index in range(module.num_layers):
            part = slice(index * directions, (index + 1) * directions)
            inputs = _one_layer(module, index)(inputs, _sliced(call.hidden, part))[0]
            layers.append(sample_first(inputs, batch_first=module.batch_first)[0])
    return layers


def _sliced(hidden: Hidden, part: slice) -> Hidden:
    if hidden is None or isinstance(hidden, Tensor):
        return None if hidden is None else hidden[part]
    return hidden[0][part], hidden[1][part]


def _one_layer(module: Any, index: int) -> Callable[[Sequences, Hidden], Any]:
    """Return a one-layer module that shares the weights of layer `index`."""
    directions = 2 if module.bidirectional else 1
    if is_quantised(module):
        # Its forward, not its call: the copy holds the hooks of the module too.
        quantised = copy.copy(module)
        part = slice(index * directions, (index + 1) * directions)
        weights = nn.ModuleList(list(module._all_weight_values)[part])
        quantised._modules = {"_all_weight_values": weights}
        quantised.num_layers = 1
        quantised.input_size = module.input_size if index == 0 else module.hidden_size * directions
        forward: Callable[[Sequences, Hidden], Any] = quantised.forward
        return forward
    kind, options = _KINDS[module.mode]
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
