"""Which adapter reads a model."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from dynamo_plugin.errors import InvalidInput, UnsupportedModel
from dynamo_plugin.recording.adapters import AdapterChoice


@pytest.mark.parametrize(
    ("model", "options", "chosen"),
    [
        (nn.GRU(2, 3), {}, "torch_recurrent"),
        (nn.GRU(2, 3), {"layers": ["gru"]}, "torch_recurrent"),
        (nn.Sequential(nn.Linear(2, 3)), {"layers": ["0"]}, "torch_layers"),
        (nn.Sequential(nn.Linear(2, 3)), {"layers": {"0": None}, "output": 0}, "torch_layers"),
    ],
)
def test_the_last_registered_adapter_that_takes_the_model(
    model: nn.Module, options: dict[str, Any], chosen: str
) -> None:
    adapter = AdapterChoice(options=options).of(model)
    assert adapter.name == chosen  # type: ignore[attr-defined]


def test_models_that_nobody_takes() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(UnsupportedModel, match=r"Tried: .*torch_layers, torch_recurrent\."):
        AdapterChoice().of(model)
    with pytest.raises(UnsupportedModel, match=r"torch_layers \(unusable: layers must be"):
        AdapterChoice(options={"layers": "0"}).of(model)


def test_options_that_the_chosen_adapter_does_not_know() -> None:
    with pytest.raises(InvalidInput, match="'torch_recurrent' cannot be built with colour"):
        AdapterChoice(options={"colour": "red"}).of(nn.GRU(2, 3))
