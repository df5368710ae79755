from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dynamo_plugin as dp
from dynamo_plugin.errors import InvalidInput, PluginError, UnknownName
from dynamo_plugin.registry import get_registry, hookimpl
from tests.dynamo_plugin.metrics.configurations import (
    CONFIGURATIONS,
    Configuration,
    label,
    make,
    networks,
)

every_metric = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=label)
of_states = pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if make(c).reads == "states"], ids=label
)


@every_metric
def test_numbers_that_are_not_finite(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = networks(metric, 0)
    x.flat[3] = np.nan
    with pytest.raises(InvalidInput, match="finite"):
        metric(x, y)


@pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if make(c).reads != "trials"], ids=label
)
def test_different_numbers_of_samples(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = networks(metric, 0)
    with pytest.raises(InvalidInput, match="same"):
        metric(x, y[:-1])


@of_states
def test_too_few_samples(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = (z[:3] for z in networks(metric, 0))
    with pytest.raises(InvalidInput, match="at least 4 samples, got 3"):
        metric(x, y)


@every_metric
def test_other_shapes(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = networks(metric, 0)
    with pytest.raises(InvalidInput, match="shape"):
        metric(x[None, None], y)
    with pytest.raises(InvalidInput, match="shape"):
        metric(x.ravel() if x.ndim > 1 else x[None], y)


@of_states
def test_states_that_never_change(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = networks(metric, 0)
    with pytest.raises(InvalidInput, match=r"constant|all equal|equal, so|in all units"):
        metric(np.full_like(x, 0.1), y)


@every_metric
def test_values_that_are_no_numbers(configuration: Configuration) -> None:
    metric = make(configuration)
    x, y = networks(metric, 0)
    with pytest.raises(InvalidInput, match="real numbers"):
        metric(x.astype(complex), y)


@pytest.mark.parametrize("name", ["cca", "cca_r2", "pwcca"])
def test_correlations_need_more_samples_than_units(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 5))
    with pytest.raises(InvalidInput, match="more samples than directions"):
        dp.metric(name)(x, y)
    assert dp.metric("svcca", directions=2)(x, y) < 1


@pytest.mark.parametrize(("dissimilarity", "row"), [("correlation", 1.0), ("cosine", 0.0)])
def test_a_sample_without_a_correlation(dissimilarity: str, row: float) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 5))
    x[4] = row
    with pytest.raises(InvalidInput, match="sample 4"):
        dp.metric("rsa", dissimilarity=dissimilarity)(x, y)


def test_unbiased_alignment_of_nothing() -> None:
    # two samples apart from all others, in units of their own: only the diagonal is large
    x = np.eye(5)
    with pytest.raises(InvalidInput, match="not positive"):
        dp.metric("cka", estimator="unbiased")(x, x)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("cka", {"estimator": "unbaised"}, "Did you mean 'unbiased'"),
        ("cka", {"kernel": "poly"}, "kernel"),
        ("cka", {"kernel": "rbf", "bandwidth": 0}, "bandwidth must be a positive number"),
        ("cka", {"estimater": "biased"}, "no option 'estimater'. Did you mean 'estimator'"),
        ("procrustes", {"measure": "cosine"}, "measure"),
        ("shape", {"alpha": 1.5}, "from 0 to 1"),
        ("svcca", {"directions": 0}, "at least 1"),
        ("svcca", {"directions": 3, "variance": 0.9}, "either"),
        ("svcca", {"variance": 0.0}, "above 0"),
        ("pwcca", {"weights": "none"}, "weights"),
        ("pwcca", {"side": "left"}, "side"),
        ("rsa", {"dissimilarity": "manhattan"}, "dissimilarity"),
        ("rsa", {"comparison": "kendall"}, "comparison"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        dp.metric(name, **options)


def test_unknown_metrics_suggest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'procrustes'"):
        dp.metric("procustes")


def test_a_plugin_that_makes_no_metric() -> None:
    class Plugin:
        @hookimpl
        def dynamo_register_metrics(self, register: Any) -> None:
            register("distance", "builtins:dict")

    get_registry().register_plugin(Plugin(), name="mine")
    try:
        with pytest.raises(PluginError, match="made a dict"):
            dp.metric("distance")
    finally:
        get_registry().unregister_plugin("mine")


def test_the_wrong_way_round_is_explained() -> None:
    with pytest.raises(InvalidInput, match="transpose"):
        dp.metric("cka")(np.ones((3, 100)), np.ones((3, 100)))
