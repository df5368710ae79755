"""A small population, recorded from real networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.store import Population

LENGTHS = [6, 9, 5, 9, 7, 8, 9, 6, 9, 7, 8, 9]


class Classifier(nn.Module):
    """A recurrent network with one output per sequence."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = layer
        self.readout = nn.Linear(layer.hidden_size, 3)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        hidden, _ = self.rnn(inputs)
        read: Tensor = self.readout(hidden)
        return read[torch.arange(len(read)), lengths - 1]


def record(store: Any, *, count: int = 7) -> Population:
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {}
    for index in range(count):
        kind = (nn.GRU, nn.RNN)[index % 2]
        models[f"net-{index}"] = Classifier(kind(3, 5 + index % 3, batch_first=True))
    inputs = torch.randn(len(LENGTHS), max(LENGTHS), 3, generator=torch.Generator().manual_seed(1))
    return dp.capture(models, inputs, store, lengths=LENGTHS, progress=False)


@pytest.fixture(scope="session")
def population(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """Seven GRUs and RNNs of 5 to 7 units, on twelve sequences, on disk."""
    folder: Path = tmp_path_factory.mktemp("metrics")
    return record(str(folder / "population.zarr"))
