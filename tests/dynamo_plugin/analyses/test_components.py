from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

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


def test_private_dimensions_are_told_apart(place: Place) -> None:
    rng = np.random.default_rng(0)
    # Twelve groups on a line, within which networks differ by four private dimensions only.
    line = np.repeat(np.arange(12.0), 12)[:, None] + 1e-4 * rng.uniform(size=(144, 1))
    embedding = place(np.hstack([line, 0.01 * rng.normal(size=(144, 4))]))
    settings = dataclasses.replace(embedding.config, embedding_dim=5, leading_dim=1)
    result = components(dataclasses.replace(embedding, config=settings))
    found = result.dimensions.set_index(["of", "estimator"])["value"]
    assert found["all", "participation_ratio"] == pytest.approx(1, abs=1e-3)
    assert found["all", "two_nn"] == pytest.approx(4, abs=1)
    assert found["leading", "two_nn"] == pytest.approx(1, abs=0.25)
    json.dumps(result.summary(), allow_nan=False)


def test_absent_dimensions_are_explained(place: Place) -> None:
    result = components(place([[0.0, 0, 0], [3, 4, 0], [1, 0, 1]]))
    absent = result.dimensions[result.dimensions["value"].isna()]
    assert set(absent["estimator"]) == {"two_nn", "mle"}
    assert absent["note"].str.contains("at least 10 networks").all()
    figures: Any = result.summary()["dimensions"]
    assert figures["two_nn_all"]["value"] is None
    assert figures["participation_ratio_all"]["value"] == pytest.approx(
        result.to_dataframe()["explained_variance"].sum() ** 2
        / (result.to_dataframe()["explained_variance"] ** 2).sum()
    )
