"""Metadata as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording import capture
from dynamo_plugin.recording.metadata import as_metadata


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"units": [2, 1]}, index=["b", "a"]),
        pd.DataFrame({"model": ["b", "a"], "units": [2, 1]}),
        pd.DataFrame({"id": ["b", "a"], "units": [2, 1]}),
        pd.DataFrame({"model": ["lstm", "gru"], "units": [2, 1]}, index=["b", "a"])[["units"]],
        {"b": {"units": 2}, "a": {"units": np.int32(1)}},
    ],
)
def test_rows_come_in_the_order_of_the_models(table: Any) -> None:
    rows = as_metadata(table, ["a", "b"])
    assert list(rows) == ["a", "b"]
    assert rows == {"a": {"units": 1}, "b": {"units": 2}}


def test_an_index_of_ids_comes_before_a_column_called_model() -> None:
    table = pd.DataFrame({"model": ["gru", "lstm"]}, index=["a", "b"])
    assert as_metadata(table, ["a", "b"])["b"] == {"model": "lstm"}


def test_numeric_ids_of_a_table_are_read_as_text() -> None:
    assert as_metadata(pd.DataFrame({"id": [1], "x": [2.5]}), ["1"]) == {"1": {"x": 2.5}}


def test_values_become_json() -> None:
    values = {
        "float": np.float32(0.5),
        "integer": np.int64(3),
        "flag": np.bool_(True),
        "missing": np.nan,
        "na": pd.NA,
        "nat": pd.NaT,
        "none": None,
        "when": pd.Timestamp("2020-01-02"),
        "numpy_when": np.datetime64("2020-01-02"),
        "array": np.array([1, 2]),
        "nested": {"a": (1, [np.float64(2.0)])},
    }
    row: Any = as_metadata({"a": values}, ["a"])["a"]
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["float"] == 0.5
    assert row["flag"] is True
    assert row["missing"] is row["na"] is row["nat"] is row["none"] is None
    assert row["when"] == row["numpy_when"] + "T00:00:00" == "2020-01-02T00:00:00"
    assert row["array"] == [1, 2]
    assert row["nested"] == {"a": [1, [2.0]]}


def test_integers_beside_floats_stay_integers() -> None:
    row = as_metadata(pd.DataFrame({"n": [1], "x": [0.5]}, index=["a"]), ["a"])["a"]
    assert isinstance(row["n"], int)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": {}}, "lacks 'b'"),
        ({"a": {}, "b": {}, "c": {}}, "no model: 'c'"),
        (pd.DataFrame({"x": [1, 2]}), "lacks 'a', 'b' and has rows for no model: '0', '1'"),
        (pd.DataFrame({"model": ["a", "a"], "x": [1, 2]}), "several rows for 'a'"),
        ([1], "got list"),
        ({"a": 1, "b": {}}, "model 'a' must be a mapping"),
        ({"a": {"x": object()}, "b": {}}, "metadata 'x' of model 'a' is of type object"),
        ({"a": {"x": float("inf")}, "b": {}}, "expected finite"),
    ],
)
def test_bad_metadata_is_refused(metadata: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_metadata(metadata, ["a", "b"])


def test_columns_keep_their_order_in_the_store() -> None:
    models = {"a": torch.nn.GRU(1, 2, batch_first=True)}
    table = {"a": {"width": 2, "seed": 0, "architecture": "gru"}}
    population = capture(models, torch.randn(2, 3, 1), {}, metadata=table, progress=False)
    assert list(population.metadata.columns) == ["width", "seed", "architecture"]
