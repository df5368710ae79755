"""Paths of runs against numpy, for thetas that are chosen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

import dynamo_plugin as dp
from dynamo_plugin.analyses import training_trajectory
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName

Place = Callable[..., ModelEmbedding]

RUNS = ["a", "b", "a", "b", "a", "b", "c", "c"]
STEPS = [200, 100, 0, 0, 100, 200, 0, 150]


def _points() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32).astype(np.float64)


def _steps(runs: int) -> list[int]:
    return [number // runs for number in range(200)]


def test_distances_along_the_paths(place: Place) -> None:
    points = _points()
    embedding = place(points, run=RUNS, step=STEPS)
    result = training_trajectory(embedding, run="run", step="step", components=2)
    table = result.to_dataframe()
    assert table["run"].tolist() == ["a"] * 3 + ["b"] * 3 + ["c"] * 2
    assert table["step"].tolist() == [0, 100, 200, 0, 100, 200, 0, 150]
    assert table["order"].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    scores = PCA(2).fit_transform(points)
    places = [embedding.ids.index(model) for model in table["model"]]
    np.testing.assert_allclose(np.abs(table[["pc_1", "pc_2"]]), np.abs(scores[places]), atol=1e-6)
    assert "pc_3" not in table
    for run, rows in table.groupby("run"):
        path = points[[embedding.ids.index(model) for model in rows["model"]]]
        moved = np.linalg.norm(np.diff(path, axis=0), axis=1)
        assert pd.isna(rows["moved"].iloc[0])
        np.testing.assert_allclose(rows["moved"].iloc[1:].to_numpy(float), moved, rtol=1e-6)
        np.testing.assert_allclose(rows["path_length"], [0, *np.cumsum(moved)], rtol=1e-6)
        to_last = np.linalg.norm(path - path[-1], axis=1)
        np.testing.assert_allclose(rows["to_last"], to_last, atol=1e-9)
        row = result.runs.set_index("run").loc[run]
        assert row["displacement"] == pytest.approx(to_last[0])
        assert row["straightness"] == pytest.approx(to_last[0] / moved.sum())
        assert (row["first_step"], row["last_step"]) == (rows["step"].min(), rows["step"].max())
        for column, share in (("half_step", 0.5), ("most_step", 0.9)):
            dense = np.linspace(row["first_step"], row["last_step"], 200_001)
            done = np.interp(dense, rows["step"], 1 - to_last / to_last[0])
            assert row[column] == pytest.approx(dense[np.argmax(done >= share)], abs=0.01)
    for place_, found in zip(places, table.to_dict(orient="records"), strict=True):
        others = [other for other in range(8) if RUNS[other] != RUNS[place_]]
        apart = np.linalg.norm(points[others] - points[place_], axis=1)
        nearest = others[int(apart.argmin())]
        assert found["nearest_other"] == embedding.ids[nearest]
        assert found["nearest_other_run"] == RUNS[nearest]
        assert found["nearest_other_step"] == STEPS[nearest]
        assert found["nearest_other_distance"] == pytest.approx(apart.min(), rel=1e-6)


def test_a_line_is_straight(place: Place) -> None:
    along = np.array([0.0, 1.0, 3.0, 4.0])
    points = np.concatenate([along[:, None] * [1.0, 2.0, 0.0], along[:, None] * [0.0, 1.0, 1.0]])
    embedding = place(points)
    result = training_trajectory(
        embedding,
        run=["x"] * 4 + ["y"] * 4,
        step=dict(zip(embedding.ids, [0, 1, 3, 4] * 2, strict=True)),
    )
    assert result.runs["straightness"].tolist() == pytest.approx([1, 1])
    assert result.runs["half_step"].tolist() == pytest.approx([2, 2])
    assert result.runs["most_step"].tolist() == pytest.approx([3.6, 3.6])
    assert result.convergence_note.startswith("runs begin at the same place")
    assert result.convergence["ratio"].isna().all()


def test_runs_that_come_together(place: Place) -> None:
    corners = np.random.default_rng(0).normal(size=(6, 3))
    steps = np.array([0, 10, 20])
    points = np.concatenate([corners * factor + 3 * factor for factor in (4.0, 2.0, 1.0)])
    result = training_trajectory(
        place(points), run=[f"run {run}" for run in range(6)] * 3, step=np.repeat(steps, 6).tolist()
    )
    assert result.convergence["step"].tolist() == [0, 10, 20]
    assert result.convergence["ratio"].tolist() == pytest.approx([1, 0.5, 0.25])
    assert result.convergence["ratio_high"].iloc[-1] < 0.26
    assert result.convergence["ratio_p"].iloc[-1] < 1e-6
    assert result.convergence_note == ""


@pytest.mark.parametrize(
    ("run", "step", "note", "rows"),
    [
        (["a"] * 8, range(8), "there is one run only", 0),
        (RUNS, [0, 1, 2, 3, 4, 5, 6, 7], "no step is common", 0),
        (RUNS, [200, 100, 0, 0, 100, 200, 0, 150], "only one step is common", 1),
        (["a", "b"] * 4, np.repeat(range(4), 2), "an interval of the ratio needs 4 runs", 4),
    ],
)
def test_what_cannot_be_said_has_a_reason(
    place: Place, run: list[str], step: Any, note: str, rows: int
) -> None:
    result = training_trajectory(place(_points()), run=run, step=list(step))
    assert note in result.convergence_note
    assert len(result.convergence) == rows
    json.dumps(result.to_json(), allow_nan=False)
    assert len(result.plot().data) == len(set(run))
    if len(set(run)) == 1:
        assert result.table["nearest_other"].isna().all()
        assert result.table["nearest_other_distance"].isna().all()


def test_runs_without_a_path_have_a_note(place: Place) -> None:
    points = np.array([[0.0, 0], [1, 0], [0, 0], [5, 5], [5, 5], [2, 3]])
    result = training_trajectory(
        place(points), run=["loop"] * 3 + ["still"] * 2 + ["single"], step=[0, 1, 2, 0, 1, 0]
    )
    notes = result.runs.set_index("run")["note"]
    assert notes["loop"] == "the last checkpoint lies where the first does"
    assert notes["still"] == "no checkpoint has moved"
    assert notes["single"] == "there is one checkpoint only"
    straightness = result.runs.set_index("run")["straightness"]
    assert straightness["loop"] == 0
    assert straightness[["still", "single"]].isna().all()
    assert result.runs["half_step"].isna().all()


def test_functional_distances(embedding: ModelEmbedding) -> None:
    result = dp.analyse(
        "training_trajectory", embedding, run="architecture", step="place", distance="functional"
    )
    apart = embedding.distances("functional")
    table = result.to_dataframe()
    gru = table[table["run"] == "gru"]
    assert gru["model"].tolist() == ["gru-0", "gru-2", "gru-4"]
    assert gru["moved"].iloc[1] == pytest.approx(apart.loc["gru-0", "gru-2"])
    assert gru["to_last"].iloc[0] == pytest.approx(apart.loc["gru-0", "gru-4"])


def test_the_plot_follows_every_run(place: Place) -> None:
    embedding = place(_points(), run=["<b>", "q"] * 4, step=np.repeat(range(4), 2))
    figure = training_trajectory(embedding, run="run", step="step").plot()
    assert [trace.name for trace in figure.data] == ["&lt;b&gt;", "q"]
    for trace in figure.data:
        sizes = list(trace.marker.size)
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]
        assert list(trace.customdata) == [0, 1, 2, 3]
    many = place(np.random.default_rng(0).normal(size=(200, 1)))
    flat = training_trajectory(many, run=[f"r{n % 40:02}" for n in range(200)], step=_steps(40))
    assert len(flat.plot().data) == 40
    assert not flat.plot().layout.showlegend


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"run": "rum"}, UnknownName, "Did you mean 'run'"),
        ({"run": list("abcdefgh")}, InvalidInput, "each of the 8 runs has a single one"),
        ({"step": [0, 0, 0, 1, 2, 3, 4, 5]}, InvalidInput, "run 'a' has 'model-0' and 'model-2'"),
        ({"step": [None, *range(7)]}, InvalidInput, "has none for 'model-0'"),
        ({"step": {"model-1": 3}}, InvalidInput, "has none for 'model-0', 'model-2'"),
        ({"step": ["last", *range(7)]}, InvalidInput, "is 'last' for 'model-0'"),
        ({"step": [np.inf, *range(7)]}, InvalidInput, "Expected a finite number"),
        ({"components": 0}, InvalidInput, "components must be at least 1"),
        ({"distance": "pullback"}, InvalidInput, "'theta' or 'functional'"),
    ],
)
def test_bad_options(
    place: Place, options: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    embedding = place(_points(), run=RUNS, step=STEPS)
    with pytest.raises(error, match=message):
        training_trajectory(embedding, **{"run": "run", "step": "step", **options})


def test_one_place_is_no_path(place: Place) -> None:
    with pytest.raises(InvalidInput, match="All 4 checkpoints lie at one place"):
        training_trajectory(place(np.ones((4, 2))), run=["a", "a", "b", "b"], step=[0, 1, 0, 1])
