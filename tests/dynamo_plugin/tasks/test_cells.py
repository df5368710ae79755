from __future__ import annotations

import pytest
import torch
from torch import nn

from dynamo_plugin.tasks.cells import CELLS

LAYERS: dict[str, type[nn.GRU | nn.LSTM | nn.RNN]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
MODELS, TIME, SAMPLES, FEATURES, UNITS = 3, 5, 4, 2, 6
NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@pytest.mark.parametrize("architecture", sorted(LAYERS))
def test_states_and_gradients_are_those_of_torch(architecture: str) -> None:
    torch.manual_seed(0)
    layers = [LAYERS[architecture](FEATURES, UNITS, dtype=torch.float64) for _ in range(MODELS)]
    features = torch.randn(MODELS, TIME, SAMPLES, FEATURES, dtype=torch.float64)
    weights = torch.randn(TIME, MODELS, SAMPLES, UNITS, dtype=torch.float64)
    stacked = [
        torch.stack([layer.get_parameter(name).detach() for layer in layers]).requires_grad_()
        for name in NAMES
    ]
    states = torch.stack(CELLS[architecture](features, *stacked))
    torch.autograd.backward((states * weights).sum())
    for index, layer in enumerate(layers):
        expected, _ = layer(features[index])
        torch.testing.assert_close(states[:, index], expected)
        torch.autograd.backward((expected * weights[:, index]).sum())
        for name, parameter in zip(NAMES, stacked, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad[index], layer.get_parameter(name).grad)
