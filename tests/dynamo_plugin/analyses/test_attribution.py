from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import f_oneway, linregress

import dynamo_plugin as dp
from dynamo_plugin.analyses import attribution
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName

Place = Callable[..., ModelEmbedding]


def row(embedding: ModelEmbedding, column: str, **options: Any) -> dict[str, Any]:
    table = attribution(embedding, **options).to_dataframe().set_index("column")
    return {str(name): value for name, value in table.loc[column].items()}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 14), st.integers(2, 4), st.integers(1, 5))
def test_groups_follow_the_sums_of_squared_distances(
    place: Place, seed: int, models: int, values: int, dim: int
) -> None:
    rng = np.random.default_rng(seed)
    embedding = place(
        rng.normal(size=(models, dim)), task=[f"t{i % values}" for i in range(models)]
    )
    found = row(embedding, "task", permutations=9, max_exact=0)
    # Anderson 2001: sums of squared distances over all pairs, and over pairs within groups.
    squared = squareform(pdist(embedding.thetas.double().numpy())) ** 2
    codes = np.arange(models) % values
    total = squared.sum() / 2 / models
    within = sum(
        squared[np.ix_(codes == value, codes == value)].sum() / 2 / (codes == value).sum()
        for value in range(values)
    )
    between = total - within
    assert found["r2"] == pytest.approx(between / total, abs=1e-9)
    pseudo_f = (between / (values - 1)) / (within / (models - values))
    assert found["pseudo_f"] == pytest.approx(pseudo_f, rel=1e-7)
    adjusted = 1 - (within / (models - values)) / (total / (models - 1))
    assert found["adjusted_r2"] == pytest.approx(adjusted, abs=1e-9)
    assert found["kind"] == "groups"
    assert (found["values"], found["models"], found["missing"]) == (values, models, 0)


def test_one_dimension_is_the_analysis_of_variance_of_scipy(place: Place) -> None:
    rng = np.random.default_rng(0)
    embedding = place(rng.normal(size=(12, 1)), task=list("aabbbccccabc"))
    values = embedding.thetas[:, 0].double().numpy()
    parts = [values[embedding.metadata["task"] == value] for value in "abc"]
    assert row(embedding, "task")["pseudo_f"] == pytest.approx(f_oneway(*parts).statistic)


def test_numbers_are_a_regression(place: Place) -> None:
    rng = np.random.default_rng(1)
    thetas = rng.normal(size=(15, 3))
    rate = 1e6 + 10.0 ** rng.uniform(-3, 0, 15)
    embedding = place(thetas, rate=rate)
    thetas = embedding.thetas.double().numpy()
    result = attribution(embedding, permutations=99)
    centred = thetas - thetas.mean(0)
    fits = [linregress(rate - 1e6, thetas[:, dimension]) for dimension in range(3)]
    expected = [fit.rvalue**2 for fit in fits]
    np.testing.assert_allclose(result.dimensions["r2"], expected, rtol=1e-6)
    weights = (centred**2).sum(0)
    found = result.to_dataframe().iloc[0]
    assert found["r2"] == pytest.approx(np.average(expected, weights=weights), rel=1e-6)
    assert found["pseudo_f"] == pytest.approx(13 * found["r2"] / (1 - found["r2"]))
    assert found["kind"] == "number"


def test_the_exact_p_counts_every_permutation(place: Place) -> None:
    rng = np.random.default_rng(2)
    thetas = rng.normal(size=(6, 2))
    size = np.array([1.0, 2, 3, 5, 8, 13])
    thetas[:, 0] += 0.2 * size
    embedding = place(thetas, size=size)
    thetas = embedding.thetas.double().numpy()
    result = attribution(embedding)
    found = result.to_dataframe().iloc[0]

    def shares(values: Any) -> list[float]:
        correlations = [np.corrcoef(values, thetas[:, j])[0, 1] ** 2 for j in range(2)]
        return [*correlations, float(np.average(correlations, weights=thetas.var(0)))]

    every = np.array([shares(np.array(values)) for values in permutations(size)])
    observed = np.array(shares(size))
    assert found["exact"]
    assert found["labellings"] == 720
    assert found["p_value"] == pytest.approx((every[:, 2] >= observed[2] - 1e-9).mean())
    single = (every[:, :2] >= observed[:2] - 1e-9).mean(0)
    np.testing.assert_allclose(result.dimensions["p_value"], single)
    family = [(every[:, :2].max(1) >= value - 1e-9).mean() for value in observed[:2]]
    np.testing.assert_allclose(result.dimensions["p_adjusted"], family)


