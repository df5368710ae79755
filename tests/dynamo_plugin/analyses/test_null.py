from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from scipy.stats import f_oneway, permutation_test
from sklearn.metrics import adjusted_rand_score, silhouette_score

import dynamo_plugin as dp
from dynamo_plugin.analyses import clusters, null
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.registry import Register, get_registry, hookimpl

Place = Callable[..., ModelEmbedding]

TASK = list("aaaabbbb")
EVERY = [
    ["a" if model in chosen else "b" for model in range(8)] for chosen in combinations(range(8), 4)
]


@pytest.fixture(scope="module")
def groups(place: Place) -> ModelEmbedding:
    """Four models here and four not far from there."""
    rng = np.random.default_rng(0)
    return place(np.repeat([[0.0, 0], [1.5, 0]], 4, axis=0) + rng.normal(size=(8, 2)), task=TASK)


def test_the_null_of_clusters_is_that_of_scikit_learn(groups: ModelEmbedding) -> None:
    result = null(groups, labels="task")
    found = result.to_dataframe().set_index("statistic")
    thetas = groups.thetas.double().numpy()
    codes = clusters(groups, clusters=2).assignments["cluster"]
    expected = {
        "label_silhouette": [silhouette_score(thetas, labels) for labels in EVERY],
        "adjusted_rand": [adjusted_rand_score(codes, labels) for labels in EVERY],
    }
    assert result.exact
    assert len(result.null) == 70
    for name, values in expected.items():
        observed = values[0]  # combinations begin with the first four
        np.testing.assert_allclose(np.sort(result.null[name]), np.sort(values), atol=1e-9)
        figures = found.loc[name]
        assert figures["value"] == pytest.approx(observed)
        effect = (observed - np.mean(values)) / np.std(values)
        assert figures["effect_size"] == pytest.approx(effect)
        assert figures["p_value"] == pytest.approx(np.mean(np.array(values) >= observed - 1e-9))
        bounds = np.quantile(values, [0.025, 0.5, 0.975])
        np.testing.assert_allclose(
            figures[["null_low", "null_median", "null_high"]].astype(float), bounds, atol=1e-9
        )
    assert set(found.index) == {*expected, "neighbour_accuracy", "centroid_accuracy"}
    json.dumps(result.summary(), allow_nan=False)


def test_the_null_of_attribution_is_that_of_scipy(place: Place) -> None:
    thetas = np.random.default_rng(1).normal(size=(9, 1))
    embedding = place(thetas, task=list("aaabbbbcc"))
    result = null(embedding, labels="task", analysis="attribution")
    values = embedding.thetas[:, 0].double().numpy()
    parts = [values[:3], values[3:7], values[7:]]
    expected = permutation_test(
        parts, lambda *some: f_oneway(*some).statistic, n_resamples=10**9, alternative="greater"
    )
    assert result.exact
    found = result.to_dataframe().set_index("statistic")
    assert found.loc["pseudo_f", "value"] == pytest.approx(expected.statistic)
    assert found.loc["pseudo_f", "p_value"] == pytest.approx(expected.pvalue)
    assert found.loc["r2", "p_value"] == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(
        np.sort(result.null["pseudo_f"]), np.sort(expected.null_distribution), rtol=1e-6
    )


@dataclass(frozen=True)
class Gap:
    """The difference of the mean thetas of the labels a and b, and what does not depend on them."""

    value: float
    name: str = "gap"

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({"value": [self.value]})

    def plot(self) -> go.Figure:
        return go.Figure()

    def summary(self) -> dict[str, Any]:
        nothing = None if self.value > 0 else 1
        nested = {"gap": self.value, "gap_p": 0.5, "half": self.value / 2}
        return {"analysis": "gap", "of": nested, "models": 8, "at_times": nothing, "flag": True}


@pytest.fixture(scope="module")
def gap_plugin() -> Iterator[None]:
    def gap(embedding: ModelEmbedding, *, labels: list[str], times: float = 1.0) -> Gap:
        values, codes = embedding.thetas[:, 0].double().numpy(), np.array(labels)
        return Gap(times * float(values[codes == "a"].mean() - values[codes == "b"].mean()))

    module: Any = ModuleType("gap_analyses")
    module.gap = gap

    class Plugin:
        @hookimpl
        def dynamo_register_analyses(self, register: Register) -> None:
            register("gap", "gap_analyses:gap")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gap_analyses", module)
        get_registry().register_plugin(Plugin(), name="gap")
        yield
        get_registry().unregister_plugin("gap")


@pytest.mark.usefixtures("gap_plugin")
@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("times", [1.0, 1e-12])
def test_any_analysis_has_a_null(groups: ModelEmbedding, alternative: Any, times: float) -> None:
    result = null(groups, labels="task", analysis="gap", alternative=alternative, times=times)
    values = groups.thetas[:, 0].double().numpy()
    gaps = np.array(
        [values[np.array(s) == "a"].mean() - values[np.array(s) == "b"].mean() for s in EVERY]
    )
    extreme = {
        "greater": gaps >= gaps[0] - 1e-9,
        "less": gaps <= gaps[0] + 1e-9,
        "two-sided": np.abs(gaps) >= abs(gaps[0]) - 1e-9,  # of all labellings, the mean is 0
    }
    found = result.to_dataframe().set_index("statistic")
    assert found.index.tolist() == ["of.gap", "of.half"]
    np.testing.assert_allclose(found["p_value"], extreme[alternative].mean())
    assert found.loc["of.gap", "value"] == pytest.approx(times * gaps[0])
    np.testing.assert_allclose(found["p_adjusted"], np.minimum(2 * found["p_value"], 1))
    assert result.omitted == {
        "models": "the same for every labelling",
        "at_times": "missing or infinite for some labellings",
    }
    json.dumps(result.summary(), allow_nan=False)


