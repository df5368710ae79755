"""Networks averaged weight by weight, and run on the inputs of the embedding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dynamo_plugin.analyses._networks import made_networks, mix_weights, run_networks
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName
from tests.dynamo_plugin.analyses.conftest import make_models


def test_a_mixture_of_linear_networks_answers_the_mixture_of_their_answers() -> None:
    torch.manual_seed(0)
    networks = {name: nn.Linear(3, 2) for name in "abc"}
    before = copy.deepcopy(networks["a"].state_dict())
    mixed = mix_weights(networks, [0.5, 0.25, 0.25])
    inputs = torch.randn(7, 3)
    expected = 0.5 * networks["a"](inputs) + 0.25 * (networks["b"](inputs) + networks["c"](inputs))
    torch.testing.assert_close(mixed(inputs), expected)
    torch.testing.assert_close(networks["a"].state_dict(), before)


def test_counters_are_those_of_the_first() -> None:
    networks = {name: nn.BatchNorm1d(3) for name in "ab"}
    networks["a"](torch.randn(4, 3))
    mixed = mix_weights(networks, [0.5, 0.5])
    assert mixed.state_dict()["num_batches_tracked"] == 1
    expected = (networks["a"].state_dict()["running_mean"]) / 2
    torch.testing.assert_close(mixed.state_dict()["running_mean"], expected)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 4), r"'weight' is \(2, 3\) and \(4, 3\)"),
        (nn.Linear(3, 2, bias=False), "only one of them has 'bias'"),
        (nn.Conv1d(3, 2, 1), "a Linear and a Conv1d"),
    ],
)
def test_networks_that_do_not_match(other: nn.Module, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        mix_weights({"a": nn.Linear(3, 2), "b": other}, [0.5, 0.5])


def test_networks_answer_as_they_did_at_capture(embedding: ModelEmbedding) -> None:
    models = make_models(3, per_step=False)
    networks = made_networks(embedding, models, embedding.ids[:2])
    samples = np.array([11, 3, 19])
    found = run_networks(embedding, networks, samples)
    for name, outputs in found.items():
        expected = embedding.population.outputs(name, samples=samples)
        np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_other_networks_than_those_embedded(embedding: ModelEmbedding) -> None:
    models = make_models(3, per_step=False)
    with pytest.raises(UnknownName, match="gru-99"):
        made_networks(embedding, {"gru-99": nn.Linear(1, 1)}, ["gru-0"])
    with pytest.raises(InvalidInput, match="lacks 'rnn-1'"):
        made_networks(embedding, {"gru-0": models["gru-0"]}, ["gru-0", "rnn-1"])
    with pytest.raises(InvalidInput, match="not the one that was embedded"):
        made_networks(embedding, {"gru-0": lambda: nn.Linear(1, 1)}, ["gru-0"])
    with pytest.raises(InvalidInput, match="of type list"):
        made_networks(embedding, {"gru-0": list}, ["gru-0"])