def test_holm(place: Place) -> None:
    rng = np.random.default_rng(3)
    thetas = np.repeat([[0.0], [1]], 10, axis=0) + rng.normal(size=(20, 1))
    columns = {f"c{i}": rng.permutation(20) % 2 for i in range(4)}
    table = attribution(place(thetas, strong=["a"] * 10 + ["b"] * 10, **columns)).to_dataframe()
    ordered = table.sort_values("p_value")
    expected, highest = [], 0.0
    for rank, p_value in enumerate(ordered["p_value"]):
        highest = max(highest, min((5 - rank) * p_value, 1.0))
        expected.append(highest)
    np.testing.assert_allclose(ordered["p_adjusted"], expected)
    assert ordered["column"].iloc[0] == "strong"


def test_p_values_are_calibrated(place: Place) -> None:
    # Columns drawn at random have nothing to do with theta: 400 tests on 20 embeddings.
    p_values, families = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = {f"g{i}": rng.integers(0, 3, 20).astype(str) for i in range(10)}
        numbers = {f"n{i}": rng.normal(size=20) for i in range(10)}
        embedding = place(rng.standard_t(3, size=(20, 4)), **groups, **numbers)
        result = attribution(embedding, permutations=199, seed=seed)
        p_values += result.to_dataframe()["p_value"].tolist()
        families += result.dimensions.groupby("column")["p_adjusted"].min().tolist()
    assert len(p_values) == len(families) == 400
    # 5 % of 400 are 20, with a standard deviation of 4.4: three of these are 13.
    for values in (p_values, families):
        assert 7 <= np.sum(np.array(values) <= 0.05) <= 33
        assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_the_dimension_that_differs_is_named(place: Place) -> None:
    rng = np.random.default_rng(4)
    thetas = rng.normal(size=(24, 4))
    thetas[:, 2] += np.repeat([0.0, 3], 12)
    thetas[:, 3] = 0.25
    result = attribution(place(thetas, task=["a"] * 12 + ["b"] * 12))
    found = result.dimensions.set_index("dimension")
    assert found.index.tolist() == ["theta_0", "theta_1", "theta_2"]
    assert found["p_adjusted"].idxmin() == found["r2"].idxmax() == "theta_2"
    assert (found["p_adjusted"] <= 0.05).tolist() == [False, False, True]


def test_what_explains_nothing_is_left_out_and_said(place: Place) -> None:
    rng = np.random.default_rng(5)
    missing = ["a", None, "b", "a", float("nan"), "b", "a", "b"]
    embedding = place(
        rng.normal(size=(8, 2)),
        same=[3] * 8,
        own=list("abcdefgh"),
        empty=[None] * 8,
        some=missing,
        rate=[0.1, np.nan, 0.2, np.inf, 0.1, 0.3, 0.4, 0.4],
        pair=["x", "x", *"abcdef"],
        rest=[None] * 6 + ["a", "b"],
    )
    result = attribution(embedding, permutations=19)
    assert result.omitted == {
        "same": "the same for every model",
        "own": "different for every model",
        "empty": "missing for every model",
        "rest": "different for every model",
    }
    table = result.to_dataframe().set_index("column")
    assert table["missing"].to_dict() == {"some": 2, "rate": 2, "pair": 0}
    kept = np.array([label in ("a", "b") for label in missing])
    alone = place(embedding.thetas.numpy()[kept], some=[x for x in missing if x in ("a", "b")])
    assert table.loc["some", "r2"] == pytest.approx(row(alone, "some")["r2"])
    assert not result.to_dataframe().isna().to_numpy().any()
    json.dumps(result.summary(), allow_nan=False)


