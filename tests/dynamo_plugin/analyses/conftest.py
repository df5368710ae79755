"""A small fit on real recordings, and embeddings whose thetas a test chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.store import Population

LENGTHS = [3, 5, 2, 4, 5, 2, 5, 3, 4, 4, 5, 1, 3, 5, 2, 4, 5, 3, 2, 5]


class Classifier(nn.Module):
    """A recurrent network with an output per sequence, or per step."""

    def __init__(self, layer: nn.RNNBase, outputs: int, *, per_step: bool) -> None:
        super().__init__()
        self.rnn = layer
        self.readout = nn.Linear(layer.hidden_size, outputs)
        self.per_step = per_step

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        hidden, _ = self.rnn(inputs)
        read: Tensor = self.readout(hidden)
        return read if self.per_step else read[torch.arange(len(read)), lengths - 1]


def make_models(outputs: int, *, per_step: bool, count: int = 6) -> dict[str, nn.Module]:
    """Return GRUs and RNNs in turn, of different sizes."""
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {}
    for index in range(count):
        kind = (nn.GRU, nn.RNN)[index % 2]
        layer = kind(3, 4 + index, batch_first=True)
        name = f"{kind.__name__.lower()}-{index}"
        models[name] = Classifier(layer, outputs, per_step=per_step)
    return models


def capture(models: dict[str, nn.Module], **options: Any) -> Population:
    """Record models on sequences of different lengths."""
    inputs = torch.randn(len(LENGTHS), max(LENGTHS), 3, generator=torch.Generator().manual_seed(1))
    table = pd.DataFrame(
        {"architecture": [name[:3] for name in models], "place": range(len(models))},
        index=list(models),
    )
    return dp.capture(
        models, inputs, {}, lengths=LENGTHS, metadata=table, progress=False, **options
    )


def fit(population: Population, **options: Any) -> dp.ModelEmbedding:
    """Fit for a moment, with thetas that differ."""
    embedding: dp.ModelEmbedding = dp.fit(
        population,
        device="cpu",
        embedding_dim=4,
        steps=30,
        held_out=0.4,
        theta_std=1.0,
        family_options={"units": 8},
        progress=False,
        **options,
    )
    return embedding


@pytest.fixture(scope="session")
def classes() -> NDArray[np.int64]:
    """The right answers of the classifiers, (sample,)."""
    return np.random.default_rng(2).integers(0, 3, len(LENGTHS))


@pytest.fixture(scope="session")
def embedding(classes: NDArray[np.int64]) -> dp.ModelEmbedding:
    """Six classifiers of three classes, one output per sequence."""
    return fit(capture(make_models(3, per_step=False), targets=classes))


@pytest.fixture(scope="session")
def per_step_embedding() -> dp.ModelEmbedding:
    """Six networks with two real outputs per step, in two output groups."""
    models = make_models(2, per_step=True)
    groups = {name: f"task-{name[:3]}" for name in models}
    return fit(capture(models, output_groups=groups))


@pytest.fixture(scope="session")
def grown(classes: NDArray[np.int64]) -> Population:
    """The population of `embedding` with two more models, the first of all among them."""
    more = make_models(3, per_step=False, count=8)
    names = [list(more)[7], *list(more)[:7]]
    return capture({name: more[name] for name in names}, targets=classes)


@pytest.fixture(scope="session")
def place(
    embedding: dp.ModelEmbedding,
) -> Callable[..., dp.ModelEmbedding]:
    """Return `place(thetas, **columns)`: an embedding at these thetas, with these metadata."""

    def place(thetas: Any, **columns: Sequence[Any]) -> dp.ModelEmbedding:
        values = torch.as_tensor(np.asarray(thetas), dtype=torch.float32)
        ids = tuple(f"model-{index}" for index in range(len(values)))
        return dataclasses.replace(
            embedding,
            thetas=values,
            ids=ids,
            metadata=pd.DataFrame(columns, index=pd.Index(ids, name="model")),
            output_groups=("output",) * len(ids),
        )

    return place


@pytest.fixture(scope="session")
def two_stage_embedding() -> dp.ModelEmbedding:
    """Four convolutional networks of three classes, recorded at two layers."""
    torch.manual_seed(0)
    networks = {
        f"cnn-{index}": nn.Sequential(
            nn.Conv2d(1, 3 + index, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(3 + index, 4, 3, padding=1),
            nn.Flatten(),
            nn.Linear(64, 3),
        )
        for index in range(4)
    }
    inputs = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    population = dp.capture(networks, inputs, {}, layers=["0", "2"], progress=False)
    return dp.fit(
        population,
        device="cpu",
        family="resnet",
        family_options={"blocks": [1, 1], "width": 4},
        embedding_dim=2,
        steps=3,
        progress=False,
    )
