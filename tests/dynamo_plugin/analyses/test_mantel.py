"""Mantel's test against scipy and orders enumerated one by one."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from dynamo_plugin.analyses._mantel import check_distances_vary, mantel_spearman
from dynamo_plugin.errors import InvalidInput


def _squares(models: int, *, count: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.stack([squareform(pdist(rng.normal(size=(models, 2)))) for _ in range(count)])


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    upper = np.triu_indices(len(first), 1)
    return float(spearmanr(first[upper], second[upper]).statistic)


def test_all_orders_of_one_stratum() -> None:
    squares = _squares(5, count=3, seed=0)
    values, p_values = mantel_spearman(
        squares[:2], squares[2], [np.arange(5)], permutations=9, max_exact=1000, seed=0
    )
    for place in range(2):
        assert values[place] == pytest.approx(_spearman(squares[place], squares[2]))
        reached = [
            _spearman(squares[place], squares[2][np.ix_(order, order)]) >= values[place] - 1e-9
            for order in permutations(range(5))
        ]
        assert p_values[place] == pytest.approx(np.mean(reached))


def test_models_change_places_within_strata() -> None:
    squares = _squares(9, count=2, seed=3)
    squares[1] = 0.5 * squares[0] + squares[1]
    strata = [np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7, 8])]
    (value,), (p_value,) = mantel_spearman(
        squares[:1], squares[1], strata, permutations=4000, max_exact=10_000, seed=0
    )

    def mean(*orders: tuple[int, ...]) -> float:
        parts, pairs = [], []
        for members, order in zip(strata, orders, strict=True):
            moved = members[list(order)]
            inside = squares[0][np.ix_(members, members)]
            parts.append(_spearman(inside, squares[1][np.ix_(moved, moved)]))
            pairs.append(len(members) * (len(members) - 1) / 2)
        return float(np.average(parts, weights=pairs))

    assert value == pytest.approx(mean((0, 1, 2, 3), (0, 1, 2, 3, 4)))
    rng = np.random.default_rng(1)
    every = list(product(permutations(range(4)), permutations(range(5))))
    chosen = [every[place] for place in rng.choice(len(every), 400, replace=False)]
    expected = np.mean([mean(*orders) >= value - 1e-9 for orders in chosen])
    assert p_value == pytest.approx(expected, abs=0.06)
    assert p_value >= 1 / 4001


def test_equal_distances_agree_with_nothing() -> None:
    with pytest.raises(InvalidInput, match="All distances 'rsa' of the group 'a' are equal"):
        check_distances_vary("rsa", 1 - np.eye(4), " of the group 'a'")
