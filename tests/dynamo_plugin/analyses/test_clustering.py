from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score

from dynamo_plugin.analyses._clustering import METHODS, Partition, find_partition

Points = NDArray[np.float64]


def partition(points: Points, method: Any, **options: Any) -> Partition:
    asked: dict[str, Any] = {"clusters": None, "choose_by": None, "seed": 0, **options}
    return find_partition(points, cdist(points, points), method=method, **asked)


@pytest.fixture(scope="module")
def three() -> Points:
    """Eight points here, eight there and eight elsewhere, in five dimensions."""
    rng = np.random.default_rng(0)
    return np.asarray(np.repeat(12 * np.eye(5)[:3], 8, axis=0) + rng.normal(size=(24, 5)))


TRUTH = np.repeat(np.arange(3), 8)


@pytest.mark.parametrize(
    ("method", "choose_by", "chosen"),
    [
        ("kmeans", None, "silhouette"),
        ("kmeans", "gap", "gap"),
        ("gaussian_mixture", None, "bic"),
        ("agglomerative", None, "silhouette"),
        ("agglomerative", "gap", "gap"),
        ("hdbscan", None, None),
    ],
)
def test_separated_groups_are_found(
    three: Points, method: str, choose_by: str | None, chosen: str | None
) -> None:
    order = np.random.default_rng(1).permutation(24)
    found = partition(three[order], method, choose_by=choose_by)
    assert found.count == 3
    assert found.chosen_by == chosen
    assert adjusted_rand_score(found.codes, TRUTH[order]) == 1
    assert found.codes[0] == 0
    assert sorted(np.unique(found.codes, return_index=True)[1]) == [
        int(np.argmax(found.codes == code)) for code in range(3)
    ]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "hdbscan"])
def test_a_given_number_is_kept(three: Points, method: str) -> None:
    found = partition(three, method, clusters=2)
    assert found.count == 2
    assert found.chosen_by is None
    assert found.selection.empty


def test_ward_is_that_of_scipy(three: Points) -> None:
    expected = fcluster(linkage(three, "ward"), 5, criterion="maxclust")
    found = partition(three, "agglomerative", clusters=5)
    assert adjusted_rand_score(found.codes, expected) == 1


def test_silhouettes_of_the_selection(three: Points) -> None:
    found = partition(three, "agglomerative")
    tree = linkage(three, "ward")
    for count, score in zip(range(2, 9), found.selection["score"], strict=True):
        codes = fcluster(tree, count, criterion="maxclust")
        assert score == pytest.approx(silhouette_score(three, codes), abs=1e-9)
    assert found.selection["clusters"].tolist() == list(range(2, 9))


def test_the_gap_follows_its_formula(three: Points) -> None:
    found = partition(three, "agglomerative", choose_by="gap", seed=4)
    placed = PCA().fit_transform(three)
    low, reach = placed.min(0), np.ptp(placed, axis=0)
    draws = np.random.default_rng(4).uniform(size=(20, 24, 5))

    def log_dispersions(points: Points) -> list[float]:
        tree, logs = linkage(points, "ward"), []
        for k in range(1, 9):
            codes = fcluster(tree, k, criterion="maxclust")
            groups = [points[codes == code] for code in np.unique(codes)]
            # Tibshirani's W: pairwise squared distances over twice the size of the cluster.
            within = sum((cdist(g, g) ** 2).sum() / (2 * len(g)) for g in groups)
            logs.append(float(np.log(within)))
        return logs

    expected = np.array([log_dispersions(low + reach * draw) for draw in draws])
    gap = expected.mean(0) - log_dispersions(placed)
    error = expected.std(0) * np.sqrt(21 / 20)
    np.testing.assert_allclose(found.selection["score"].astype(float), gap, atol=1e-9)
    np.testing.assert_allclose(found.selection["error"].astype(float), error, atol=1e-9)
    assert next(k for k in range(7) if gap[k] >= gap[k + 1] - error[k + 1]) == 2


def test_the_bic_of_one_component_has_a_closed_form() -> None:
    points = np.random.default_rng(5).normal(size=(40, 1))
    found = partition(points, "gaussian_mixture")
    scaled = (points - points.mean()) / points.std()
    # Mean and variance are two parameters; a twentieth of the variance keeps components wide.
    expected = -2 * norm.logpdf(scaled, scale=np.sqrt(1.05)).sum() + 2 * np.log(40)
    assert found.selection["score"].iloc[0] == pytest.approx(expected, rel=1e-6)
    assert found.count == 1


def test_no_groups_are_none_for_gap_and_bic() -> None:
    draws = [np.random.default_rng(seed).normal(size=(24, 2)) for seed in range(4)]
    assert [partition(points, "gaussian_mixture").count for points in draws] == [1] * 4
    uniform = [np.random.default_rng(seed).uniform(size=(24, 2)) for seed in range(4)]
    by_gap = [partition(points, "agglomerative", choose_by="gap").count for points in uniform]
    assert by_gap == [1] * 4


def test_two_places_are_two_clusters_by_gap() -> None:
    found = partition(np.repeat([[0.0, 0], [1, 0]], 6, axis=0), "kmeans", choose_by="gap")
    assert found.count == 2


def test_clusters_that_stay_empty_do_not_count() -> None:
    # The corners of a square fall together in one component, which is all that four points allow.
    found = partition(np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), "gaussian_mixture", clusters=3)
    assert found.count == 2
    assert sorted(set(found.codes.tolist())) == [0, 1]


def test_hdbscan_leaves_out_what_is_alone(three: Points) -> None:
    lonely = np.vstack([[[80.0] * 5], three, [[-80.0] * 5]])
    found = partition(lonely, "hdbscan")
    assert found.codes[[0, -1]].tolist() == [-1, -1]
    assert found.count == 3
    assert found.members.shape == (26, 5)
    assert (found.members.sum(1) == 1).all()
    assert found.members.sum(0).tolist() == [8, 8, 8, 1, 1]
