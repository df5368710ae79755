"""Generalised Procrustes analysis against scipy, known motions and the conditions of an optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import expm, orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.stats import ortho_group

from dynamo_plugin.analyses._procrustes import (
    align_configurations,
    chance_reliability,
    reliability,
)


def _noisy(fits: int, points: int, dims: int, *, noise: float, seed: int) -> NDArray[np.float64]:
    """Return one configuration with noise, moved and resized at random in every fit."""
    rng = np.random.default_rng(seed)
    shape = rng.normal(size=(points, dims)) * np.arange(1, dims + 1)
    moved = [
        rng.uniform(0.5, 2)
        * (shape + noise * rng.normal(size=shape.shape))
        @ ortho_group.rvs(dims, random_state=rng)
        + rng.normal(size=dims)
        for _ in range(fits)
    ]
    return np.stack(moved)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(4, 8), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_known_motions_are_undone(seed: int, fits: int, points: int, dims: int) -> None:
    given = _noisy(fits, points, dims, noise=0.0, seed=seed)
    found = align_configurations(given, scale=True)
    expected = given[0] - given[0].mean(0)
    assert found.converged
    np.testing.assert_allclose(found.positions, np.broadcast_to(expected, given.shape), atol=1e-6)
    sizes = np.linalg.norm(given - given.mean(1, keepdims=True), axis=(1, 2))
    np.testing.assert_allclose(found.scales, sizes[0] / sizes, rtol=1e-6)


def test_two_fits_are_turned_as_scipy_does() -> None:
    given = _noisy(2, 9, 3, noise=0.5, seed=0)
    first, second = given - given.mean(1, keepdims=True)
    rotation, _ = orthogonal_procrustes(second, first)
    found = align_configurations(given, scale=False)
    np.testing.assert_allclose(found.positions[0], first, atol=1e-12)
    np.testing.assert_allclose(found.positions[1], second @ rotation, atol=1e-9)
    assert found.scales.tolist() == [1, 1]


def test_two_fits_of_one_size_are_as_far_apart_as_scipy_says() -> None:
    given = _noisy(2, 9, 3, noise=0.5, seed=1)
    _, _, disparity = procrustes(*given)
    found = align_configurations(given, scale=True)
    norm = np.square(found.positions[0]).sum()
    assert np.square(found.positions[1]).sum() == pytest.approx(norm)
    # scipy's disparity is 1 - r^2 for matrices of norm 1, where r is their correlation.
    apart = 2 * norm * (1 - np.sqrt(1 - disparity))
    assert np.square(np.diff(found.positions, axis=0)).sum() == pytest.approx(apart)


@pytest.mark.parametrize("scale", [True, False])
def test_no_small_motion_of_one_fit_lowers_the_loss(scale: bool) -> None:
    rng = np.random.default_rng(3)
    found = align_configurations(_noisy(5, 12, 3, noise=1.0, seed=2), scale=scale)
    assert found.converged

    def loss(positions: NDArray[np.float64]) -> float:
        # With the sum of squares as unit, for sizes must not be able to shrink it.
        spread = np.square(positions - positions.mean(0)).sum()
        return float(spread / np.square(positions).sum())

    best = loss(found.positions)
    for fit in range(5):
        for _ in range(20):
            skew = rng.normal(size=(3, 3), scale=1e-2)
            moved = found.positions.copy()
            moved[fit] = moved[fit] @ expm(skew - skew.T)
            assert loss(moved) >= best - 1e-12
        for factor in (0.99, 1.01) if scale else ():
            resized = found.positions.copy()
            resized[fit] *= factor
            assert loss(resized) >= best - 1e-12


def test_the_order_of_the_fits_moves_no_point_against_another() -> None:
    given = _noisy(4, 7, 3, noise=0.3, seed=5)
    one = align_configurations(given, scale=True)
    two = align_configurations(given[::-1], scale=True)

    def shape(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = positions.reshape(-1, 3)
        gram: NDArray[np.float64] = flat @ flat.T / np.square(flat).sum()
        return gram

    np.testing.assert_allclose(shape(one.positions), shape(two.positions[::-1]), atol=1e-6)


def test_leading_axes_are_worked_on_side_by_side() -> None:
    given = np.stack([_noisy(3, 6, 2, noise=0.4, seed=seed) for seed in range(4)])
    together = align_configurations(given, scale=True).positions
    alone = [align_configurations(each, scale=True).positions for each in given]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_reliability_is_the_intraclass_correlation() -> None:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(4, 7, 1)) + 2 * rng.normal(size=(7, 1))
    table = positions[..., 0].T  # (target, rater), as Shrout and Fleiss have it
    targets, raters = table.shape
    rows, columns, grand = table.mean(1), table.mean(0), table.mean()
    between = raters * sum((rows - grand) ** 2) / (targets - 1)
    error = sum(
        (table[i, j] - rows[i] - columns[j] + grand) ** 2
        for i in range(targets)
        for j in range(raters)
    ) / ((targets - 1) * (raters - 1))
    expected = (between - error) / (between + (raters - 1) * error)
    assert reliability(positions) == pytest.approx(expected)


def test_reliability_of_known_variances() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(4000, 3), scale=[2.0, 1.0, 0.5])
    positions = points + rng.normal(size=(5, 4000, 3))
    assert reliability(positions) == pytest.approx(5.25 / (5.25 + 3), abs=0.02)
    assert reliability(np.stack([points, points])) == pytest.approx(1)
    assert reliability(rng.normal(size=(5, 4000, 3))) == pytest.approx(0, abs=0.02)


def test_chance_is_what_unrelated_fits_give() -> None:
    rng = np.random.default_rng(0)
    unrelated = rng.normal(size=(300, 3, 8, 3))
    found = reliability(align_configurations(unrelated, scale=True, tolerance=1e-6).positions)
    chance = chance_reliability(unrelated[0], scale=True, permutations=300, seed=0)
    assert chance.mean() == pytest.approx(found.mean(), abs=0.05)
    assert found.mean() > 0.3  # alignment makes unrelated fits look alike
    assert (found < 1).all()
