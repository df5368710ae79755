"""An embedding on disk, for the commands that read one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynamo_plugin.embedding import fit
from dynamo_plugin.store import Population


@pytest.fixture(scope="session")
def saved_embedding(
    write_population: Callable[..., Population], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder with `population.zarr` and, fitted to it for a moment, `embedding`."""
    folder = tmp_path_factory.mktemp("saved")
    rng = np.random.default_rng(0)
    samples, steps = 20, 3
    inputs = rng.normal(size=(samples * steps, 2)).astype(np.float32)
    driven = inputs @ rng.normal(size=(2, 5)).astype(np.float32)
    names = [f"net-{index}" for index in range(5)]
    population = write_population(
        {name: np.tanh((1 + index) * driven) for index, name in enumerate(names)},
        dict.fromkeys(names, driven[steps - 1 :: steps, :2]),
        inputs,
        [steps] * samples,
        metadata={name: {"size": index % 2} for index, name in enumerate(names)},
        targets=np.arange(samples) % 2,
        store=str(folder / "population.zarr"),
    )
    embedding = fit(
        population,
        device="cpu",
        embedding_dim=3,
        steps=10,
        theta_std=0.5,
        family_options={"units": 6},
        progress=False,
    )
    embedding.save(folder / "embedding")
    return folder
