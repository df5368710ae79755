from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist, squareform
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from dynamo_plugin.analyses._label_agreement import (
    adjusted_rand,
    centroid_accuracy,
    nearest_neighbours,
    neighbour_accuracy,
    one_hot,
    silhouette,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 20), st.integers(2, 4))
def test_every_labelling_agrees_with_scikit_learn(seed: int, points: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    coordinates = rng.normal(size=(points, 3))
    distances = squareform(pdist(coordinates))
    base = np.arange(points) % values
    codes = rng.permuted(np.tile(base, (5, 1)), axis=1)
    clusters = rng.permuted(np.arange(points) % 3)
    members = one_hot(codes, values)
    silhouettes = silhouette(distances, members)
    rand = adjusted_rand(one_hot(clusters[None], 3)[0], members)
    for row, labels in enumerate(codes):
        expected = silhouette_score(distances, labels, metric="precomputed")
        assert silhouettes[row] == pytest.approx(expected, abs=1e-12)
        assert rand[row] == pytest.approx(adjusted_rand_score(clusters, labels), abs=1e-12)
    accuracy = neighbour_accuracy(nearest_neighbours(distances), members)
    nearest = KNeighborsClassifier(1)
    expected = cross_val_score(nearest, coordinates, codes[0], cv=LeaveOneOut()).mean()
    assert accuracy[0] == pytest.approx(expected)


def test_a_point_alone_with_its_label_has_silhouette_zero() -> None:
    distances = squareform(pdist(np.array([[0.0], [1.0], [5.0]])))
    codes = np.array([[0, 0, 1]])
    expected = silhouette_score(distances, codes[0], metric="precomputed")
    assert silhouette(distances, one_hot(codes, 2))[0] == pytest.approx(expected)


def test_points_in_one_place_have_silhouette_zero() -> None:
    assert silhouette(np.zeros((4, 4)), one_hot(np.array([[0, 0, 1, 1]]), 2))[0] == 0


def test_tied_neighbours_share_a_vote() -> None:
    distances = squareform(pdist(np.array([[0.0], [1.0], [-1.0]])))
    members = one_hot(np.array([[0, 0, 1]]), 2)
    # The middle point has one neighbour of its label and one of the other; the second has the
    # middle one; the third has none of its own.
    accuracy = neighbour_accuracy(nearest_neighbours(distances), members)
    assert accuracy[0] == pytest.approx((0.5 + 1 + 0) / 3)


def test_trivial_partitions_agree() -> None:
    codes = np.arange(4)[None]
    members = one_hot(codes, 4)
    expected = adjusted_rand_score(codes[0], codes[0])
    assert adjusted_rand(members[0], members)[0] == expected == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 12), st.integers(2, 3))
def test_nearest_centroids_leave_each_point_out(seed: int, points: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    coordinates = rng.normal(size=(points, 3))
    codes = rng.permutation(np.r_[np.arange(values), rng.integers(0, values, points - values)])
    right = []
    for left_out in range(points):
        others = np.arange(points) != left_out
        known = np.unique(codes[others])
        centroids = [coordinates[others & (codes == value)].mean(0) for value in known]
        nearest = known[cdist(coordinates[[left_out]], centroids).argmin()]
        right.append(nearest == codes[left_out])
    squared = squareform(pdist(coordinates)) ** 2
    found = centroid_accuracy(squared, one_hot(codes[None], values))
    assert found[0] == pytest.approx(np.mean(right))
