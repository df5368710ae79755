"""Ellipses against the covariance of numpy, and by the share of new points that they hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dynamo_plugin.analyses._ellipses import Ellipse, ellipses_of, outlines


def test_axes_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 4, 2)) @ np.array([[2.0, 0.7], [0.0, 0.5]])
    major, minor, angle = ellipses_of(points, "normal")
    for model in range(4):
        covariance = np.cov(points[:, model].T)
        values, vectors = np.linalg.eigh(covariance)
        radius = np.sqrt(stats.chi2.ppf(0.95, 2) * values)
        np.testing.assert_allclose([minor[model], major[model]], radius)
        direction = np.array([np.cos(np.radians(angle[model])), np.sin(np.radians(angle[model]))])
        assert abs(direction @ vectors[:, 1]) == pytest.approx(1)
    assert ((angle > -90) & (angle <= 90)).all()


@pytest.mark.parametrize(
    ("direction", "expected"), [((1, 0), 0), ((0, 1), 90), ((1, 1), 45), ((1, -1), -45)]
)
def test_angle_of_points_on_a_line(direction: tuple[int, int], expected: float) -> None:
    points = np.array([-1.0, 0.0, 1.0])[:, None, None] * np.array(direction)
    major, minor, angle = ellipses_of(points, "normal")
    assert angle[0] == pytest.approx(expected)
    assert minor[0] == pytest.approx(0, abs=1e-7)
    assert major[0] > 0


def _covers(points: NDArray[np.float64], new: NDArray[np.float64], ellipse: Ellipse) -> float:
    """Return the share of models whose ellipse holds a new point."""
    major, minor, angle = ellipses_of(points, ellipse)
    x, y = (new - points.mean(0)).T
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = x * cos + y * sin, y * cos - x * sin
    return float(((along / major) ** 2 + (across / minor) ** 2 <= 1).mean())


@pytest.mark.parametrize("fits", [3, 5, 20])
def test_predictions_hold_95_percent_of_new_fits(fits: int) -> None:
    rng = np.random.default_rng(fits)
    draws = rng.normal(size=(fits + 1, 20_000, 2)) @ np.array([[3.0, 1.0], [0.0, 0.4]])
    assert _covers(draws[:-1], draws[-1], "prediction") == pytest.approx(0.95, abs=0.006)


def test_normal_ellipses_hold_95_percent_where_there_are_many_fits() -> None:
    draws = np.random.default_rng(0).normal(size=(201, 20_000, 2)) * [3.0, 1.0]
    assert _covers(draws[:-1], draws[-1], "normal") == pytest.approx(0.95, abs=0.01)
    assert _covers(draws[:4], draws[-1], "normal") < 0.8  # as the documentation says


def test_outlines_lie_on_the_ellipses() -> None:
    xs, ys = outlines(np.array([[1.0, 2.0, 3.0, 0.5, 30.0], [0.0, 0.0, 1.0, 1.0, 0.0]]))
    gap = xs.index(None)
    assert ys[gap] is None
    assert xs[-1] is None
    corners = np.array([xs[:gap], ys[:gap]], dtype=np.float64).T - [1.0, 2.0]
    turn = np.radians(30)
    along = corners @ [np.cos(turn), np.sin(turn)]
    across = corners @ [-np.sin(turn), np.cos(turn)]
    np.testing.assert_allclose((along / 3) ** 2 + (across / 0.5) ** 2, 1)
    np.testing.assert_allclose(corners[0], corners[-1])
