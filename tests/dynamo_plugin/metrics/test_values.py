"""Values against formulas of the papers written out with NumPy, SciPy and scikit-learn."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import cross_decomposition

import dynamo_plugin as dp
from tests.dynamo_plugin.metrics import references

SEEDS = st.integers(0, 2**32 - 1)
EXACT = 1e-9

several = settings(max_examples=10, deadline=None)


def states(seed: int, samples: int = 30) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return states of two networks of different widths that have something in common."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(samples, 4))
    x = common @ rng.normal(size=(4, 6)) + rng.normal(size=(samples, 6)) + 3
    y = common @ rng.normal(size=(4, 4)) + rng.normal(size=(samples, 4))
    return x * rng.uniform(0.1, 10), y


@several
@given(SEEDS)
def test_cka(seed: int) -> None:
    x, y = states(seed)
    for kernel, estimator in product(("linear", "rbf"), ("biased", "unbiased", "debiased")):
        expected = references.cka(x, y, kernel, estimator)
        found = dp.metric("cka", kernel=kernel, estimator=estimator)(x, y)
        assert found == pytest.approx(expected, abs=EXACT)


def test_cka_with_more_units_than_samples() -> None:
    x = np.random.default_rng(0).normal(size=(12, 40))
    y = np.random.default_rng(1).normal(size=(12, 3))
    for estimator in ("biased", "unbiased", "debiased"):
        expected = references.cka(x, y, "linear", estimator)
        assert dp.metric("cka", estimator=estimator)(x, y) == pytest.approx(expected, abs=EXACT)


def test_unbiased_estimates_of_nothing_in_common_are_around_zero() -> None:
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"biased": [], "unbiased": [], "debiased": []}
    for _ in range(50):
        x, y = rng.normal(size=(2, 40, 20))
        for estimator, values in found.items():
            values.append(dp.metric("cka", estimator=estimator)(x, y))
    error = np.std(found["unbiased"]) / np.sqrt(50)
    assert np.mean(found["biased"]) > 0.25
    assert abs(np.mean(found["unbiased"])) < 4 * error
    # without the diagonal alone, an offset of the order of 1 / samples stays
    assert abs(np.mean(found["debiased"])) < 0.05


@pytest.mark.parametrize("bandwidth", [0.5, 2.0])
def test_the_width_of_the_rbf_kernel(bandwidth: float) -> None:
    x, y = states(0)
    k, m = (references.kernel(z, "rbf", bandwidth) for z in (x, y))
    own = references.hsic(k, k, "biased") * references.hsic(m, m, "biased")
    expected = references.hsic(k, m, "biased") / np.sqrt(own)
    found = dp.metric("cka", kernel="rbf", bandwidth=bandwidth)(x, y)
    assert found == pytest.approx(expected, abs=EXACT)


@several
@given(SEEDS)
def test_procrustes(seed: int) -> None:
    x, y = states(seed)
    for measure in ("angular", "euclidean", "squared"):
        expected = references.procrustes(x, y, measure)
        assert dp.metric("procrustes", measure=measure)(x, y) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(("dtype", "relative"), [(np.float64, 1e-6), (np.float32, 1e-2)])
@pytest.mark.parametrize("angle", [1e-2, 1e-4])
def test_small_distances_keep_their_digits(dtype: type, relative: float, angle: float) -> None:
    # a turn out of the plane that no rotation of units undoes: the angle itself is the distance
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 5)) - 0.0)[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0]
    x = basis[:, :2]
    y = np.cos(angle) * x + np.sin(angle) * basis[:, 2:4]
    found = dp.metric("procrustes")(x.astype(dtype), y.astype(dtype))
    assert found == pytest.approx(angle, rel=relative)


@several
@given(SEEDS, st.floats(0, 1))
def test_shape_metrics(seed: int, alpha: float) -> None:
    x, y = states(seed)
    expected = references.procrustes(
        references.whitened(x, alpha), references.whitened(y, alpha), "angular"
    )
    assert dp.metric("shape", alpha=alpha)(x, y) == pytest.approx(expected, abs=EXACT)


def test_a_whitened_shape_is_of_canonical_correlations() -> None:
    x, y = states(0)
    rho, _, _ = references.canonical(x, y)
    expected = np.arccos(rho.sum() / np.sqrt(x.shape[1] * y.shape[1]))
    assert dp.metric("shape", alpha=0)(x, y) == pytest.approx(expected, abs=EXACT)


def test_a_relative_shape_divides_by_the_root_mean_square_of_singular_values() -> None:
    x, y = states(0)
    unit = [
        z / np.sqrt(np.square(np.linalg.svd(z - z.mean(0), compute_uv=False)).mean())
        for z in (x, y)
    ]
    expected = dp.metric("shape", alpha=0.4)(*unit)
    assert dp.metric("shape", alpha=0.4, relative=True)(x, y) == pytest.approx(expected, abs=EXACT)


@several
@given(SEEDS)
def test_canonical_correlations(seed: int) -> None:
    x, y = states(seed)
    rho, _, _ = references.canonical(x, y)
    assert dp.metric("cca")(x, y) == pytest.approx(rho.mean(), abs=EXACT)
    assert dp.metric("cca_r2")(x, y) == pytest.approx(np.square(rho).mean(), abs=EXACT)
    for weights in ("absolute", "variance"):
        first, second = references.pwcca(x, y, weights), references.pwcca(y, x, weights)
        sides = {"first": first, "second": second, "mean": (first + second) / 2}
        for side, expected in sides.items():
            found = dp.metric("pwcca", weights=weights, side=side)(x, y)
            assert found == pytest.approx(expected, abs=EXACT)


def test_canonical_correlations_of_scikit_learn() -> None:
    x, y = states(1, samples=60)
    analysis = cross_decomposition.CCA(n_components=4, max_iter=50_000, tol=1e-14)
    scores = analysis.fit(x, y).transform(x, y)
    rho = [np.corrcoef(scores[0][:, k], scores[1][:, k])[0, 1] for k in range(4)]
    assert dp.metric("cca")(x, y) == pytest.approx(np.mean(rho), abs=1e-6)


@several
@given(SEEDS, st.integers(1, 4))
def test_svcca_by_number(seed: int, directions: int) -> None:
    x, y = states(seed)
    a, b = (references.leading(z, directions) for z in (x, y))
    rho, _, _ = references.canonical(a, b)
    found = dp.metric("svcca", directions=directions)(x, y)
    assert found == pytest.approx(rho.mean(), abs=EXACT)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
def test_svcca_by_variance(variance: float) -> None:
    x, y = states(2)
    kept = []
    for z in (x, y):
        shares = np.cumsum(np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2)
        enough = np.flatnonzero(shares / shares[-1] >= variance - 1e-12)[0] + 1
        kept.append(references.leading(z, int(enough)))
    rho, _, _ = references.canonical(*kept)
    assert dp.metric("svcca", variance=variance)(x, y) == pytest.approx(rho.mean(), abs=EXACT)


@pytest.mark.parametrize("spread", [1e2, 1e5, 1e9])
def test_directions_of_very_different_sizes(spread: float) -> None:
    rng = np.random.default_rng(0)
    x, y = states(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    stretched = x @ np.diag(np.geomspace(1, 1 / spread, 6)) @ turn
    # the span is the same whatever its directions weigh; what is lost is what rounding loses
    expected = references.canonical(x, y)[0]
    tolerance = max(1e-9, 1e-14 * spread)
    assert dp.metric("cca")(stretched, y) == pytest.approx(expected.mean(), abs=tolerance)


def test_repeated_and_constant_units_add_nothing_to_a_span() -> None:
    x, y = states(0)
    more = np.column_stack([x, x[:, :2], np.full(len(x), 7.0)])
    for name in ("cca", "cca_r2"):
        expected = dp.metric(name)(x, y)
        assert dp.metric(name)(more, y) == pytest.approx(expected, abs=EXACT)


def test_weights_of_correlations_that_are_zero() -> None:
    # orthogonal but for one direction: all but one correlation vanish
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(40, 6))
    basis = np.linalg.qr(basis - basis.mean(0))[0]
    x = basis[:, :3] * [3, 2, 1]
    y = np.column_stack([0.6 * basis[:, 0] + 0.8 * basis[:, 3], basis[:, 4:6]])
    # the direction that counts is the first unit of x, alone on its axis
    # the others lie anywhere in the plane of two units: their weights are from 2 + 1 for the axes
    # to what the plane allows
    found = dp.metric("pwcca", side="first")(x, y)
    assert 0.6 * 3 / (3 + np.sqrt(2) * 3) <= found <= 0.6 * 3 / (3 + 3) + 1e-9


@several
@given(SEEDS)
def test_rsa(seed: int) -> None:
    x, y = states(seed)
    for dissimilarity, comparison in product(
        ("correlation", "cosine", "euclidean", "sqeuclidean"), ("pearson", "spearman", "cosine")
    ):
        expected = references.rsa(x, y, dissimilarity, comparison)
        found = dp.metric("rsa", dissimilarity=dissimilarity, comparison=comparison)(x, y)
        assert found == pytest.approx(expected, abs=EXACT)


def test_rsa_with_ties_and_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (20, 4)).astype(float)
    y = rng.normal(size=(20, 5))
    y[10:] = y[:10]
    for comparison in ("pearson", "spearman", "cosine"):
        expected = references.rsa(x, y, "euclidean", comparison)
        found = dp.metric("rsa", dissimilarity="euclidean", comparison=comparison)(x, y)
        assert found == pytest.approx(expected, abs=EXACT)


def test_rsa_with_more_units_than_samples() -> None:
    x = np.random.default_rng(0).normal(size=(12, 40))
    y = np.random.default_rng(1).normal(size=(12, 3))
    for dissimilarity in ("correlation", "cosine", "sqeuclidean"):
        expected = references.rsa(x, y, dissimilarity, "pearson")
        found = dp.metric("rsa", dissimilarity=dissimilarity)(x, y)
        assert found == pytest.approx(expected, abs=EXACT)
