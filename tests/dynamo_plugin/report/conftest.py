"""Embeddings of made-up states: one with hostile names, and makers of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.embedding import ModelEmbedding, fit
from dynamo_plugin.store import Population

HOSTILE = "</script><img src=x onerror=alert(1)>"
BOLD = "<b>bold</b> & Grüße 漢字 \u2028"
SAMPLES, STEPS = 24, 4

Embed = Callable[..., ModelEmbedding]


@pytest.fixture(scope="session")
def embed(
    write_population: Callable[..., Population], tmp_path_factory: pytest.TempPathFactory
) -> Embed:
    """Return `embed(ids, metadata=..., targets=...)`: a short fit to made-up states."""

    def embed(
        ids: list[str], *, metadata: dict[str, dict[str, Any]] | None = None, targets: Any = None
    ) -> ModelEmbedding:
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(SAMPLES * STEPS, 2)).astype(np.float32)
        driven = inputs @ rng.normal(size=(2, 6)).astype(np.float32)
        store: Path = tmp_path_factory.mktemp("report") / "toy & <i>.zarr"
        population = write_population(
            {name: np.tanh(driven * (1 + i % 3)) for i, name in enumerate(ids)},
            {name: driven[STEPS - 1 :: STEPS, :2] * (1 + i) for i, name in enumerate(ids)},
            inputs,
            [STEPS] * SAMPLES,
            metadata=metadata,
            targets=targets,
            store=str(store),
        )
        return fit(
            population,
            device="cpu",
            embedding_dim=3,
            steps=25,
            theta_std=0.5,
            family_options={"units": 8},
            progress=False,
        )

    return embed


@pytest.fixture(scope="session")
def hostile(embed: Embed) -> ModelEmbedding:
    """Ten models with names and values that would be code if they were not escaped."""
    ids = [HOSTILE, "ünï", *(f"plain-{index}" for index in range(8))]
    metadata: dict[str, dict[str, Any]] = {
        name: {
            "kind": BOLD if index % 2 else "plain",
            "<u>size</u>": [3, 5][index // 5],
            "score": None if index == 2 else 0.1 * index,
            "same": "x",
        }
        for index, name in enumerate(ids)
    }
    return embed(ids, metadata=metadata, targets=np.arange(SAMPLES) % 2)