def test_truth_values_and_text_are_groups(place: Place) -> None:
    rng = np.random.default_rng(6)
    columns = {
        "truth": [True, False] * 5,
        "text": ["1", "2", "4", "2", "1"] * 2,
        "whole": pd.Series([1, 2, 4, 2, 1] * 2, dtype=object).tolist(),
    }
    table = attribution(place(rng.normal(size=(10, 2)), **columns)).to_dataframe()
    assert table["kind"].tolist() == ["groups", "groups", "number"]
    embedding = place(rng.normal(size=(10, 2)), **columns)
    both = attribution(embedding, columns=["text"], labels="whole").to_dataframe()
    assert both["kind"].tolist() == ["groups", "groups"]
    assert both["r2"].iloc[0] == pytest.approx(both["r2"].iloc[1])


def test_functional_distances(embedding: ModelEmbedding) -> None:
    found = row(embedding, "architecture", distance="functional")
    squared = embedding.distances("functional").to_numpy() ** 2
    codes = embedding.metadata["architecture"].to_numpy()
    within = sum(
        squared[np.ix_(codes == value, codes == value)].sum() / 6 for value in np.unique(codes)
    )
    assert found["r2"] == pytest.approx(1 - within / (squared.sum() / 12), abs=1e-6)


def test_perfect_groups_have_an_infinite_ratio(place: Place) -> None:
    embedding = place([[0.0], [0], [0], [1], [1], [1]], task=list("aaabbb"))
    result = attribution(embedding)
    found = result.to_dataframe().iloc[0]
    assert found["r2"] == pytest.approx(1)
    assert found["pseudo_f"] == np.inf
    assert found["p_value"] == pytest.approx(2 / 20)
    columns: Any = result.summary()["columns"]
    assert columns["task"]["pseudo_f"] is None
    json.dumps(result.summary(), allow_nan=False)


def test_the_plot_shows_names_as_text(place: Place) -> None:
    rng = np.random.default_rng(7)
    embedding = place(rng.normal(size=(8, 2)), **{"<b>x</b>": list("abcdabcd"), "n": range(8)})
    figure = attribution(embedding, permutations=9).plot()
    assert "&lt;b&gt;x&lt;/b&gt;" in figure.layout.yaxis.ticktext
    chance = dict(zip(figure.layout.yaxis.ticktext, figure.data[1].x, strict=True))
    assert chance["&lt;b&gt;x&lt;/b&gt;"] == pytest.approx(3 / 7)
    assert chance["n"] == pytest.approx(1 / 7)


def test_by_name(embedding: ModelEmbedding) -> None:
    result = dp.analyse("attribution", embedding, columns=["architecture"])
    assert result.name == result.summary()["analysis"] == "attribution"


def test_bad_options_say_what_is_wrong(place: Place) -> None:
    thetas = np.random.default_rng(8).normal(size=(6, 2))
    embedding = place(thetas, task=list("aabbcc"), same=[1] * 6)
    with pytest.raises(UnknownName, match="Did you mean 'task'"):
        attribution(embedding, columns=["tasks"])
    wrong: Any = "task"
    with pytest.raises(InvalidInput, match=r"write \['task'\]"):
        attribution(embedding, columns=wrong)
    with pytest.raises(InvalidInput, match=r"same \(the same for every model\)"):
        attribution(embedding, columns=["same"])
    with pytest.raises(InvalidInput, match="there is none"):
        attribution(place(thetas))
    with pytest.raises(InvalidInput, match="permutations must be at least 1"):
        attribution(embedding, permutations=0)
    with pytest.raises(InvalidInput, match="'theta' or 'functional'"):
        attribution(embedding, distance="cosine")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="all lie in one place"):
        attribution(place(np.ones((6, 2)), task=list("aabbcc")))
