from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet
from scipy.spatial.distance import pdist, squareform

import dynamo_plugin as dp
from dynamo_plugin.errors import (
    CorruptBlock,
    InvalidInput,
    StoreExists,
    StoreNotFound,
    UnknownName,
    UnsupportedFormat,
)
from dynamo_plugin.metrics import PairwiseDistances
from dynamo_plugin.store import Population


def of_points(points: NDArray[np.float64], **changes: Any) -> PairwiseDistances:
    """Return the result whose distances are those between points."""
    return PairwiseDistances.make(
        dp.metric("procrustes"),
        [f"m{index}" for index in range(len(points))],
        squareform(pdist(points)),
        settings={"metric": "procrustes", "options": {}},
        population="nowhere",
    )


@pytest.fixture(scope="module")
def cka(population: Population) -> PairwiseDistances:
    return dp.pairwise(population, "cka", progress=False)


def test_similarities_become_distances_as_stated(cka: PairwiseDistances) -> None:
    assert (cka.kind, cka.distance_rule) == ("similarity", "max(1 - value, 0)")
    assert cka.distances == pytest.approx(np.clip(1 - cka.values, 0, None))
    assert np.diag(cka.distances) == pytest.approx(np.zeros(7))


def test_it_is_frozen(cka: PairwiseDistances) -> None:
    with pytest.raises(ValueError, match="read-only"):
        cka.values[0, 1] = 0
    with pytest.raises(AttributeError):
        cka.metric = "rsa"  # type: ignore[misc]
    frame = cka.to_dataframe()
    frame.iloc[0, 1] = 7
    assert cka.values[0, 1] != 7


def test_tables(cka: PairwiseDistances) -> None:
    square = cka.to_dataframe()
    assert square.loc["net-1", "net-4"] == cka.value("net-1", "net-4")
    assert list(square.index) == list(square.columns) == list(cka.ids)
    apart = cka.to_dataframe(of="distances")
    assert apart.loc["net-1", "net-4"] == 1 - cka.value("net-1", "net-4")
    pairs = cka.to_pairs()
    assert len(pairs) == 7 * 6 / 2
    row = pairs[(pairs["first"] == "net-1") & (pairs["second"] == "net-4")].iloc[0]
    assert row["value"] == cka.value("net-1", "net-4")


def test_pairs_in_both_orders_where_order_matters(population: Population) -> None:
    result = dp.pairwise(population, "pwcca", side="first", progress=False)
    pairs = result.to_pairs()
    assert len(pairs) == 7 * 6
    back = pairs[(pairs["first"] == "net-4") & (pairs["second"] == "net-1")].iloc[0]
    assert back["value"] == result.value("net-4", "net-1") != result.value("net-1", "net-4")
    square = result.symmetric_distances()
    assert np.array_equal(square, square.T)


def test_xarray(cka: PairwiseDistances) -> None:
    dataset = cka.to_xarray()
    chosen = dataset["value"].sel(model="net-1", other_model="net-4")
    assert float(chosen) == cka.value("net-1", "net-4")
    assert dataset.attrs["metric"] == "cka"


def test_rsatoolbox(cka: PairwiseDistances, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class RDMs:
        def __init__(self, dissimilarities: NDArray[np.float64], **rest: Any) -> None:
            given.update(rest, dissimilarities=dissimilarities)

    module = types.ModuleType("rsatoolbox.rdm")
    module.RDMs = RDMs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rsatoolbox", types.ModuleType("rsatoolbox"))
    monkeypatch.setitem(sys.modules, "rsatoolbox.rdm", module)
    assert isinstance(cka.to_rsatoolbox(), RDMs)
    assert given["dissimilarities"].shape == (1, 7, 7)
    assert given["dissimilarities"][0, 1, 4] == pytest.approx(1 - cka.values[1, 4])
    assert given["pattern_descriptors"] == {"model": list(cka.ids)}


@pytest.mark.parametrize(
    ("method", "module"), [("rsatoolbox", "rsatoolbox.rdm"), ("xarray", "xarray")]
)
def test_tools_that_are_not_installed(
    cka: PairwiseDistances, monkeypatch: pytest.MonkeyPatch, method: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInput, match=rf"pip install .*{method}"):
        getattr(cka, f"to_{method}")()


def test_classical_scaling_finds_points_again() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3))
    places = of_points(points).embed(dimensions=3)
    assert pdist(places.to_numpy()) == pytest.approx(pdist(points), abs=1e-9)
    assert list(places.columns) == ["x1", "x2", "x3"]
    more = of_points(points).embed(dimensions=5).to_numpy()
    assert np.abs(more[:, 3:]).max() < 1e-6


