from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import KDTree
from sklearn.decomposition import PCA

from dynamo_plugin.analyses._dimension import neighbour_dimensions, participation_ratio

Points = NDArray[np.float64]


def sphere(rng: np.random.Generator, count: int, dim: int) -> Points:
    """Return points spread evenly over the surface of a ball in dim + 1 dimensions."""
    points = rng.normal(size=(count, dim + 1))
    surface: Points = points / np.linalg.norm(points, axis=1, keepdims=True)
    return surface


def torus(rng: np.random.Generator, count: int, dim: int) -> Points:
    """Return points spread evenly over a flat torus, a cube without borders."""
    angles = rng.uniform(0, 2 * np.pi, (count, dim))
    return np.hstack([np.cos(angles), np.sin(angles)])


def test_the_ratio_is_that_of_the_variances_of_scikit_learn() -> None:
    points = np.random.default_rng(0).normal(size=(15, 6)) * [3, 2, 1, 1, 0.5, 0.01]
    variances = PCA().fit(points).explained_variance_
    expected = variances.sum() ** 2 / (variances**2).sum()
    assert participation_ratio(points).value == pytest.approx(expected, rel=1e-10)


def test_equal_variances_share_equally() -> None:
    assert participation_ratio(np.vstack([np.eye(5), -np.eye(5)])).value == pytest.approx(5)


def test_the_interval_is_a_jackknife() -> None:
    points = np.random.default_rng(1).normal(size=(12, 3)) * [1, 2, 3]

    def inverse(some: Points) -> float:
        values = np.linalg.eigvalsh(np.cov(some.T))
        return float((values**2).sum() / values.sum() ** 2)

    pseudo = 12 * inverse(points) - 11 * np.array(
        [inverse(np.delete(points, index, axis=0)) for index in range(12)]
    )
    reach = 2.200985 * pseudo.std(ddof=1) / np.sqrt(12)  # the 97.5 % point of t with 11 degrees
    found = participation_ratio(points)
    assert found.high == pytest.approx(min(1 / (pseudo.mean() - reach), 3), rel=1e-6)
    assert found.low == pytest.approx(1 / (pseudo.mean() + reach), rel=1e-6)


@pytest.mark.parametrize(("count", "scales"), [(20, [1.0] * 8), (60, [3.0, 2, 1, 1, 0.3])])
def test_the_interval_holds_the_ratio_of_the_population(count: int, scales: list[float]) -> None:
    rng, variances = np.random.default_rng(2), np.square(scales)
    truth = variances.sum() ** 2 / (variances**2).sum()
    held = []
    for _ in range(200):
        found = participation_ratio(rng.normal(size=(count, len(scales))) * scales)
        assert found.low is not None
        assert found.high is not None
        held.append(found.low <= truth * (1 + 1e-9) and truth <= found.high * (1 + 1e-9))
    # 95 %, less what a jackknife of so few is short of, and four standard errors of 200 trials.
    assert np.mean(held) > 0.85


def test_few_networks_for_many_dimensions_are_noted() -> None:
    found = participation_ratio(np.random.default_rng(3).normal(size=(20, 16)))
    assert found.value is not None
    assert found.low is not None
    assert found.value < found.low <= 16
    assert "few networks" in found.note


def test_estimates_follow_their_formulas() -> None:
    points = np.random.default_rng(4).normal(size=(40, 3))
    distances = np.asarray(KDTree(points).query(points, k=11)[0])[:, 1:]
    found = neighbour_dimensions(points)
    pareto = 39 / np.log(distances[:, 1] / distances[:, 0]).sum()
    assert found["two_nn"].value == pytest.approx(pareto, rel=1e-10)
    # Levina and Bickel, equation 8, at every point; MacKay and Ghahramani average the inverse.
    inverses = np.log(distances[:, [9]] / distances[:, :9]).mean(1)
    assert found["mle"].value == pytest.approx(1 / inverses.mean(), rel=1e-10)


@pytest.mark.parametrize(
    ("make", "dim"), [(torus, 1), (torus, 2), (sphere, 2), (sphere, 4)], ids=str
)
def test_known_dimensions_are_found(
    make: Callable[[np.random.Generator, int, int], Points], dim: int
) -> None:
    rng = np.random.default_rng(5)
    values: dict[str, list[float]] = {"two_nn": [], "mle": []}
    held: dict[str, list[bool]] = {"two_nn": [], "mle": []}
    for _ in range(60):
        for name, found in neighbour_dimensions(make(rng, 150, dim)).items():
            assert found.value is not None
            assert found.low is not None
            assert found.high is not None
            values[name].append(found.value)
            held[name].append(found.low <= dim <= found.high)
    for name in values:
        assert np.mean(values[name]) == pytest.approx(dim, rel=0.05)
        assert np.mean(held[name]) > 0.87


def test_two_nn_is_exact_for_two_distances() -> None:
    # Pairs at distance 1 and next pairs at distance 2 on a line: every ratio is 2, or 3 where the
    # nearer pair is behind the partner.
    starts = np.arange(12) * 3.0
    points = np.sort(np.concatenate([starts, starts + 1]))[:, None]
    # Within the line, first neighbours are 1 away and second ones 2; at both ends they are 3.
    expected = 23 / (22 * np.log(2) + 2 * np.log(3))
    assert neighbour_dimensions(points)["two_nn"].value == pytest.approx(expected, rel=1e-12)


def test_repeated_points_count_once() -> None:
    points = np.random.default_rng(6).normal(size=(12, 2))
    once = neighbour_dimensions(points)
    twice = neighbour_dimensions(np.vstack([points, points[:5]]))
    for name in once:
        assert twice[name].value == pytest.approx(once[name].value)
        assert twice[name].points == 12
        assert twice[name].note == "5 repeated thetas left out"


def test_what_cannot_be_estimated_says_why() -> None:
    nine = neighbour_dimensions(np.random.default_rng(7).normal(size=(9, 2)))
    corners = neighbour_dimensions(np.eye(12))
    for name in ("two_nn", "mle"):
        assert nine[name].value is nine[name].low is None
        assert "at least 10 networks at distinct places, these are 9" in nine[name].note
        assert corners[name].value is None
        assert "as far from its next neighbours" in corners[name].note
    still = participation_ratio(np.ones((12, 2)))
    assert still.value is None
    assert "nothing varies" in still.note
    few = participation_ratio(np.eye(3))
    assert few.value == pytest.approx(2)
    assert few.low is None
    assert "at least 10 networks, these are 3" in few.note
    alone = participation_ratio(np.eye(12)[:, :1])
    assert alone.low is None
    assert "one network carries all" in alone.note
