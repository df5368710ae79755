"""Paths of least energy against closed forms: flat space, a sphere, and a stretched line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import check_grad
from torch import Tensor

from dynamo_plugin.analyses._geodesic import Energy, ShortestPath, path_energy, shortest_path
from dynamo_plugin.errors import InvalidInput


def sphere(angles: Tensor) -> Tensor:
    """Latitude and longitude on the unit sphere."""
    latitude, longitude = angles.unbind(1)
    flat = latitude.cos()
    return torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], 1)


def on(states: object) -> Energy:
    return lambda path: path_energy(states, path)  # type: ignore[arg-type]


def straight(first: list[float], second: list[float], points: int = 11) -> NDArray[np.float64]:
    return np.linspace(np.array(first), np.array(second), points)


def found(states: object, start: NDArray[np.float64], iterations: int = 300) -> ShortestPath:
    basis = np.eye(start.shape[1])
    return shortest_path(on(states), start, basis=basis, iterations=iterations)


def test_on_a_sphere_it_is_a_great_circle() -> None:
    first, second = [0.5, -1.0], [0.7, 1.3]
    path = found(sphere, straight(first, second))
    ends = sphere(torch.tensor([first, second], dtype=torch.float64)).numpy()
    angle = np.arccos(ends[0] @ ends[1])
    shares = np.linspace(0, 1, 11)[:, None]
    circle = np.sin((1 - shares) * angle) * ends[0] + np.sin(shares * angle) * ends[1]
    expected = circle / np.sin(angle)
    assert path.converged
    np.testing.assert_allclose(sphere(torch.tensor(path.points)).numpy(), expected, atol=3e-3)
    chord = 2 * np.sin(angle / 20)
    assert path.energy == pytest.approx(100 * chord**2, rel=1e-5)
    np.testing.assert_array_equal(path.points[[0, -1]], [first, second])


def test_in_flat_space_it_is_straight() -> None:
    matrix = torch.tensor([[2.0, 0.3], [-0.4, 0.5], [1.0, 1.0]], dtype=torch.float64)
    first, second = [0.0, 1.0], [2.0, -1.0]
    line = straight(first, second)
    bent = line + np.sin(np.pi * np.linspace(0, 1, 11))[:, None] * [0.3, -2.0]
    path = found(lambda thetas: thetas @ matrix.T, bent)
    np.testing.assert_allclose(path.points, line, atol=3e-3)
    length = np.linalg.norm(matrix.numpy() @ [2.0, -2.0])
    assert path.energy == pytest.approx(length**2, rel=1e-5)


def test_dimensions_of_very_different_size() -> None:
    # The second dimension is small and acts as strongly as the first, as private ones do.
    stretch = torch.tensor([1.0, 100.0], dtype=torch.float64)
    start = straight([0.5, -0.010], [0.7, 0.013])
    path = shortest_path(
        on(lambda thetas: sphere(thetas * stretch)),
        start,
        basis=np.diag([1.0, 0.01]),
        iterations=300,
    )
    even = found(sphere, straight([0.5, -1.0], [0.7, 1.3]))
    assert path.iterations == even.iterations
    np.testing.assert_allclose(path.points * stretch.numpy(), even.points, atol=1e-6)


def test_steps_are_of_one_length_in_the_states() -> None:
    path = found(lambda thetas: thetas**3, straight([0.0], [2.0]))
    np.testing.assert_allclose(path.points[1:, 0] ** 3, np.arange(1, 11) * 0.8, rtol=1e-2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), points=st.integers(3, 8), dimensions=st.integers(1, 4))
def test_energy_never_rises_and_is_at_least_the_square_of_the_length(
    seed: int, points: int, dimensions: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = torch.tensor(rng.normal(size=(dimensions, 5)))
    start = rng.normal(size=(points, dimensions))

    def states(thetas: Tensor) -> Tensor:
        return torch.tanh(thetas @ weight)

    path = found(states, start, iterations=15)
    chords = np.linalg.norm(np.diff(np.tanh(path.points @ weight.numpy()), axis=0), axis=1)
    assert path.energy == pytest.approx((points - 1) * (chords**2).sum(), rel=1e-9)
    assert chords.sum() ** 2 <= path.energy * (1 + 1e-9)
    before = np.diff(np.tanh(start @ weight.numpy()), axis=0)
    assert path.energy <= (points - 1) * (before**2).sum() * (1 + 1e-12)

    def value(flat: NDArray[np.float64]) -> float:
        return path_energy(states, flat.reshape(start.shape))[0]

    def slope(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        return path_energy(states, flat.reshape(start.shape))[1].ravel()

    flat = start.ravel()
    assert check_grad(value, slope, flat) < 1e-5 * (1 + np.linalg.norm(slope(flat)))


def test_what_does_not_come_to_rest_says_so() -> None:
    seen: list[int] = []
    path = shortest_path(
        on(sphere),
        straight([0.5, -1.0], [0.7, 1.3]),
        basis=np.eye(2),
        iterations=2,
        on_iteration=lambda: seen.append(1),
    )
    assert not path.converged
    assert path.iterations == len(seen) == 2
    assert "LIMIT" in path.message


def test_ends_that_do_the_same() -> None:
    path = found(lambda thetas: thetas * 0, straight([0.0], [1.0]))
    assert path.energy == 0
    assert path.converged
    np.testing.assert_array_equal(path.points, straight([0.0], [1.0]))


def test_states_that_are_not_finite() -> None:
    with pytest.raises(InvalidInput, match="states along the path are not finite"):
        found(lambda thetas: thetas.log(), straight([0.0], [1.0]))
