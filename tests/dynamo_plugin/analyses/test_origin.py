"""What results say about where they come from."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import dynamo_plugin as dp
from dynamo_plugin.analyses import average, clusters, null
from dynamo_plugin.analyses._origin import _described
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput


def test_results_know_their_embedding_and_every_option(embedding: ModelEmbedding) -> None:
    result = clusters(embedding, clusters=2)
    assert result.origin is not None
    assert result.origin.models == embedding.ids
    assert result.origin.inputs_hash == embedding.population.inputs.hash
    assert result.origin.options["clusters"] == 2
    assert result.origin.options["seed"] == 0
    assert dp.analyse("clusters", embedding, clusters=2).origin == result.origin  # type: ignore[attr-defined]


def test_options_that_json_cannot_hold_are_described(embedding: ModelEmbedding) -> None:
    count = len(embedding.population.sample_ids)
    few = average(embedding, targets=np.arange(count) % 3)
    assert few.origin is not None
    assert few.origin.options["targets"] == (np.arange(count) % 3).tolist()
    many = average(embedding, targets={"output3": torch.randn(count, 300)[:, ::100]})
    assert many.origin is not None
    assert isinstance(many.origin.options["targets"], dict)


def test_large_options_are_named_by_their_shape() -> None:
    assert _described(torch.zeros(3, 200)) == "Tensor of shape (3, 200)"
    assert _described({"a": (np.float32(0.5), object)}) == {"a": [0.5, "type"]}


def test_all_of_a_result_as_json(embedding: ModelEmbedding) -> None:
    result = null(embedding, labels="architecture", permutations=19)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["analysis"] == "null"
    assert "doi" in found["reference"]
    assert found["origin"]["options"]["labels"] == "architecture"
    pd.testing.assert_frame_equal(pd.DataFrame(found["table"]), result.table, check_exact=False)


def test_only_an_embedding_is_analysed() -> None:
    with pytest.raises(InvalidInput, match="Expected a ModelEmbedding, got str"):
        clusters("embedding")  # type: ignore[arg-type]
