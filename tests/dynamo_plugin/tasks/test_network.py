from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.tasks.network import Architecture, RecurrentNetwork, permuted_twin

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initial_weights_are_those_of_torch(architecture: Architecture) -> None:
    network = RecurrentNetwork(
        architecture, input_size=5, hidden_size=7, output_size=3, vocabulary=11, seed=42
    )
    torch.manual_seed(42)
    expected = [nn.Embedding(11, 5), LAYERS[architecture](5, 7), nn.Linear(7, 3)]
    theirs = [parameter for module in expected for parameter in module.parameters()]
    ours = list(network.parameters())
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_construction_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    RecurrentNetwork("gru", input_size=2, hidden_size=3, output_size=1, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), every_step=st.booleans())
def test_lengths_cut_sequences(
    architecture: Architecture, lengths: list[int], every_step: bool
) -> None:
    network = RecurrentNetwork(
        architecture, input_size=2, hidden_size=4, output_size=3, every_step=every_step, seed=1
    )
    inputs = torch.randn(len(lengths), 6, 2, generator=torch.Generator().manual_seed(0))
    outputs = network(inputs, torch.tensor(lengths))
    for sample, length in enumerate(lengths):
        cut = network(inputs[sample : sample + 1, :length])[0]
        got = outputs[sample, :length] if every_step else outputs[sample]
        torch.testing.assert_close(got, cut, atol=1e-6, rtol=1e-5)
    assert outputs.shape == ((len(lengths), 6, 3) if every_step else (len(lengths), 3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(units=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_a_twin_has_the_same_outputs_and_permuted_states(
    architecture: Architecture, units: int, seed: int
) -> None:
    network = RecurrentNetwork(
        architecture, input_size=3, hidden_size=units, output_size=2, vocabulary=9, seed=seed
    )
    before = [parameter.clone() for parameter in network.parameters()]
    twin = permuted_twin(network, torch.Generator().manual_seed(seed))
    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
    ids = torch.randint(9, (4, 8), generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(twin(ids), network(ids), atol=1e-6, rtol=1e-5)
    assert network.embedding is not None
    states, _ = network.rnn(network.embedding(ids))
    assert twin.embedding is not None
    twin_states, _ = twin.rnn(twin.embedding(ids))
    torch.testing.assert_close(twin_states, states[..., order], atol=1e-6, rtol=1e-5)
    for one, other in zip(before, network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_twin_is_not_the_same_network() -> None:
    network = RecurrentNetwork("gru", input_size=3, hidden_size=16, output_size=2, seed=0)
    twin = permuted_twin(network, torch.Generator().manual_seed(0))
    name = "weight_hh_l0"
    assert not torch.equal(twin.rnn.get_parameter(name), network.rnn.get_parameter(name))


def test_unknown_architecture() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'gru'"):
        RecurrentNetwork("gruu", input_size=1, hidden_size=1, output_size=1, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "output_size", "vocabulary"])
def test_sizes_must_be_positive(name: str) -> None:
    sizes: dict[str, Any] = {
        "input_size": 1,
        "hidden_size": 1,
        "output_size": 1,
        "vocabulary": 1,
        name: 0,
    }
    with pytest.raises(InvalidInput, match=f"positive {name}, got 0"):
        RecurrentNetwork("gru", seed=0, **sizes)


def test_inputs_of_the_wrong_kind() -> None:
    network = RecurrentNetwork("gru", input_size=1, hidden_size=1, output_size=1, seed=0)
    with pytest.raises(InvalidInput, match=r"\(sample, time, feature\), got the shape \(2, 3\)"):
        network(torch.zeros(2, 3))
