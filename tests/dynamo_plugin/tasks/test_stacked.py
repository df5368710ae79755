from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.tasks.network import Architecture, RecurrentNetwork
from dynamo_plugin.tasks.stacked import StackedRecurrent
from dynamo_plugin.tasks.train import train_stacked

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
SIZES = (5, 9, 7)
VOCABULARY, SAMPLES, TIME = 11, 6, 8


def make(
    architecture: Architecture, *, ids: bool = False, every_step: bool = False
) -> list[RecurrentNetwork]:
    return [
        RecurrentNetwork(
            architecture,
            input_size=4,
            hidden_size=size,
            output_size=3,
            vocabulary=VOCABULARY if ids else None,
            every_step=every_step,
            seed=size,
        )
        for size in SIZES
    ]


def make_inputs(*, ids: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (len(SIZES), SAMPLES, TIME)
    if ids:
        return torch.randint(VOCABULARY, shape, generator=generator)
    return torch.randn(*shape, 4, generator=generator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_stack_computes_what_its_networks_do(
    architecture: Architecture, ids: bool, every_step: bool, ragged: bool
) -> None:
    networks = make(architecture, ids=ids, every_step=every_step)
    stack = StackedRecurrent(networks)
    inputs = make_inputs(ids=ids)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, TIME + 1, (len(SIZES), SAMPLES), generator=generator)
    together = stack(inputs, lengths if ragged else None)
    for index, network in enumerate(networks):
        alone = network(inputs[index], lengths[index] if ragged else None)
        got = together[index]
        if ragged and every_step:  # beyond the end, outputs mean nothing
            real = torch.arange(TIME) < lengths[index][:, None]
            got, alone = got[real], alone[real]
        torch.testing.assert_close(got, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_units_stay_exactly_zero_under_training(architecture: Architecture) -> None:
    stack = StackedRecurrent(make(architecture, every_step=True))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, TIME, 4, generator=generator)
    targets = torch.randn(20, TIME, 3, generator=generator)
    before = stack.weight_hh.detach().clone()
    train_stacked(stack, inputs, targets, loss="mse", seeds=(0, 1, 2), steps=5)
    assert not torch.equal(before, stack.weight_hh)
    units = max(SIZES)
    states = torch.stack(stack.states(inputs.expand(len(SIZES), -1, -1, -1)))
    for index, own in enumerate(SIZES):
        hidden = stack.weight_hh[index].reshape(-1, units, units)
        assert hidden[:, own:].count_nonzero() == 0
        assert hidden[:, :, own:].count_nonzero() == 0
        assert stack.weight_ih[index].reshape(-1, units, 4)[:, own:].count_nonzero() == 0
        assert stack.bias_ih[index].reshape(-1, units)[:, own:].count_nonzero() == 0
        assert stack.bias_hh[index].reshape(-1, units)[:, own:].count_nonzero() == 0
        assert stack.readout_weight[index, :, own:].count_nonzero() == 0
        assert states[:, index, :, own:].count_nonzero() == 0
        assert states[:, index, :, :own].count_nonzero() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("ids", [False, True])
def test_unstacking_gives_back_the_networks(architecture: Architecture, ids: bool) -> None:
    networks = make(architecture, ids=ids)
    for network, back in zip(networks, StackedRecurrent(networks).unstack(), strict=True):
        assert not back.training
        expected, got = network.state_dict(), back.state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unstacked_networks_agree_with_the_trained_stack(architecture: Architecture) -> None:
    stack = StackedRecurrent(make(architecture, ids=True))
    inputs = torch.randint(VOCABULARY, (30, TIME), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(30) % TIME + 1
    targets = inputs[:, 0] % 3
    train_stacked(
        stack, inputs, targets, loss="cross_entropy", seeds=(0, 1, 2), lengths=lengths, steps=5
    )
    together = stack.predict(inputs, lengths)
    for index, network in enumerate(stack.unstack()):
        torch.testing.assert_close(together[index], network(inputs, lengths), atol=1e-5, rtol=0)


def test_networks_are_copied() -> None:
    networks = make("gru")
    before = networks[0].rnn.get_parameter("weight_hh_l0").detach().clone()
    stack = StackedRecurrent(networks)
    with torch.no_grad():
        stack.weight_hh.zero_()
    assert torch.equal(networks[0].rnn.get_parameter("weight_hh_l0"), before)


def test_gradients_do_not_mix() -> None:
    stack = StackedRecurrent(make("gru"))
    outputs = stack(make_inputs(ids=False))
    torch.autograd.backward(outputs[1].square().sum())
    for parameter in stack.parameters():
        assert parameter.grad is not None
        assert parameter.grad[[0, 2]].count_nonzero() == 0
        assert parameter.grad[1].count_nonzero() > 0


def test_prediction_does_not_depend_on_the_batch_size() -> None:
    stack = StackedRecurrent(make("lstm", ids=True))
    inputs = make_inputs(ids=True)[0]
    lengths = torch.tensor([1, 8, 3, 5, 2, 8])
    whole = stack.predict(inputs, lengths)
    torch.testing.assert_close(whole, stack.predict(inputs, lengths, batch_size=4))
    assert not whole.requires_grad


def test_nothing_to_stack() -> None:
    with pytest.raises(InvalidInput, match="at least one network"):
        StackedRecurrent([])


def test_networks_that_differ() -> None:
    with pytest.raises(InvalidInput, match="network 1 has"):
        StackedRecurrent([make("gru")[0], make("lstm")[0]])


def test_an_id_out_of_the_vocabulary_never_reads_a_neighbours_table() -> None:
    stack = StackedRecurrent(make("gru", ids=True))
    inputs = make_inputs(ids=True)
    for wrong in (VOCABULARY, -1):
        inputs[0, 0, 0] = wrong
        with pytest.raises(InvalidInput, match="ids from 0 to 10"):
            stack(inputs)


@pytest.mark.parametrize(
    "shape", [(3, 6, 8), (2, 6, 8, 4), (3, 6, 8, 5), (3, 0, 8, 4), (3, 6, 0, 4)]
)
def test_inputs_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="Expected"):
        StackedRecurrent(make("rnn"))(torch.zeros(shape))


@pytest.mark.parametrize("lengths", [torch.full((3, 6), 9), torch.zeros(3, 6), torch.ones(3, 5)])
def test_lengths_that_do_not_fit(lengths: Tensor) -> None:
    with pytest.raises(InvalidInput, match="Expected lengths"):
        StackedRecurrent(make("rnn"))(torch.zeros(3, 6, 8, 4), lengths.long())


def test_nothing_to_predict() -> None:
    with pytest.raises(InvalidInput, match="at least one sample"):
        StackedRecurrent(make("rnn")).predict(torch.zeros(0, 8, 4))
