"""How many dimensions a population is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.training.dimension import MOST, dominant_components

ROWS = 2000


def _deviations(shared: list[float], private: float, models: int, seed: int) -> torch.Tensor:
    """Inner products of models that differ along some directions, and each in one of its own."""
    rng = np.random.default_rng(seed)
    rows = private * rng.normal(size=(models, ROWS)) / np.sqrt(ROWS)
    places = rng.normal(size=(models, len(shared)))
    places = np.linalg.qr(places - places.mean(0))[0] * np.sqrt(models)
    rows[:, : len(shared)] += places * shared
    rows -= rows.mean(0)
    return torch.from_numpy(rows @ rows.T)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("models", [8, 20, 60])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shared_directions_are_counted(models: int, count: int, seed: int) -> None:
    assert dominant_components(_deviations([1.0] * count, 0.3, models, seed)) == count


@pytest.mark.parametrize("models", [4, 10, 40])
def test_networks_that_share_nothing_get_one(models: int) -> None:
    assert dominant_components(_deviations([], 1.0, models, 0)) == 1


@given(st.integers(2, 12), st.integers(0, 50), st.floats(1e-6, 1e6))
def test_scale_and_order_change_nothing(models: int, seed: int, scale: float) -> None:
    gram = _deviations([1.0], 0.4, models, seed)
    order = torch.randperm(models, generator=torch.Generator().manual_seed(seed))
    count = dominant_components(gram)
    assert 1 <= count <= MOST
    assert dominant_components(scale * gram[order][:, order]) == count


def test_networks_that_are_the_same_get_one() -> None:
    assert dominant_components(torch.zeros(4, 4, dtype=torch.float64)) == 1
