from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score

from dynamo_plugin.analyses import clusters
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName

Place = Callable[..., ModelEmbedding]


@pytest.fixture(scope="module")
def groups(place: Place) -> ModelEmbedding:
    """Four models here and four there."""
    rng = np.random.default_rng(0)
    thetas = np.repeat([[0.0, 0, 0], [5, 0, 0]], 4, axis=0) + 0.3 * rng.normal(size=(8, 3))
    return place(thetas, task=["a"] * 4 + ["b"] * 4, alike=["x"] * 8, own=list("abcdefgh"))


def test_separated_groups_are_found(groups: ModelEmbedding) -> None:
    result = clusters(groups, labels="task")
    summary: dict[str, Any] = result.summary()
    json.dumps(summary, allow_nan=False)
    assert summary["clusters"] == 2
    assert summary["neighbour_accuracy"] == summary["adjusted_rand"] == 1
    expected = silhouette_score(groups.thetas.numpy(), groups.metadata["task"])
    assert summary["label_silhouette"] == pytest.approx(expected, abs=1e-6)
    assert summary["kmeans_silhouette"] == pytest.approx(expected, abs=1e-6)
    assert summary["label_silhouette_p"] == pytest.approx(2 / 70)
    assert summary["exact"] is True
    assert summary["labellings"] == 70
    assert result.assignments["cluster"].tolist() == [1] * 4 + [2] * 4
    assert result.assignments["label"].tolist() == ["a"] * 4 + ["b"] * 4


def test_the_number_of_clusters_is_found_without_labels(place: Place) -> None:
    centres = 10 * np.eye(4)
    noise = np.random.default_rng(1).normal(size=(20, 4))
    result = clusters(place(np.repeat(centres, 5, axis=0) + noise))
    assert result.clusters == 4
    truth = np.repeat(np.arange(4), 5)
    assert adjusted_rand_score(result.assignments["cluster"], truth) == 1
    assert list(result.to_dataframe()["statistic"]) == ["kmeans_silhouette"]
    json.dumps(result.summary(), allow_nan=False)


def test_the_order_of_models_does_not_matter(groups: ModelEmbedding, place: Place) -> None:
    order = np.random.default_rng(3).permutation(8)
    labels = ["a", "b", "a", "b", "a", "a", "b", "b"]
    shuffled = place(groups.thetas.numpy()[order], task=np.array(labels)[order].tolist())
    first = clusters(groups, labels=labels).to_dataframe()
    second = clusters(shuffled, labels="task").to_dataframe()
    np.testing.assert_allclose(
        first[["value", "p_value"]].iloc[1:].astype(float),
        second[["value", "p_value"]].iloc[1:].astype(float),
        atol=1e-7,
    )


def test_more_relabellings_than_allowed_are_drawn(groups: ModelEmbedding) -> None:
    result = clusters(groups, labels="task", max_exact=69, permutations=199)
    assert not result.exact
    assert result.labellings == 199
    assert result.summary()["label_silhouette_p"] >= 1 / 200  # type: ignore[operator]


def test_functional_distances_are_kept_by_the_coordinates(embedding: ModelEmbedding) -> None:
    result = clusters(embedding, labels="architecture", distance="functional")
    placed = result.coordinates
    found = np.linalg.norm(placed[:, None] - placed[None], axis=-1)
    np.testing.assert_allclose(found, embedding.distances("functional"), atol=1e-6)
    assert result.distance == "functional"


def test_the_plot_shows_names_as_text(place: Place) -> None:
    rng = np.random.default_rng(0)
    shown = place(rng.normal(size=(6, 2)), task=["<b>x</b>", "y"] * 3)
    figure = clusters(shown, labels="task").plot()
    assert [trace.name for trace in figure.data] == ["&lt;b&gt;x&lt;/b&gt;", "y"]
    assert sum(len(trace.x) for trace in figure.data) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "alike"}, "'x' for every model"),
        ({"labels": "own"}, "different for every model"),
        ({"clusters": 8}, "from 2 to 7 clusters"),
        ({"clusters": 1}, "from 2 to 7 clusters"),
        ({"permutations": 0}, "permutations must be at least 1"),
        ({"distance": "cosine"}, "'theta' or 'functional'"),
    ],
)
def test_bad_options_say_what_is_wrong(
    groups: ModelEmbedding, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        clusters(groups, **options)


def test_unknown_column(groups: ModelEmbedding) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'task'"):
        clusters(groups, labels="tasks")


def test_too_few_and_equal_models(place: Place) -> None:
    with pytest.raises(InvalidInput, match="at least 3 models"):
        clusters(place(np.eye(2)))
    with pytest.raises(InvalidInput, match="all 4 are equal"):
        clusters(place(np.ones((4, 2))))
    with pytest.raises(InvalidInput, match="2 distinct places; got 3"):
        clusters(place([[0.0], [0], [1], [1]]), clusters=3)


def test_a_label_of_one_model_is_allowed(place: Place) -> None:
    rng = np.random.default_rng(0)
    result = clusters(place(rng.normal(size=(5, 2)), task=["a", "a", "a", "a", "b"]), labels="task")
    assert result.labellings == 5