def test_stress_is_less_than_that_of_classical_scaling() -> None:
    points = np.random.default_rng(0).normal(size=(12, 5))
    result = of_points(points)
    stresses = {}
    for method in ("classical", "stress"):
        places = result.embed(method=method)
        stresses[method] = np.square(pdist(places.to_numpy()) - pdist(points)).sum()
    assert stresses["stress"] < 0.9 * stresses["classical"]
    again = result.embed(method="stress")
    pd.testing.assert_frame_equal(again, result.embed(method="stress"))


def test_the_tree_joins_what_is_near() -> None:
    # two pairs of points, 1 apart within and 10 between
    points = np.array([[0.0], [10.0], [1.0], [11.0]])
    tree = of_points(points).linkage()
    heights = squareform(cophenet(tree))
    assert heights[0, 2] == heights[1, 3] == 1
    assert heights[0, 1] == pytest.approx(10)  # the mean of 10, 11, 9, 10


@pytest.mark.parametrize("kind", ["heatmap", "dendrogram", "embedding"])
def test_plots(cka: PairwiseDistances, kind: Any) -> None:
    labels = {model: f"<b>{index % 2}</b>" for index, model in enumerate(cka.ids)}
    for given in (None, labels):
        text = cka.plot(kind, labels=given).to_json()
        assert "net-6" in text
        assert "<b>" not in text
        assert "\\u003cb\\u003e" not in text


def test_the_heat_map_shows_the_values_in_the_order_of_the_tree(cka: PairwiseDistances) -> None:
    trace = cka.plot().data[0]
    shown = np.array(trace.z)
    names = [row[0][0] for row in trace.customdata]
    assert sorted(names) == sorted(cka.ids)
    assert shown[0, 3] == cka.value(names[0], names[3])


def test_labels_of_all_models_are_needed(cka: PairwiseDistances) -> None:
    with pytest.raises(UnknownName, match="net-1"):
        cka.plot(labels={"net-0": "a"})


def test_too_many_dimensions(cka: PairwiseDistances) -> None:
    with pytest.raises(InvalidInput, match="at most 6"):
        cka.embed(dimensions=7)


def test_summary_is_json(cka: PairwiseDistances) -> None:
    summary = cka.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    above = cka.values[np.triu_indices(7, 1)]
    assert summary["mean"] == pytest.approx(above.mean())
    nearest = summary["nearest"]
    assert isinstance(nearest, list)
    assert cka.value(str(nearest[0]), str(nearest[1])) == above.max()


def test_saved_and_loaded(cka: PairwiseDistances, tmp_path: Path) -> None:
    path = cka.save(tmp_path / "cka.json")
    loaded = PairwiseDistances.load(path)
    assert np.array_equal(loaded.values, cka.values)
    assert np.array_equal(loaded.distances, cka.distances)
    for name in ("ids", "metric", "settings", "kind", "symmetric", "is_metric", "distance_rule"):
        assert getattr(loaded, name) == getattr(cka, name)
    with pytest.raises(StoreExists, match="overwrite=True"):
        cka.save(path)
    cka.save(path, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cka.json"]


def test_saving_touches_nothing_else(cka: PairwiseDistances, tmp_path: Path) -> None:
    other = tmp_path / "thesis.json"
    other.write_text("{}")
    with pytest.raises(StoreExists):
        cka.save(other, overwrite=True)
    assert other.read_text() == "{}"
    with pytest.raises(StoreNotFound):
        cka.save(tmp_path / "nowhere" / "cka.json")


def test_what_cannot_be_loaded(cka: PairwiseDistances, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        PairwiseDistances.load(tmp_path / "nothing.json")
    other = tmp_path / "other.json"
    other.write_text('{"format": "something"}')
    with pytest.raises(UnsupportedFormat):
        PairwiseDistances.load(other)
    path = cka.save(tmp_path / "cka.json")
    text = path.read_text()
    path.write_text(text[:-100])
    with pytest.raises(CorruptBlock):
        PairwiseDistances.load(path)
    path.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(UnsupportedFormat, match="version 2"):
        PairwiseDistances.load(path)
    path.write_text(text.replace('"net-0", ', ""))
    with pytest.raises(CorruptBlock, match="one row and column per model"):
        PairwiseDistances.load(path)


def test_unknown_models_suggest(cka: PairwiseDistances) -> None:
    with pytest.raises(UnknownName, match="net-0"):
        cka.value("net_0", "net-1")
