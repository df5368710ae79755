"""What metrics say about themselves is true, and what they do not say is not."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynamo_plugin.registry.interfaces import Invariance
from tests.dynamo_plugin.metrics.configurations import (
    CONFIGURATIONS,
    Configuration,
    label,
    make,
    networks,
)

INVARIANCES: tuple[Invariance, ...] = get_args(Invariance)
SEEDS = st.integers(0, 2**32 - 1)
CLOSE = 1e-7

every_metric = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=label)


def changed(x: NDArray[np.float64], invariance: Invariance, seed: int) -> NDArray[np.float64]:
    """Return states after a transformation of their units."""
    rng = np.random.default_rng([seed, 1])
    units = x.shape[-1]
    if invariance == "permutation":
        # never the order there was
        return x[..., np.roll(rng.permutation(units), 1)] if units > 1 else x
    if invariance == "scaling":
        return x * float(rng.uniform(0.1, 10))
    if invariance == "translation":
        return np.asarray(x + rng.normal(size=units) * np.abs(x).max())
    turn, _ = np.linalg.qr(rng.normal(size=(units, units)))
    if invariance == "orthogonal":
        return np.asarray(x @ turn)
    other, _ = np.linalg.qr(rng.normal(size=(units, units)))
    return np.asarray(x @ turn @ np.diag(np.geomspace(0.3, 3, units)) @ other)


CLAIMS = [
    (configuration, invariance)
    for configuration in CONFIGURATIONS
    for invariance in INVARIANCES
    if invariance in make(configuration).invariances
]
NO_CLAIMS = [
    (configuration, invariance)
    for configuration in CONFIGURATIONS
    for invariance in INVARIANCES
    if invariance not in make(configuration).invariances
]


def of_pair(pair: object) -> str:
    return label(pair) if isinstance(pair, tuple) else str(pair)


@pytest.mark.parametrize(("configuration", "invariance"), CLAIMS, ids=of_pair)
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_claimed_invariances_hold(
    configuration: Configuration, invariance: Invariance, seed: int
) -> None:
    metric = make(configuration)
    x, y = networks(metric, seed)
    before = metric(x, y)
    assert metric(changed(x, invariance, seed), y) == pytest.approx(before, abs=CLOSE)
    assert metric(x, changed(y, invariance, seed)) == pytest.approx(before, abs=CLOSE)


@pytest.mark.parametrize(("configuration", "invariance"), NO_CLAIMS, ids=of_pair)
def test_other_changes_are_seen(configuration: Configuration, invariance: Invariance) -> None:
    metric = make(configuration)
    differences = []
    for seed in range(5):
        x, y = networks(metric, seed)
        before = metric(x, y)
        differences.append(abs(metric(changed(x, invariance, seed), y) - before))
        differences.append(abs(metric(x, changed(y, invariance, seed)) - before))
    assert max(differences) > 1e-4


@every_metric
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_order_matters_only_where_it_is_said_to(configuration: Configuration, seed: int) -> None:
    metric = make(configuration)
    x, y = networks(metric, seed)
    if metric.symmetric:
        assert metric(x, y) == pytest.approx(metric(y, x), abs=1e-9)
    else:
        assert abs(metric(x, y) - metric(y, x)) > 1e-9


@every_metric
def test_a_network_is_like_itself_and_less_like_others(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = networks(metric, 0)
    own, other = metric(x, x), metric(x, y)
    if metric.value_of_itself is not None:
        assert own == pytest.approx(metric.value_of_itself, abs=CLOSE)
    assert own > other + 1e-3 if metric.kind == "similarity" else own < other - 1e-3
    values = np.array([own, other])
    apart = metric.to_distances(values)
    assert apart[0] < apart[1]
    assert apart.min() >= 0


@pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if make(c).is_metric], ids=label
)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, nearness=st.floats(0, 1))
def test_the_triangle_inequality(configuration: Configuration, seed: int, nearness: float) -> None:
    metric = make(configuration)
    x, y, z = networks(metric, seed, count=3)
    y = nearness * x + (1 - nearness) * y  # also near to each other, where it is tight
    z = nearness * y + (1 - nearness) * z
    xy, yz, xz = (
        float(metric.to_distances(np.array([metric(a, b)]))[0]) for a, b in ((x, y), (y, z), (x, z))
    )
    assert xz <= xy + yz + 1e-9
    assert xy <= xz + yz + 1e-9
    assert yz <= xy + xz + 1e-9


@every_metric
def test_inputs_stay_as_they_are(configuration: Configuration) -> None:
    metric = make(configuration)
    given = networks(metric, 0)
    for x in given:
        x.setflags(write=False)
    before = [x.copy() for x in given]
    prepared = [metric.prepare(x) for x in given]
    metric.compare(*prepared)
    metric.compare_many(prepared)
    for x, kept in zip(given, before, strict=True):
        assert np.array_equal(x, kept)
    assert metric.compare(*prepared) == metric(*given)


@every_metric
def test_many_at_once_are_the_pairs(configuration: Configuration) -> None:
    metric = make(configuration)
    given = networks(metric, 3, count=5)
    if metric.reads == "states":  # of different widths
        given = [x[:, : 4 + place % 3] for place, x in enumerate(given)]
    prepared = [metric.prepare(x) for x in given]
    alone = np.array([[metric(x, y) for y in given] for x in given])
    assert metric.compare_many(prepared) == pytest.approx(alone, abs=CLOSE)
    assert metric.compare_many(prepared[:2], prepared[2:]) == pytest.approx(alone[:2, 2:], abs=1e-9)


@every_metric
def test_float32_agrees_with_float64(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = (z.astype(np.float32) for z in networks(metric, 5))
    wide = metric(x.astype(np.float64), y.astype(np.float64))
    assert metric(x, y) == pytest.approx(wide, abs=1e-5)


@every_metric
def test_tensors_are_taken(configuration: Configuration) -> None:
    import torch

    metric = make(configuration)
    x, y = networks(metric, 6)
    found = metric(torch.from_numpy(x).requires_grad_(), torch.from_numpy(y))
    assert found == metric(x, y)


def _reference(metric: Any) -> str:
    return str(metric.reference)


@every_metric
def test_the_source_is_named(configuration: Configuration) -> None:
    reference = _reference(make(configuration))
    assert "doi:" in reference or "arXiv:" in reference
