from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import ortho_group

import dynamo_plugin as dp
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._conjugation import best_residuals
from tests.dynamo_plugin.metrics.configurations import networks

SEEDS = st.integers(0, 2**32 - 1)


def operator(trials: Any, delays: int, interval: int, rank: int, ridge: float) -> Any:
    """Return the map of Ostrow et al. 2023, step by step."""
    reach = (delays - 1) * interval
    hankel = [
        [
            np.concatenate([x[t - lag * interval] for lag in range(delays)])
            for t in range(reach, len(x))
        ]
        for x in trials
    ]
    counts = [len(rows) for rows in hankel]
    left, _, _ = np.linalg.svd(np.concatenate(hankel), full_matrices=False)
    parts = np.split(left[:, :rank], np.cumsum(counts)[:-1])
    before = np.concatenate([part[:-1] for part in parts])
    after = np.concatenate([part[1:] for part in parts])
    gram = before.T @ before + ridge * np.eye(rank)
    return (np.linalg.inv(gram) @ before.T @ after).T


def unit(matrix: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(matrix / np.linalg.norm(matrix))


def in_the_plane(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return min ‖a - C b Cᵀ‖ over rotations and reflections of the plane, on a fine grid."""
    angles = np.linspace(0, 2 * np.pi, 40_001)
    turns = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], -1)
    turns = turns.reshape(-1, 2, 2)
    both = np.concatenate([turns, turns @ np.diag([1.0, -1.0])])
    return float(np.linalg.norm(a - both @ b @ both.swapaxes(1, 2), axis=(1, 2)).min())


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 2), st.sampled_from([0.0, 0.1]))
def test_maps_and_distances_in_the_plane(
    seed: int, delays: int, interval: int, ridge: float
) -> None:
    x, y = networks(dp.metric("dsa"), seed)
    options: dict[str, Any] = {"delays": delays, "interval": interval, "rank": 2, "ridge": ridge}
    a, b = (operator(z, delays, interval, 2, ridge) for z in (x, y))
    angle = np.arccos(1 - in_the_plane(unit(a), unit(b)) ** 2 / 2)
    found = dp.metric("dsa", **options)(x, y)
    assert angle - 1e-5 < found < angle + 1e-9  # between the places of the grid, never above
    found = dp.metric("dsa", measure="euclidean", **options)(x, y)
    distance = in_the_plane(a, b)
    assert distance - 1e-5 < found < distance + 1e-9


@settings(max_examples=8, deadline=None)
@given(SEEDS)
def test_eigenvalues_are_matched(seed: int) -> None:
    from itertools import permutations

    x, y = networks(dp.metric("dsa"), seed)
    a, b = (np.linalg.eigvals(operator(z, 1, 1, 4, 0.0)) for z in (x, y))
    costs = [np.mean(np.abs(a - b[list(order)]) ** 2) for order in permutations(range(4))]
    found = dp.metric("dsa", measure="wasserstein")(x, y)
    assert found == pytest.approx(np.sqrt(min(costs)), abs=1e-8)


def test_different_numbers_of_eigenvalues() -> None:
    # one rotation against two that are twice: the masses of each of the two go to its like
    time = np.arange(60) * 0.4
    slow = np.stack([np.cos(time), np.sin(time)], -1)
    fast = np.stack([np.cos(2 * time), np.sin(2 * time)], -1)
    metric = dp.metric("dsa", measure="wasserstein")
    apart = abs(np.exp(0.4j) - np.exp(0.8j))
    assert metric([slow], [fast]) == pytest.approx(apart, abs=1e-6)
    both = np.concatenate([slow, fast], axis=1)
    assert metric([slow], [both]) == pytest.approx(np.sqrt(apart**2 / 2), abs=1e-6)


@pytest.mark.parametrize("size", [3, 8, 24])
def test_another_basis_is_found(size: int) -> None:
    rng = np.random.default_rng(size)
    maps = np.stack([unit(rng.normal(size=(size, size))) for _ in range(3)])
    turn = ortho_group.rvs(size, random_state=size)
    found = best_residuals(maps, turn @ maps @ turn.T, starts=2, seed=0)
    assert found == pytest.approx(np.zeros(3), abs=1e-6)


def test_the_search_is_no_worse_than_another_one() -> None:
    """Against BFGS on the exponential of a skew matrix, from eight starts."""
    from scipy.linalg import expm

    rng = np.random.default_rng(0)
    size = 4
    above = np.triu_indices(size, 1)
    for _ in range(3):
        a, b = (
            unit(ortho_group.rvs(size, random_state=rng) + rng.normal(size=(size, size)))
            for _ in range(2)
        )

        def distance(angles: NDArray[Any], start: NDArray[Any], a: Any = a, b: Any = b) -> float:
            skew = np.zeros((size, size))
            skew[above] = angles
            turn = expm(skew - skew.T) @ start
            return float(np.sum((a - turn @ b @ turn.T) ** 2))

        starts = [ortho_group.rvs(size, random_state=rng) for _ in range(4)]
        starts += [start @ np.diag([1, 1, 1, -1]) for start in starts]
        peers = [minimize(distance, np.zeros(len(above[0])), args=(start,)).fun for start in starts]
        (found,) = best_residuals(a[None], b[None], starts=12, seed=0)
        assert found <= np.sqrt(min(peers)) + 1e-6


def test_what_moves_alike_is_near_whatever_its_states_are() -> None:
    time = np.arange(80)
    rng = np.random.default_rng(0)

    def turning(speed: float, units: int) -> NDArray[Any]:
        states = []
        for phase in 2 * np.pi * np.arange(5) / 5:
            plane = np.stack([np.cos(speed * time + phase), np.sin(speed * time + phase)], -1)
            states.append(plane)
        basis = np.linalg.qr(rng.normal(size=(units, 2)))[0]
        return np.asarray(np.stack(states) @ basis.T)

    metric = dp.metric("dsa", rank=2)
    # the map is a rotation by `speed`; the other way round is its mirror image
    assert metric(turning(0.3, 5), turning(0.3, 9)) == pytest.approx(0, abs=1e-6)
    assert metric(turning(0.3, 5), turning(-0.3, 9)) == pytest.approx(0, abs=1e-6)
    assert metric(turning(0.3, 5), turning(0.7, 9)) == pytest.approx(0.4, abs=1e-6)


def test_ragged_trials_are_as_trials_of_one_length() -> None:
    x, y = networks(dp.metric("dsa"), 0)
    metric = dp.metric("dsa", delays=2)
    assert metric(list(x), list(y)) == metric(x, y)
    uneven = [z[: 20 - place] for place, z in enumerate(x)]
    # two inputs drive four units, so that two steps have six directions
    expected = operator(uneven, 2, 1, 6, 0.0)
    prepared = metric.prepare([*uneven, x[0][:2]])  # too short to count
    assert np.linalg.norm(prepared.operator) == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert np.sort_complex(prepared.eigenvalues) == pytest.approx(
        np.sort_complex(np.linalg.eigvals(expected)), abs=1e-8
    )


def test_seeds_decide() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 40, 24))
    found = [dp.metric("dsa", seed=seed, starts=4)(x, y) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len(set(found)) > 1


@pytest.mark.parametrize(
    ("states", "options", "match"),
    [
        (np.ones((2, 3, 4)), {"delays": 4}, "at least 5 steps"),
        (np.zeros((2, 9, 4)), {}, "all are zero"),
        (np.random.default_rng(0).normal(size=(1, 4, 6)), {}, "more steps than directions"),
        ([np.ones((5, 2)), np.ones((5, 3))], {}, "equally many units"),
        ([], {}, "equally many units"),
    ],
)
def test_what_has_no_dynamics(states: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        dp.metric("dsa", **options).prepare(states)


@pytest.mark.parametrize(
    "options",
    [{"measure": "cosine"}, {"delays": 0}, {"rank": 0}, {"ridge": -1}, {"seed": -1}, {"starts": 0}],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        dp.metric("dsa", **options)
