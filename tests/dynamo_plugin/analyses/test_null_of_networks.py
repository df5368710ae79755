"""Nulls that refit other populations: shuffled time, untrained networks, twins."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.analyses import _refits, fidelity, null
from dynamo_plugin.analyses._reset_networks import reinitialised, untrained_population
from dynamo_plugin.analyses._twins import twin_figures
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.store import shuffle_time
from tests.dynamo_plugin.analyses.conftest import make_models

Place = Callable[..., ModelEmbedding]


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch, place: Place) -> Callable[[int], None]:
    """Refits whose thetas are drawn, not fitted; the argument seeds them."""
    state = {"rng": np.random.default_rng(0)}

    def refit(embedding: ModelEmbedding, population: object, **_: object) -> ModelEmbedding:
        drawn = place(state["rng"].normal(size=embedding.thetas.shape))
        return dataclasses.replace(drawn, ids=embedding.ids, metadata=embedding.metadata)

    monkeypatch.setattr(_refits, "refit_like", refit)

    def reseed(seed: int) -> None:
        state["rng"] = np.random.default_rng(seed)

    return reseed


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_p_values_of_refits_are_calibrated(
    embedding: ModelEmbedding,
    stubbed: Callable[[int], None],
    alternative: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spread(_: str, given: ModelEmbedding) -> SimpleNamespace:
        value = float(given.thetas.double().std())
        return SimpleNamespace(summary=lambda: {"theta": {"spread": value}})

    monkeypatch.setattr(_refits, "analyse", spread)
    name = "theta.spread"
    p_values = []
    for seed in range(200):
        thetas = np.random.default_rng([seed, 1]).normal(size=embedding.thetas.shape)
        given = dataclasses.replace(embedding, thetas=torch.tensor(thetas, dtype=torch.float32))
        stubbed(seed)
        result = null(
            given,
            kind="shuffled_time",
            analysis="components",
            statistics=[name],
            alternative=alternative,
            progress=False,
        )
        (row,) = result.table.to_dict(orient="records")
        drawn, value = result.null[name].to_numpy(), row["value"]
        centre = np.mean([*drawn, value])
        extreme = {
            "greater": drawn >= value,
            "less": drawn <= value,
            "two-sided": np.abs(drawn - centre) >= abs(value - centre),
        }[alternative]
        assert len(drawn) == 19
        assert row["p_value"] == pytest.approx((1 + extreme.sum()) / 20)
        assert row["effect_size"] == pytest.approx((value - drawn.mean()) / drawn.std())
        p_values.append(row["p_value"])
    # 5 % of 200 are 10, with a standard deviation of 3.1.
    assert 2 <= np.sum(np.array(p_values) <= 0.05) <= 19
    uniform = np.array(p_values) - np.random.default_rng(0).uniform(0, 1 / 20, 200)
    assert kstest(uniform, "uniform").pvalue > 1e-3


@pytest.mark.usefixtures("stubbed")
def test_few_refits_are_said_to_be_few(embedding: ModelEmbedding) -> None:
    options: dict[str, Any] = {"kind": "shuffled_time", "labels": "architecture", "progress": False}
    few = null(embedding, refits=4, **options)
    assert few.smallest_p == pytest.approx(1 / 5)
    assert few.note is not None
    assert "4 refits are too few for a p_value below 0.05" in few.note
    assert few.labels_name == "architecture"
    assert {"label_silhouette", "neighbour_accuracy"} <= set(few.table["statistic"])
    many = null(embedding, refits=19, **options)
    assert many.note is not None
    assert "p_adjusted" in many.note
    one = null(embedding, refits=19, statistics=["label_silhouette"], **options)
    assert one.note is None
    assert one.smallest_p == pytest.approx(0.05)
    assert few.omitted["models"] == "the same for every refit"
    json.dumps(many.summary(), allow_nan=False)


def test_a_null_that_does_not_vary_has_no_effect_size(
    embedding: ModelEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refit(given: ModelEmbedding, *_: object, **__: object) -> ModelEmbedding:
        return dataclasses.replace(given, thetas=given.thetas * 0 + torch.eye(6)[:, :4])

    monkeypatch.setattr(_refits, "refit_like", refit)
    result = null(embedding, kind="shuffled_time", analysis="components", refits=3, progress=False)
    assert (result.table["null_std"] == 0).all()
    assert result.table["effect_size"].isna().all()
    assert set(result.table["p_value"]) <= {0.25, 1.0}
    result.plot()
    json.dumps(result.summary(), allow_nan=False)


def test_hidden_r2_does_not_survive_shuffled_time(embedding: ModelEmbedding) -> None:
    result = null(
        embedding,
        kind="shuffled_time",
        analysis="fidelity",
        statistics=["hidden_r2.mean"],
        refits=2,
        device="cpu",
        progress=False,
    )
    (row,) = result.table.to_dict(orient="records")
    assert row["value"] == pytest.approx(fidelity(embedding).table["hidden_r2"].mean())
    assert result.null["hidden_r2.mean"].max() < row["value"]
    assert row["p_value"] == pytest.approx(1 / 3)
    config = dataclasses.asdict(embedding.config) | {"seed": embedding.config.seed + 2}
    view = shuffle_time(embedding.population, seed=1)
    again = dp.fit(view, device="cpu", progress=False, seeds=None, **config)
    expected = fidelity(again).table["hidden_r2"].mean()
    assert result.null["hidden_r2.mean"][1] == pytest.approx(expected)


def test_untrained_networks_are_reset_copies(embedding: ModelEmbedding) -> None:
    models = make_models(3, per_step=False)
    before = copy.deepcopy({name: model.state_dict() for name, model in models.items()})
    state = torch.get_rng_state()
    first, same, other = (
        untrained_population(embedding, models, None, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, model in models.items():
        torch.testing.assert_close(model.state_dict(), before[name], rtol=0, atol=0)
        np.testing.assert_array_equal(first.states(name), same.states(name))
        assert not np.allclose(first.states(name), other.states(name))
        assert not np.allclose(first.states(name), embedding.population.states(name))
    assert first.metadata.equals(embedding.metadata)
    made = {
        name: (lambda seed, n=name: reinitialised(models[n], seed=seed, name=n)) for name in models
    }
    given = untrained_population(embedding, None, made, seed=0)
    np.testing.assert_array_equal(given.states("gru-0"), first.states("gru-0"))
    result = null(
        embedding,
        kind="untrained",
        models=models,
        analysis="fidelity",
        refits=1,
        device="cpu",
        progress=False,
    )
    assert "hidden_r2.mean" in set(result.table["statistic"])


class Own(nn.Module):
    """Has a parameter of its own, which nothing resets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        read: Tensor = self.norm(self.inner(inputs)) * self.gain
        return read