@pytest.mark.usefixtures("gap_plugin")
def test_statistics_are_chosen(groups: ModelEmbedding) -> None:
    one = null(groups, labels="task", analysis="gap", statistics=["of.half"])
    assert one.to_dataframe()["statistic"].tolist() == ["of.half"]
    assert list(one.null.columns) == ["of.half"]
    with pytest.raises(UnknownName, match=r"Did you mean 'of\.half'"):
        null(groups, labels="task", analysis="gap", statistics=["of.halve"])
    with pytest.raises(InvalidInput, match="'models' has no null: it is the same for every"):
        null(groups, labels="task", analysis="gap", statistics=["models"])


def test_drawn_labels_never_give_a_p_of_zero(groups: ModelEmbedding, place: Place) -> None:
    thetas = np.repeat([[0.0], [9]], 20, axis=0) + np.random.default_rng(2).normal(size=(40, 1))
    result = null(place(thetas), labels=["a"] * 20 + ["b"] * 20, permutations=99)
    assert not result.exact
    assert len(result.null) == 99
    found = result.to_dataframe().set_index("statistic")["p_value"]
    assert found["label_silhouette"] == found["adjusted_rand"] == pytest.approx(1 / 100)
    first, same, other = (
        null(groups, labels="task", max_exact=0, permutations=50, seed=seed).null[
            "label_silhouette"
        ]
        for seed in (1, 1, 2)
    )
    assert first.tolist() == same.tolist() != other.tolist()


def test_p_values_are_calibrated(place: Place) -> None:
    p_values = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        embedding = place(rng.standard_t(3, size=(16, 3)))
        labels = rng.permutation(list("aaaaaabbbbbccccc")).tolist()
        result = null(embedding, labels=labels, analysis="attribution", permutations=199, seed=seed)
        p_values.append(result.to_dataframe()["p_value"].iloc[0])
    # 5 % of 200 are 10, with a standard deviation of 3.1.
    assert 2 <= np.sum(np.array(p_values) <= 0.05) <= 19
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def test_options_reach_the_analysis(embedding: ModelEmbedding) -> None:
    result = null(embedding, labels="architecture", distance="functional", method="agglomerative")
    expected = clusters(
        embedding, labels="architecture", distance="functional", method="agglomerative"
    ).to_dataframe()
    found = result.to_dataframe().set_index("statistic")["value"]
    for name, value in zip(expected["statistic"][1:], expected["value"][1:], strict=True):
        assert name in result.omitted or found[name] == pytest.approx(value)
    shares = null(embedding, labels="architecture", analysis="attribution", distance="functional")
    squared = embedding.distances("functional").to_numpy() ** 2
    codes = embedding.metadata["architecture"].to_numpy()
    within = sum(squared[np.ix_(codes == kind, codes == kind)].sum() / 6 for kind in set(codes))
    expected_r2 = 1 - within / (squared.sum() / 12)
    assert shares.to_dataframe()["value"].iloc[0] == pytest.approx(expected_r2, abs=1e-6)


def test_the_plot_has_a_box_for_every_statistic(groups: ModelEmbedding) -> None:
    result = null(groups, labels="task")
    figure = result.plot()
    boxes = [trace for trace in figure.data if trace.type == "box"]
    assert [box.name for box in boxes] == result.table["statistic"].tolist()
    for box in boxes:
        assert np.mean(box.x) == pytest.approx(0, abs=1e-9)
        assert np.std(box.x) == pytest.approx(1)
    np.testing.assert_allclose(figure.data[-1].x, result.table["effect_size"])


def test_by_name(groups: ModelEmbedding) -> None:
    result = dp.analyse("null", groups, labels="task", analysis="clusters", permutations=9)
    assert result.name == result.summary()["analysis"] == "null"
    assert result.summary()["of"] == "clusters"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a"] * 8}, "'a' for every model"),
        ({"labels": list("abcdefgh")}, "different for every model"),
        ({"analysis": "null"}, "null of the null"),
        ({"analysis": "fidelity"}, "'fidelity' has no option 'labels'"),
        ({"alternative": "larger"}, "'greater', 'less' or 'two-sided'"),
        ({"permutations": 0}, "permutations must be at least 1"),
        ({"metod": "kmeans"}, "'clusters' has no option 'metod'"),
        ({"analysis": "attribution", "columns": []}, "option 'distance' alone"),
        ({"statistics": "r2"}, r"write \['r2'\]"),
    ],
)
def test_bad_options_say_what_is_wrong(
    groups: ModelEmbedding, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        null(groups, **{"labels": "task", **options})


def test_equal_thetas_are_refused(place: Place) -> None:
    with pytest.raises(InvalidInput, match="these are all equal"):
        null(place(np.ones((8, 2))), labels=TASK, analysis="attribution")
    with pytest.raises(UnknownName, match="'clusters'"):
        null(place(np.eye(8)), labels=TASK, analysis="cluster")
