"""The batched state maps against one `nn.Linear` per model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels import AffineStateMaps

UNITS = (3, 5, 1)


@pytest.fixture
def maps() -> AffineStateMaps:
    torch.manual_seed(0)
    maps = AffineStateMaps(6, UNITS)
    maps.bias.data.normal_().mul_(maps.real_units)
    maps.mean.normal_()
    maps.scale.copy_(torch.tensor([0.5, 2.0, 7.0]))
    return maps


def _linear(maps: AffineStateMaps, model: int) -> nn.Linear:
    linear = nn.Linear(6, UNITS[model])
    linear.weight.data = maps.weight.data[model, : UNITS[model]]
    linear.bias.data = maps.bias.data[model, : UNITS[model]]
    return linear


def _mapped(maps: AffineStateMaps, states: Tensor, models: list[int]) -> Tensor:
    mapped: Tensor = maps(states, torch.tensor(models))
    return mapped


def test_matches_one_linear_layer_per_model(maps: AffineStateMaps) -> None:
    states = torch.randn(3, 4, 2, 6)
    mapped = _mapped(maps, states, [0, 1, 2])
    for model, units in enumerate(UNITS):
        torch.testing.assert_close(mapped[model, ..., :units], _linear(maps, model)(states[model]))
        assert not mapped[model, ..., units:].any()


def test_a_subset_of_models_in_any_order(maps: AffineStateMaps) -> None:
    states = torch.randn(2, 4, 2, 6)
    mapped = _mapped(maps, states, [2, 0])
    torch.testing.assert_close(mapped[0, ..., :1], _linear(maps, 2)(states[0]))
    torch.testing.assert_close(mapped[1, ..., :3], _linear(maps, 0)(states[1]))


def test_matrix_maps_into_the_units_of_the_model(maps: AffineStateMaps) -> None:
    states = torch.randn(3, 4, 2, 6)
    mapped = _mapped(maps, states, [0, 1, 2])
    for model, units in enumerate(UNITS):
        matrix, offset = maps.matrix(model)
        base = states[model] @ matrix.T + offset
        padded = nn.functional.pad(base, (0, 5 - units))[None]
        normalised = maps.normalise(padded, torch.tensor([model]))
        torch.testing.assert_close(
            normalised[0, ..., :units], mapped[model, ..., :units], rtol=1e-5, atol=1e-5
        )


def test_padding_units_get_no_gradient(maps: AffineStateMaps) -> None:
    real = maps.real_units[:, None, None].expand(3, 4, 2, 5)
    (_mapped(maps, torch.randn(3, 4, 2, 6), [0, 1, 2]).square() * real).sum().backward()
    assert maps.weight.grad is not None
    assert not maps.weight.grad[~maps.real_units].any()


@pytest.mark.parametrize("units", [[], [3, 0]])
def test_every_model_needs_units(units: list[int]) -> None:
    with pytest.raises(InvalidInput, match="at least one hidden unit"):
        AffineStateMaps(4, units)
