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
        ({"method": "dbscan"}, "method must be one of kmeans, gaussian_mixture"),
        ({"method": "hdbscan", "clusters": 2}, "finds the number of clusters itself"),
        ({"clusters": 2, "choose_by": "gap"}, "Give one of the two"),
        ({"choose_by": "bic"}, "one of silhouette, gap for the method 'kmeans'"),
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


@pytest.mark.parametrize("method", ["gaussian_mixture", "agglomerative", "hdbscan"])
def test_other_methods_are_compared_with_labels(place: Place, method: Any) -> None:
    rng = np.random.default_rng(0)
    thetas = np.repeat([[0.0, 0, 0], [8, 0, 0]], 6, axis=0) + rng.normal(size=(12, 3))
    labels = ["a"] * 5 + ["b"] * 7
    groups = place(thetas, task=labels)
    result = clusters(groups, labels="task", method=method)
    summary: dict[str, Any] = result.summary()
    json.dumps(summary, allow_nan=False)
    assert result.method == summary["method"] == method
    assert result.chosen_by is None
    found = result.assignments["cluster"].to_numpy()
    kept = found > 0
    alone = np.where(kept, found, 100 + np.arange(12))
    assert summary["adjusted_rand"] == pytest.approx(adjusted_rand_score(labels, alone))
    expected = silhouette_score(groups.thetas.numpy()[kept], found[kept])
    assert summary[f"{method}_silhouette"] == pytest.approx(expected, abs=1e-6)
    assert sum(len(trace.x) for trace in result.plot().data) == 12


def test_the_number_is_chosen_despite_labels_if_asked_for(groups: ModelEmbedding) -> None:
    labels = list("abcabcab")
    assert clusters(groups, labels=labels).clusters == 3
    chosen = clusters(groups, labels=labels, choose_by="silhouette")
    assert chosen.clusters == 2
    assert chosen.chosen_by == "silhouette"
    assert chosen.selection["clusters"].tolist() == list(range(2, 8))


def test_no_clusters_have_no_silhouette(place: Place) -> None:
    shapeless = place(np.random.default_rng(0).normal(size=(24, 3)), task=["a", "b", "c"] * 8)
    result = clusters(shapeless, method="gaussian_mixture", choose_by="bic", labels="task")
    assert result.clusters == 1
    summary = result.summary()
    assert summary["gaussian_mixture_silhouette"] is None
    assert summary["note"] == "no silhouette: there is one cluster only"
    assert summary["adjusted_rand"] == 0
    json.dumps(summary, allow_nan=False)
    assert result.plot().data