def test_what_no_reset_reaches_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"'gain' of the network itself \(Own\) in model 'own'"):
        reinitialised(Own(), seed=0, name="own")
    with pytest.raises(InvalidInput, match=r"'gain' of '1' \(Own\)"):
        reinitialised(nn.Sequential(nn.Linear(2, 2), Own()), seed=0, name="own")
    layer = nn.TransformerEncoderLayer(8, 2)
    fresh = reinitialised(layer, seed=0, name="layer")
    assert all(bool(p.isfinite().all()) for p in fresh.parameters())
    torch.manual_seed(7)
    expected = nn.Linear(3, 2)
    found = reinitialised(nn.Linear(3, 2), seed=7, name="linear")
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_twins_are_compared_as_by_loops(place: Place) -> None:
    rng = np.random.default_rng(0)
    count, refits = 5, []
    for _ in range(2):
        networks = rng.normal(size=(count, 3))
        twins = networks + 0.6 * rng.normal(size=(count, 3))
        refits.append(place(np.concatenate([networks, twins])))
    figures = twin_figures(refits, distance="theta", permutations=3000, seed=0)
    shares, ratios, rows = [], [], iter(figures.twins.to_dict(orient="records"))
    for embedding in refits:
        thetas = embedding.thetas.double().numpy()
        found, twin_distances, between = [], [], []
        for one in range(count):
            own = np.linalg.norm(thetas[one] - thetas[one + count])
            others = [
                (np.linalg.norm(thetas[one] - thetas[other]), other)
                for other in range(2 * count)
                if other not in (one, one + count)
            ]
            between += [np.linalg.norm(thetas[one] - thetas[o]) for o in range(one)]
            row = next(rows)
            assert row["twin_distance"] == pytest.approx(own)
            assert row["nearest_distance"] == pytest.approx(min(others)[0])
            assert row["nearest"] == embedding.ids[min(others)[1]]
            assert row["twin_found"] == (own < min(others)[0])
            found.append(own < min(others)[0])
            twin_distances.append(own)
        shares.append(np.mean(found))
        ratios.append(np.median(twin_distances) / np.median(between))
    np.testing.assert_allclose(figures.observed, [np.mean(shares), np.mean(ratios)])
    # A random partner is one of the twins, the own one with a chance of 1 in 5.
    assert figures.null[0].mean() <= 1 / count + 0.05
    floor = figures.noise_floor.set_index("quantile")
    assert floor["relative_distance"].is_monotonic_increasing
    with pytest.raises(InvalidInput, match="thetas of refit 0 are equal"):
        twin_figures([place(np.ones((4, 2)))], distance="theta", permutations=9, seed=0)


