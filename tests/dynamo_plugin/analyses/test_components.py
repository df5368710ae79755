from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_plugin.analyses import components
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput

Place = Callable[..., ModelEmbedding]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 6))
def test_agrees_with_the_singular_values(place: Place, seed: int, models: int, dim: int) -> None:
    thetas = np.random.default_rng(seed).normal(size=(models, dim)).astype(np.float32)
    result = components(place(thetas))
    centred = thetas.astype(np.float64) - thetas.astype(np.float64).mean(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    kept = min(models - 1, dim)
    table = result.to_dataframe()
    assert len(table) == kept
    np.testing.assert_allclose(
        table["explained_variance_ratio"], (variances / variances.sum())[:kept], atol=1e-9
    )
    np.testing.assert_allclose(
        table["explained_variance"], variances[:kept] / (models - 1), atol=1e-9
    )
    np.testing.assert_allclose(result.scores.to_numpy() @ result.axes, centred, atol=1e-6)


def test_components_for_95(place: Place) -> None:
    # Variances 90, 9 and 1 of 100: two components are needed.
    axes = np.vstack([np.eye(3), -np.eye(3)]) * np.sqrt([90, 9, 1])
    result = components(place(axes))
    assert result.components_for_95 == 2
    assert result.summary()["components_for_95"] == 2
    json.dumps(result.summary(), allow_nan=False)


def test_two_models_have_one_component(place: Place) -> None:
    result = components(place([[0.0, 0, 0], [3, 4, 0]]))
    assert list(result.scores.columns) == ["pc_1"]
    assert np.ptp(result.scores["pc_1"]) == pytest.approx(5)
    assert len(result.plot().data[0].x) == 2


def test_equal_thetas_are_refused(place: Place) -> None:
    with pytest.raises(InvalidInput, match="these 3 are all equal"):
        components(place(np.full((3, 2), 0.1)))
    with pytest.raises(InvalidInput, match="all equal"):
        components(place(np.zeros((3, 2))))


def test_the_table_is_a_copy(place: Place) -> None:
    result = components(place(np.eye(3)))
    table = result.to_dataframe()
    table.loc[0, "component"] = 99
    assert result.to_dataframe().loc[0, "component"] == 1
