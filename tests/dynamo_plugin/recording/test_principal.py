"""Streamed principal components against scikit-learn's of all rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording import principal
from dynamo_plugin.recording.principal import accumulator


def rows_of(count: int, width: int, *, rank: int | None = None, seed: int = 0) -> NDArray[Any]:
    """Rows far from the origin, with variances that fall by a tenth per axis."""
    rng = np.random.default_rng(seed)
    rank = width if rank is None else rank
    scores = rng.normal(size=(count, rank)) * 0.9 ** np.arange(rank)
    basis = np.linalg.qr(rng.normal(size=(width, rank)))[0]
    rows: NDArray[Any] = scores @ basis.T + rng.normal(30, 5, width)
    return rows


def fit(rows: NDArray[Any], components: int, cuts: list[int]) -> dict[str, NDArray[Any]]:
    fitted = accumulator(rows.shape[1], components)
    for part in np.split(rows, sorted(cuts)):
        fitted.add(part)
    return fitted.result()


def assert_equal_to_pca(rows: NDArray[Any], found: dict[str, NDArray[Any]], rtol: float) -> None:
    components = len(found["components"])
    expected = PCA(n_components=components, svd_solver="full").fit(rows)
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["variances"][:-1], expected.explained_variance_, rtol=rtol)
    total = rows.var(0, ddof=1).sum()
    assert found["variances"].sum() == pytest.approx(total, rel=1e-9)
    aligned = np.abs((found["components"] * expected.components_).sum(1))
    np.testing.assert_allclose(aligned, 1, atol=rtol)
    identity = found["components"] @ found["components"].T
    np.testing.assert_allclose(identity, np.eye(components), atol=1e-9)
    largest = np.abs(found["components"]).argmax(1)
    assert (found["components"][np.arange(components), largest] > 0).all()


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), components=st.integers(1, 7))
def test_exact_whatever_the_batches(cuts: list[int], components: int) -> None:
    rows = rows_of(60, 7)
    assert_equal_to_pca(rows, fit(rows, components, cuts), rtol=1e-8)


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(0, 300), max_size=5))
def test_wide_rows_are_nearly_exact(cuts: list[int]) -> None:
    rows = rows_of(300, 90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(principal, "EXACT_WIDTH", 50)
        assert_equal_to_pca(rows, fit(rows, 4, cuts), rtol=0.02)


def test_wide_rows_of_a_low_rank_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(principal, "EXACT_WIDTH", 50)
    rows = rows_of(300, 90, rank=6)
    assert_equal_to_pca(rows, fit(rows, 4, [1, 100, 101, 250]), rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 50])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_too_few_rows_are_refused(count: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(principal, "EXACT_WIDTH", limit)
    with pytest.raises(InvalidInput, match=rf"5 principal components.*at least 5.*are {count}"):
        fit(rows_of(count, 9), 5, [])
    assert fit(rows_of(5, 9), 5, [2])["components"].shape == (5, 9)


def test_one_component_needs_two_rows() -> None:
    with pytest.raises(InvalidInput, match="at least 2 rows"):
        fit(rows_of(1, 9), 1, [])