def test_p_values_of_twins_are_calibrated(place: Place) -> None:
    p_values = []
    for seed in range(200):
        # Twins that are no nearer than any other network.
        thetas = np.random.default_rng(seed).normal(size=(20, 2))
        figures = twin_figures([place(thetas)], distance="theta", permutations=99, seed=seed)
        p_values.append((1 + np.sum(figures.null[1] <= figures.observed[1])) / 100)
    assert 2 <= np.sum(np.array(p_values) <= 0.05) <= 19
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def test_the_null_of_twins(embedding: ModelEmbedding) -> None:
    result = null(
        embedding, kind="twins", permutations=199, device="cpu", progress=False, distance="theta"
    )
    assert set(result.table["statistic"]) <= {"twin_found", "distance_ratio"}
    found = result.table.set_index("statistic").loc["distance_ratio"]
    drawn = result.null["distance_ratio"]
    assert found["p_value"] == pytest.approx((1 + (drawn <= found["value"] + 1e-12).sum()) / 200)
    assert result.twins is not None
    assert result.twins["model"].tolist() == list(embedding.ids)
    assert result.noise_floor is not None
    assert result.alternative is None
    assert result.summary()["kind"] == "twins"
    json.dumps(result.summary(), allow_nan=False)
    assert result.plot().data


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "twin"}, InvalidInput, "kind must be one of labels, shuffled_time"),
        ({}, InvalidInput, "needs labels"),
        ({"kind": "twins", "refits": 0}, InvalidInput, "refits must be at least 1"),
        ({"kind": "twins", "seed": -1}, InvalidInput, "seed at least 0"),
        ({"kind": "twins", "labels": "architecture"}, InvalidInput, "no analysis, got 'labels'"),
        ({"kind": "twins", "method": "kmeans"}, InvalidInput, "no analysis, got 'method'"),
        ({"kind": "twins", "distance": "cosine"}, InvalidInput, "distance must be 'theta'"),
        ({"kind": "twins", "twins_by": "shift"}, InvalidInput, "'permutation' or 'rotation'"),
        ({"kind": "twins", "models": {}}, InvalidInput, "say kind='untrained'"),
        ({"kind": "untrained"}, InvalidInput, "models lacks 'gru-0'"),
        ({"kind": "untrained", "untrained": {"gru": None}}, UnknownName, "untrained has 'gru'"),
        (
            {
                "kind": "untrained",
                "untrained": {"gru-0": lambda seed: seed},
                "models": make_models(3, per_step=False),
            },
            InvalidInput,
            "that of 'gru-0' is of type int",
        ),
        (
            {"kind": "shuffled_time", "analysis": "fidelity", "statistics": ["hidden"]},
            UnknownName,
            "no statistic 'hidden'",
        ),
    ],
)
def test_bad_options_say_what_is_wrong(
    embedding: ModelEmbedding, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        null(embedding, progress=False, **options)
