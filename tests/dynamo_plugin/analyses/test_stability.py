"""Stability of neighbours against sets, enumerations and scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from dynamo_plugin.analyses._stability import (
    chance_overlap,
    distances_of,
    nearest,
    neighbour_overlap,
    rank_correlations,
)
from dynamo_plugin.errors import InvalidInput


def test_overlap_is_that_of_sets() -> None:
    positions = np.random.default_rng(0).normal(size=(4, 9, 2))
    near = nearest(distances_of(positions), 3)
    found = neighbour_overlap(near)
    for point in range(9):
        sets = []
        for fit in range(4):
            apart = np.linalg.norm(positions[fit] - positions[fit, point], axis=1)
            order = [place for place in np.argsort(apart) if place != point]
            assert near[fit, point].tolist() == order[:3]
            sets.append(set(order[:3]))
        shares = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
        assert found[point] == pytest.approx(np.mean(shares))


def test_the_same_neighbours_overlap_entirely() -> None:
    near = nearest(distances_of(np.random.default_rng(0).normal(size=(1, 6, 3))), 2)
    assert neighbour_overlap(np.repeat(near, 3, axis=0)).tolist() == [1.0] * 6


@pytest.mark.parametrize(("points", "count"), [(4, 1), (6, 2), (8, 3), (7, 6)])
def test_chance_is_the_mean_over_all_sets(points: int, count: int) -> None:
    fixed = set(range(count))
    every = [set(chosen) for chosen in combinations(range(points - 1), count)]
    expected = np.mean([len(fixed & other) / len(fixed | other) for other in every])
    assert chance_overlap(points, count) == pytest.approx(expected)


def test_rank_correlations_are_those_of_scipy() -> None:
    positions = np.random.default_rng(1).normal(size=(3, 7, 2))
    found = rank_correlations(distances_of(positions))
    for i, j in combinations(range(3), 2):
        expected = spearmanr(pdist(positions[i]), pdist(positions[j])).statistic
        assert found[i, j] == found[j, i] == pytest.approx(expected)
    with pytest.raises(InvalidInput, match="are equal"):
        rank_correlations(distances_of(np.stack([np.eye(4), np.eye(4)])))
