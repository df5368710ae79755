"""One small fit that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynamo_plugin.embedding import ModelEmbedding, fit
from dynamo_plugin.store import Population

LENGTHS = [3, 5, 1, 4, 5, 2, 5, 3]


@pytest.fixture(scope="session")
def population(
    write_population: Callable[..., Population], tmp_path_factory: pytest.TempPathFactory
) -> Population:
    rng = np.random.default_rng(1)
    rows = sum(LENGTHS)
    names = ["gru/1", "gru 2", "lstm-ä"]
    path: Path = tmp_path_factory.mktemp("embedding") / "population.zarr"
    return write_population(
        {n: rng.normal(size=(rows, 3 + i)).astype(np.float32) for i, n in enumerate(names)},
        {n: rng.normal(size=(len(LENGTHS), 2)).astype(np.float32) for n in names},
        rng.integers(0, 9, rows),
        LENGTHS,
        groups={"gru/1": "mood", "gru 2": "mood", "lstm-ä": "topic"},
        metadata={n: {"architecture": n[:3], "width": 3 + i} for i, n in enumerate(names)},
        store=str(path),
    )


@pytest.fixture(scope="session")
def embedding(population: Population) -> ModelEmbedding:
    return fit(
        population,
        device="cpu",
        embedding_dim=4,
        steps=20,
        theta_std=1.0,
        family_options={"units": 8, "token_dim": 3},
        progress=False,
    )
