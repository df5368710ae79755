"""Planes through thetas against their definition, and hulls against scipy's triangulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay
from sklearn.decomposition import PCA

from dynamo_plugin.analyses._plane import in_hull, read_plane
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName

ALL = np.arange(6)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hull_is_that_of_a_triangulation(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    corners, points = rng.normal(size=(9, dimensions)), rng.normal(size=(150, dimensions))
    expected = Delaunay(corners).find_simplex(points) >= 0
    assert 10 < expected.sum() < 140
    np.testing.assert_array_equal(in_hull(points, corners), expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    corners=st.integers(2, 12),
    dimensions=st.integers(1, 8),
    size=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_weighted_means_are_inside_and_what_is_beyond_a_face_is_not(
    seed: int, corners: int, dimensions: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    ends = size * rng.normal(size=(corners, dimensions))
    inside = rng.dirichlet(np.ones(corners), 3) @ ends
    direction = rng.normal(size=dimensions)
    # Beyond the corner that is farthest along a direction, and off the space that they span.
    outside = ends[(ends @ direction).argmax()] + 1e-3 * size * direction
    found = in_hull(np.concatenate([inside, ends, [outside]]), ends)
    assert found.tolist() == [True] * (3 + corners) + [False]


def test_components_are_those_of_scikit_learn(embedding: ModelEmbedding) -> None:
    thetas = embedding.thetas.double().numpy()
    plane = read_plane(embedding, ALL, "components")
    pca = PCA(2).fit(thetas)
    np.testing.assert_allclose(np.abs(plane.axes @ pca.components_.T), np.eye(2), atol=1e-6)
    np.testing.assert_allclose(plane.origin, thetas.mean(0))
    np.testing.assert_allclose(plane.high, plane.coordinates(thetas).max(0))


def test_the_plane_through_three_networks_holds_them(embedding: ModelEmbedding) -> None:
    three = [embedding.ids[place] for place in (4, 0, 3)]
    plane = read_plane(embedding, ALL, three)
    thetas = embedding.thetas.double().numpy()[[4, 0, 3]]
    coordinates = plane.coordinates(thetas)
    np.testing.assert_allclose(plane.thetas(coordinates), thetas, atol=1e-9)
    np.testing.assert_allclose(coordinates[0], 0)
    length = float(np.linalg.norm(thetas[1] - thetas[0]))
    np.testing.assert_allclose(coordinates[1], [length, 0], atol=1e-12)
    np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-12)


def test_directions_go_through_the_mean(embedding: ModelEmbedding) -> None:
    plane = read_plane(embedding, ALL, [[0.0, 2.0, 0.0, 0.0], [0.0, 1.0, 3.0, 0.0]])
    np.testing.assert_allclose(plane.axes, [[0, 1, 0, 0], [0, 0, 1, 0]])
    mean = embedding.thetas.double().numpy().mean(0)
    np.testing.assert_allclose(plane.thetas(np.array([[0.0, 0], [3, 0]]))[0], mean)


def test_the_grid_goes_beyond_the_networks(embedding: ModelEmbedding) -> None:
    plane = read_plane(embedding, ALL, "components")
    points = plane.grid(5, 0.5)
    assert points.shape == (25, 2)
    extent = plane.high - plane.low
    np.testing.assert_allclose(points[0], plane.low - extent / 2)
    np.testing.assert_allclose(points[-1], plane.high + extent / 2)
    np.testing.assert_allclose(points[1] - points[0], [extent[0] / 2, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pca", "'components', three model ids"),
        (["gru-0", "rnn-1"], "'components', three model ids"),
        ([[1.0, 0, 0], [0, 1, 0]], r"shape \(2, 4\)"),
        ([[1.0, 0, 0, 0], [2, 0, 0, 0]], "parallel"),
        ([[0.0, 0, 0, 0], [2, 0, 0, 0]], "parallel, or zero"),
        ([[np.nan, 0, 0, 0], [2, 0, 0, 0]], "two finite directions"),
        (["gru-0", "gru-0", "rnn-1"], "lie on a line"),
        (["gru-0", "gru-2", "gru-0"], "lie on a line"),
    ],
)
def test_no_plane(embedding: ModelEmbedding, source: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_plane(embedding, ALL, source)


def test_no_plane_where_networks_do_not_span_one(place: Any, embedding: ModelEmbedding) -> None:
    line = place([[0.0, 0, 0, 0], [1, 1, 0, 0], [2, 2, 0, 0]])
    with pytest.raises(InvalidInput, match="lie on one line"):
        read_plane(line, np.arange(3), "components")
    with pytest.raises(InvalidInput, match="lie on a line"):
        read_plane(line, np.arange(3), list(line.ids))
    with pytest.raises(InvalidInput, match="at one place along a direction"):
        read_plane(line, np.arange(3), [[0.0, 0, 1, 0], [1.0, 0, 0, 0]])
    with pytest.raises(UnknownName, match="gru-9"):
        read_plane(embedding, ALL, ["gru-0", "gru-9", "rnn-1"])
    with pytest.raises(InvalidInput, match="'rnn-1' is of the output group"):
        read_plane(embedding, np.array([0, 2, 4]), ["gru-0", "gru-2", "rnn-1"])
