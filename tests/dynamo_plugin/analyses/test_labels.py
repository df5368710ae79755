from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dynamo_plugin.analyses import read_labels
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName

Place = Callable[..., ModelEmbedding]


@pytest.fixture
def three(place: Place) -> ModelEmbedding:
    return place(np.eye(3), size=[10, 9, 10], hole=["a", None, "b"], number=[0.5, float("nan"), 1])


def test_numbers_are_sorted_by_size(three: ModelEmbedding) -> None:
    labels = read_labels(three, "size")
    assert labels.name == "size"
    assert labels.values == ("9", "10")
    assert labels.codes.tolist() == [1, 0, 1]
    assert labels.counts.tolist() == [1, 2]
    assert labels.of_models == ("10", "9", "10")


@pytest.mark.parametrize(
    "source",
    [
        {"model-2": "x", "model-0": "y", "model-1": "x"},
        pd.Series({"model-2": "x", "model-0": "y", "model-1": "x"}),
        ["y", "x", "x"],
        np.array(["y", "x", "x"]),
        pd.Series(["y", "x", "x"]),
    ],
)
def test_sources_say_the_same(three: ModelEmbedding, source: Any) -> None:
    assert read_labels(three, source).of_models == ("y", "x", "x")


def test_unknown_names_suggest(three: ModelEmbedding) -> None:
    with pytest.raises(UnknownName, match="'size'"):
        read_labels(three, "sise")
    with pytest.raises(UnknownName, match="'model-0'"):
        read_labels(three, {"model_0": 1})


@pytest.mark.parametrize("column", ["hole", "number"])
def test_missing_labels_name_the_model(three: ModelEmbedding, column: str) -> None:
    with pytest.raises(InvalidInput, match="none for 'model-1'"):
        read_labels(three, column)


def test_every_model_needs_a_label(three: ModelEmbedding) -> None:
    with pytest.raises(InvalidInput, match="'model-0', 'model-2'"):
        read_labels(three, {"model-1": "x"})
    with pytest.raises(InvalidInput, match="each of 3 models, got 2"):
        read_labels(three, ["x", "y"])
    twice = pd.Series(["x", "y"], index=["model-0", "model-0"])
    with pytest.raises(InvalidInput, match="twice"):
        read_labels(three, twice)
