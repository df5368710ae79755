"""Predictions, neighbours and answers, against scikit-learn and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, softmax
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

import dynamo_plugin as dp
from dynamo_plugin.errors import InvalidInput

SEEDS = st.integers(0, 2**32 - 1)
several = settings(max_examples=8, deadline=None)


def states(seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(37, 4))
    x = common @ rng.normal(size=(4, 6)) + rng.normal(size=(37, 6)) + 3
    return x * rng.uniform(0.1, 10), common @ rng.normal(size=(4, 3)) + rng.normal(size=(37, 3))


def predicted(x: NDArray[Any], y: NDArray[Any], penalty: float, parts: list[Any]) -> float:
    """Run the regressions, with scikit-learn."""
    error = total = 0.0
    for test in parts:
        train = np.setdiff1d(np.arange(len(x)), test)
        ridge = Ridge(alpha=penalty * x[train].var(0).sum() * len(train) / x.shape[1])
        guess = ridge.fit(x[train], y[train]).predict(x[test])
        error += np.square(y[test] - guess.reshape(y[test].shape)).sum()
        total += np.square(y[test] - y[train].mean(0)).sum()
    return float(1 - error / total)


@several
@given(SEEDS, st.sampled_from([1e-6, 1e-2, 1.0]), st.sampled_from([2, 5]))
def test_predictivity(seed: int, penalty: float, folds: int) -> None:
    x, y = states(seed)
    order = np.random.default_rng(3).permutation(len(x))
    for chosen, places in ((3, order), (None, np.arange(len(x)))):
        parts = np.array_split(places, folds)
        options: dict[str, Any] = {"penalty": penalty, "folds": folds, "seed": chosen}
        forward, backward = (predicted(a, b, penalty, parts) for a, b in ((x, y), (y, x)))
        sides = {"forward": forward, "backward": backward, "both": (forward + backward) / 2}
        for direction, expected in sides.items():
            found = dp.metric("predictivity", direction=direction, **options)(x, y)
            assert found == pytest.approx(expected, abs=1e-9)


def test_predictions_of_itself_and_of_noise() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 8))
    metric = dp.metric("predictivity")
    prepared = [metric.prepare(z) for z in (x, y)]
    values = metric.compare_many(prepared)
    assert values[0, 0] == pytest.approx(predicted_of_itself(x), abs=1e-9)
    assert values[0, 1] < 0


def predicted_of_itself(x: NDArray[Any]) -> float:
    parts = np.array_split(np.random.default_rng(0).permutation(len(x)), 5)
    return predicted(x, x, 1e-3, parts)


def test_seeds_of_folds_decide() -> None:
    x, y = states(0)
    found = [dp.metric("predictivity", seed=seed)(x, y) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@several
@given(SEEDS, st.integers(1, 12))
def test_neighbours(seed: int, count: int) -> None:
    x, y = states(seed)
    for nearness in ("euclidean", "cosine"):
        sets = []
        for z in (x, y):
            search = NearestNeighbors(n_neighbors=count, metric=nearness).fit(z)
            sets.append([set(row) for row in search.kneighbors(return_distance=False).tolist()])
        expected = np.mean([len(a & b) / len(a | b) for a, b in zip(*sets, strict=True)])
        metric = dp.metric("neighbours", neighbours=count, nearness=nearness)
        assert metric(x, y) == pytest.approx(expected, abs=1e-12)


def test_equally_near_neighbours_are_the_first() -> None:
    # on a circle, both sides are equally near; the lower number counts
    angles = 2 * np.pi * np.arange(8) / 8
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    prepared = dp.metric("neighbours", neighbours=1).prepare(ring)
    assert (prepared[:, 0] % 8).tolist() == [1, 0, 1, 2, 3, 4, 5, 0]


def test_neighbours_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = states(1)
    whole = dp.metric("neighbours")(x, y)
    monkeypatch.setattr("dynamo_plugin.metrics.neighbours._PIECE", 100)
    assert dp.metric("neighbours")(x, y) == whole


@several
@given(SEEDS, st.integers(1, 4))
def test_jensen_shannon(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 9, classes))
    if classes == 1:
        p, q = (np.column_stack([1 - expit(z), expit(z)]) for z in (x, y))
    else:
        p, q = (softmax(z, axis=1) for z in (x, y))
    apart = jensenshannon(p, q, axis=1)
    assert dp.metric("jensen_shannon")(x, y) == pytest.approx(apart.mean(), abs=1e-9)
    found = dp.metric("jensen_shannon", measure="divergence")(x, y)
    assert found == pytest.approx(np.square(apart).mean(), abs=1e-12)
    given = (p[:, 1:], q[:, 1:]) if classes == 1 else (p, q)
    found = dp.metric("jensen_shannon", outputs="probabilities")(*given)
    assert found == pytest.approx(apart.mean(), abs=1e-9)


def test_disagreement_of_yes_and_no() -> None:
    x, y = [[1.0], [-1.0], [0.5], [2.0]], [[3.0], [1.0], [-0.5], [0.1]]
    assert dp.metric("disagreement")(x, y) == 0.5


def test_outputs_that_are_no_probabilities() -> None:
    outputs = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(InvalidInput, match="outputs='logits'"):
        dp.metric("jensen_shannon", outputs="probabilities")(outputs, outputs)


@pytest.mark.parametrize("name", ["disagreement", "jensen_shannon"])
def test_networks_of_other_tasks(name: str) -> None:
    x, y = np.ones((5, 3)), np.ones((5, 4))
    with pytest.raises(InvalidInput, match="same classes"):
        dp.metric(name)(x, y)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("predictivity", {"direction": "left"}, "direction"),
        ("predictivity", {"penalty": 0}, "penalty"),
        ("predictivity", {"folds": 1}, "folds"),
        ("predictivity", {"seed": 0.5}, "seed"),
        ("neighbours", {"neighbours": 0}, "neighbours"),
        ("neighbours", {"nearness": "manhattan"}, "nearness"),
        ("jensen_shannon", {"measure": "square"}, "measure"),
        ("jensen_shannon", {"outputs": "scores"}, "outputs"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        dp.metric(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("predictivity", {}, "at least 10 samples for 5 folds, got 8"),
        ("neighbours", {"neighbours": 7}, "at least 9 samples"),
    ],
)
def test_too_few_samples_for_the_options(name: str, options: dict[str, Any], match: str) -> None:
    x = np.random.default_rng(0).normal(size=(8, 2))
    with pytest.raises(InvalidInput, match=match):
        dp.metric(name, **options)(x, x)


def test_a_sample_without_a_cosine() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    x[7] = 0
    with pytest.raises(InvalidInput, match="sample 7"):
        dp.metric("neighbours", nearness="cosine")(x, x)
