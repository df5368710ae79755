"""New networks in a frozen meta-model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest, ttest_1samp
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

import dynamo_plugin as dp
from dynamo_plugin.analyses import fidelity, novelty
from dynamo_plugin.analyses._conformal import (
    adjusted_for_each,
    conformal_p_values,
    mean_distances,
)
from dynamo_plugin.analyses.novelty import NoveltyResult
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import DuplicateName, InvalidInput, UnknownName
from dynamo_plugin.store import Population, select_models

SAMPLES, TIME, INPUTS, UNITS, MEMBERS = 40, 10, 2, 5, 12
FAST: dict[str, Any] = {"device": "cpu", "progress": False}
QUICK: dict[str, Any] = FAST | {"steps": 60}


def _stored(write: Callable[..., Population], **options: Any) -> Population:
    """Networks that are one GRU, disturbed a little, and two that are noise without memory."""
    inputs = torch.randn(SAMPLES, TIME, INPUTS, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    common, readout = nn.GRU(INPUTS, UNITS, batch_first=True), nn.Linear(UNITS, 2)
    states, outputs = {}, {}
    for index in range(MEMBERS + 4):
        generator = torch.Generator().manual_seed(index)
        network = nn.GRU(INPUTS, UNITS, batch_first=True)
        for mine, shared in zip(network.parameters(), common.parameters(), strict=True):
            mine.data = 2 * shared.data + 0.15 * torch.randn(shared.shape, generator=generator)
        hidden = network(inputs)[0].detach()
        if index >= MEMBERS + 2:
            hidden = torch.randn(hidden.shape, generator=generator)
        name = f"odd-{index}" if index >= MEMBERS + 2 else f"net-{index}"
        states[name] = hidden.flatten(0, 1).numpy()
        outputs[name] = readout(hidden).detach().flatten(0, 1).numpy()
    kinds = {name: {"kind": "ab"[place % 2]} for place, name in enumerate(states)}
    return write(
        states, outputs, inputs.flatten(0, 1).numpy(), [TIME] * SAMPLES, metadata=kinds, **options
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("novelty") / "all.zarr"


@pytest.fixture(scope="module")
def everything(write_population: Callable[..., Population], place: Path) -> Population:
    return _stored(write_population, store=str(place))


@pytest.fixture(scope="module")
def members(everything: Population) -> ModelEmbedding:
    fitted: ModelEmbedding = dp.fit(
        select_models(everything, everything.ids[:MEMBERS]),
        steps=40,
        embedding_dim=4,
        family_options={"units": 10},
        **FAST,
    )
    return fitted


@pytest.fixture(scope="module")
def cheap(members: ModelEmbedding, everything: Population) -> NoveltyResult:
    return novelty(
        members, population=everything, labels="kind", neighbours=3, calibration="members", **QUICK
    )


def test_new_networks_are_where_insertion_puts_them(
    members: ModelEmbedding, everything: Population, cheap: NoveltyResult
) -> None:
    joined = members.insert(everything, **QUICK)
    new = joined.thetas[MEMBERS:].double().numpy()
    old = members.thetas.double().numpy()
    np.testing.assert_array_equal(cheap.thetas.to_numpy(), new)
    found = NearestNeighbors(n_neighbors=3).fit(old)
    distances, order = found.kneighbors(new)
    np.testing.assert_allclose(cheap.table["neighbour_distance"], distances.mean(1))
    np.testing.assert_allclose(cheap.neighbours["distance"], distances.ravel())
    assert cheap.neighbours["neighbour"].tolist() == [members.ids[i] for i in order.ravel()]
    assert cheap.table["nearest"].tolist() == [members.ids[i] for i in order[:, 0]]
    kinds = np.array(members.metadata["kind"].tolist())[order]
    expected = ["a" if (row == "a").sum() >= 2 else "b" for row in kinds]
    assert cheap.table["neighbour_label"].tolist() == expected
    rows = fidelity(joined).table[MEMBERS:]
    for column in ("hidden_r2", "output_agreement", "output_kind"):
        assert cheap.table[column].tolist() == rows[column].tolist()
    pca = PCA(svd_solver="full").fit(old)
    ours = cheap.coordinates[[f"pc_{i + 1}" for i in range(4)]].to_numpy()
    scores = pca.transform(joined.thetas.double().numpy())
    np.testing.assert_allclose(np.abs(ours), np.abs(scores), atol=1e-8)
    np.testing.assert_allclose(cheap.explained, pca.explained_variance_ratio_, atol=1e-10)
    assert cheap.coordinates["member"].tolist() == [True] * MEMBERS + [False] * 4


def test_members_are_compared_with_the_others(
    members: ModelEmbedding, cheap: NoveltyResult
) -> None:
    thetas = members.thetas.double().numpy()
    expected = []
    for index in range(MEMBERS):
        others = np.linalg.norm(np.delete(thetas, index, 0) - thetas[index], axis=1)
        expected.append(np.sort(others)[:3].mean())
    scores = cheap.reference_scores
    np.testing.assert_allclose(scores["neighbour_distance"], expected)
    np.testing.assert_allclose(scores["hidden_r2"], fidelity(members).table["hidden_r2"], atol=1e-6)
    for row in cheap.table.to_dict(orient="records"):
        place = (1 + (np.array(expected) >= row["neighbour_distance"]).sum()) / (MEMBERS + 1)
        sums = scores["hidden_r2"] + scores["output_agreement"]
        own = row["hidden_r2"] + row["output_agreement"]
        faith = (1 + (sums <= own).sum()) / (MEMBERS + 1)
        assert row["place_p"] == pytest.approx(place)
        assert row["fidelity_p"] == pytest.approx(faith)
        low, high = sorted([place, faith])
        holm = [min(2 * low, 1), min(max(2 * low, high), 1)]
        adjusted = sorted([row["place_p_adjusted"], row["fidelity_p_adjusted"]])
        assert adjusted == pytest.approx(holm)


def test_a_network_of_another_kind_is_stranger(
    members: ModelEmbedding, everything: Population, place: Path
) -> None:
    result = novelty(
        members,
        population=str(place),
        neighbours=3,
        alpha=0.16,
        folds=2,
        calibration="refit",
        fidelity_of="states",
        **QUICK,
    )
    table = result.table.set_index("model")
    same, odd = table.loc[["net-12", "net-13"]], table.loc[["odd-14", "odd-15"]]
    assert odd["hidden_r2"].max() < same["hidden_r2"].min()
    assert odd["fidelity_p"].max() == pytest.approx(1 / (MEMBERS + 1))
    assert odd["flagged"].all()
    assert result.flagged == ("odd-14", "odd-15")
    assert result.note is None
    # The first fold again, by hand.
    fold = np.array_split(np.random.default_rng(0).permutation(MEMBERS), 2)[0]
    left = [m for index, m in enumerate(members.ids) if index not in fold]
    settings = {
        field.name: getattr(members.config, field.name)
        for field in dataclasses.fields(members.config)
    }
    refit = dp.fit(select_models(everything, left), seeds=None, **settings, **FAST)
    some = [members.ids[index] for index in fold]
    inserted = refit.insert(everything, models=[*some, *result.table["model"]], **QUICK)
    expected = fidelity(inserted).table.set_index("model").loc[some, "hidden_r2"]
    found = result.reference_scores.set_index("model").loc[some, "hidden_r2"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_members_that_are_inserted_again_land_near_themselves(
    members: ModelEmbedding, everything: Population
) -> None:
    copies = {f"{model} (again)": model for model in members.ids}
    joined = members.insert(select_models(everything, copies), **FAST)
    old, again = joined.thetas[:MEMBERS].double(), joined.thetas[MEMBERS:].double()
    distances = torch.cdist(again, old)
    own = distances.diagonal()
    assert own.median() < distances.median() / 2
    # Of the members, how many are nearer: by chance, as many as not.
    nearer = (distances < own[:, None]).sum(1).numpy() / (MEMBERS - 1)
    assert ttest_1samp(nearer, 0.5, alternative="less").pvalue < 0.01
    result = novelty(
        members,
        population=everything,
        neighbours=3,
        calibration="inserted",
        models=["net-12"],
        **FAST,
    )
    table = fidelity(joined).table["hidden_r2"].to_numpy()[MEMBERS:]
    np.testing.assert_allclose(result.reference_scores["hidden_r2"], table)
    distances.fill_diagonal_(torch.inf)
    expected = distances.sort(1).values[:, :3].mean(1)
    np.testing.assert_allclose(result.reference_scores["neighbour_distance"], expected)


def test_where_no_flag_is_possible_it_says_so(cheap: NoveltyResult) -> None:
    assert cheap.smallest_p == pytest.approx(2 / 13)
    assert cheap.note is not None
    assert "No network can be flagged at 0.05: 12 members" in cheap.note
    assert "39 members" in cheap.note
    assert "flag too readily" in cheap.note
    assert cheap.flagged == ()
    assert cheap.summary()["flagged_share"] == 0
    json.dumps(cheap.summary(), allow_nan=False)
    json.dumps(cheap.to_json(), allow_nan=False)


def test_the_plot_marks_what_is_flagged(cheap: NoveltyResult) -> None:
    flags = np.array([False, True, False, True])
    result = dataclasses.replace(cheap, table=cheap.table.assign(flagged=flags))
    figure = result.plot()
    assert [trace.name for trace in figure.data] == ["a", "b", "new", "new, flagged"]
    coordinates = result.coordinates.loc[result.table["model"]]
    np.testing.assert_array_equal(figure.data[-1].x, coordinates["pc_1"][flags])
    np.testing.assert_array_equal(figure.data[-2].y, coordinates["pc_2"][~flags])


def test_conformal_p_values_are_uniform_for_exchangeable_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_t(2, size=(4000, 20))
    p_values = np.array([conformal_p_values(row[:1], row[1:])[0] for row in scores])
    counts = np.bincount(np.round(20 * p_values).astype(int), minlength=21)[1:]
    np.testing.assert_allclose(counts / 4000, 1 / 20, atol=0.015)
    assert kstest(p_values - rng.uniform(0, 1 / 20, 4000), "uniform").pvalue > 1e-3
    pairs = np.stack([p_values[:2000], p_values[2000:]])
    assert (adjusted_for_each(pairs) <= 0.1).any(0).mean() == pytest.approx(0.0975, abs=0.02)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=12),
    st.lists(st.integers(-5, 5), min_size=1, max_size=5),
)
def test_p_values_by_the_formula(calibration: list[int], scores: list[int]) -> None:
    found = conformal_p_values(np.array(scores, float), np.array(calibration, float))
    for p_value, score in zip(found, scores, strict=True):
        reached = sum(value >= score for value in calibration)
        assert p_value == pytest.approx((1 + reached) / (1 + len(calibration)))


def test_mean_distances_are_those_of_sorting() -> None:
    distances: NDArray[np.float64] = np.random.default_rng(0).random((4, 6))
    np.testing.assert_allclose(mean_distances(distances, 6), distances.mean(1))
    np.testing.assert_allclose(mean_distances(distances, 2), np.sort(distances)[:, :2].mean(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"neighbours": 12}, InvalidInput, "fewer than the 12 members"),
        ({"neighbours": 0}, InvalidInput, "neighbours must be at least 1"),
        ({"calibration": "none"}, InvalidInput, "'members', 'inserted' or 'refit'"),
        ({"fidelity_of": "all"}, InvalidInput, "'both', 'states' or 'outputs'"),
        ({"folds": 1}, InvalidInput, "folds must be at least 2"),
        ({"alpha": 1.0}, InvalidInput, "alpha must be between 0 and 1"),
        ({"models": ["net-0"]}, DuplicateName, "'net-0' already"),
        ({"models": ["odd"]}, UnknownName, "no model 'odd'"),
        ({"labels": "kinds"}, UnknownName, "Did you mean 'kind'"),
        ({"neighbours": 7, "folds": 2}, InvalidInput, "A fold leaves 6 members"),
    ],
)
def test_bad_options_say_what_is_wrong(
    members: ModelEmbedding,
    everything: Population,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        novelty(members, **{"population": everything, **QUICK, **options})
    equal = dataclasses.replace(members, thetas=members.thetas * 0 + 1)
    with pytest.raises(InvalidInput, match="these 12 are all equal"):
        novelty(equal, population=everything, **QUICK)
