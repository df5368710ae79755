"""The recurrent families against PyTorch's modules on the concatenation [x ; theta]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels import (
    GRUMetaModel,
    LSTMMetaModel,
    RecurrentMetaModel,
    RNNMetaModel,
)
from dynamo_plugin.metamodels.recurrent import Conditioning
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec

UNITS, DIM = 7, 3
FEATURES = PopulationSpec(
    InputSpec("features", 4),
    (
        OutputSpec("digit.s", (5,), "float32", "sample"),
        OutputSpec("memory", (2, 3), "float32", "time"),
    ),
)
IDS = PopulationSpec(InputSpec("ids", 11), (OutputSpec("word", (2,), "float32", "sample"),))


FAMILIES: list[tuple[type[RecurrentMetaModel], Callable[..., nn.RNNBase]]] = [
    (GRUMetaModel, nn.GRU),
    (LSTMMetaModel, nn.LSTM),
    (RNNMetaModel, nn.RNN),
]
families = pytest.mark.parametrize("family", [ours for ours, _ in FAMILIES])
conditionings = pytest.mark.parametrize("conditioning", ["bias", "film", "low_rank"])


def _model(
    spec: PopulationSpec, family: type[RecurrentMetaModel] = GRUMetaModel, **options: Any
) -> RecurrentMetaModel:
    torch.manual_seed(0)
    model = family(spec, embedding_dim=DIM, units=UNITS, **options).double()
    for name, parameter in model.named_parameters():
        if name in ("gain_theta", "left_theta"):  # zero at first
            nn.init.normal_(parameter, std=0.5)
    return model


def _reference(
    torchs: Callable[..., nn.RNNBase], model: RecurrentMetaModel, inputs: Tensor, theta: Tensor
) -> Tensor:
    """Run torch's own module, with the same weights, on [x ; theta] of one theta; return h."""
    width = model.weight_input.shape[1]
    weight, offset = model.recurrent_weights(theta)
    module = torchs(width + DIM, UNITS, batch_first=True).double()
    module.load_state_dict(
        {
            "weight_ih_l0": torch.cat([model.weight_input, model.weight_theta], dim=1),
            "weight_hh_l0": weight,
            "bias_ih_l0": model.bias_input,
            "bias_hh_l0": offset,
        }
    )
    repeated = theta.expand(*inputs.shape[:2], -1)
    states: Tensor = module(torch.cat([model.embed(inputs), repeated], dim=-1))[0]
    return states


@pytest.mark.parametrize(("ours", "torchs"), FAMILIES)
@pytest.mark.parametrize("spec", [FEATURES, IDS], ids=["features", "ids"])
@conditionings
def test_states_are_those_of_torch_on_the_concatenation(
    ours: type[RecurrentMetaModel],
    torchs: Callable[..., nn.RNNBase],
    spec: PopulationSpec,
    conditioning: str,
) -> None:
    model = _model(spec, ours, conditioning=conditioning, rank=2)
    inputs = (
        torch.randn(6, 9, 4).double()
        if spec.inputs.kind == "features"
        else torch.randint(0, 11, (6, 9))
    )
    thetas = torch.randn(2, DIM).double()
    grid = model(inputs[None], thetas[:, None], torch.full((1, 6), 9)).states["hidden"]
    assert grid.shape == (2, 6, 9, model.units)
    for theta, states in zip(thetas, grid, strict=True):
        expected = _reference(torchs, model, inputs, theta)
        torch.testing.assert_close(states[..., :UNITS], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditioning", ["film", "low_rank"])
def test_weights_follow_theta_as_written(conditioning: str) -> None:
    model = _model(FEATURES, conditioning=conditioning, rank=2)
    theta = torch.randn(DIM).double()
    weight, offset = model.recurrent_weights(theta)
    if conditioning == "film":
        gain = 1 + model.gain_theta @ theta
        expected = torch.diag(gain) @ model.weight_hidden, gain * model.bias_hidden
    else:
        expected = model.weight_hidden.clone(), model.bias_hidden
        for k in range(DIM):
            expected[0].add_(theta[k] * model.left_theta[k] @ model.right_theta[k])
    torch.testing.assert_close((weight, offset), expected, rtol=1e-12, atol=1e-12)


@families
@conditionings
def test_a_new_network_is_the_plain_one(
    family: type[RecurrentMetaModel], conditioning: Conditioning
) -> None:
    torch.manual_seed(0)
    model = family(FEATURES, embedding_dim=DIM, units=UNITS, conditioning=conditioning)
    weight, offset = model.recurrent_weights(torch.randn(DIM))
    assert torch.equal(weight, model.weight_hidden)
    assert torch.equal(offset, model.bias_hidden)


@families
@conditionings
def test_every_theta_runs_on_every_sequence(
    family: type[RecurrentMetaModel], conditioning: str
) -> None:
    model = _model(FEATURES, family, conditioning=conditioning)
    inputs, thetas = torch.randn(5, 6, 4).double(), torch.randn(3, DIM).double()
    lengths = torch.tensor([6, 2, 3, 1, 6])
    grid = model(inputs[None], thetas[:, None], lengths[None])
    assert grid.states["hidden"].shape == (3, 5, 6, model.units)
    for position, theta in enumerate(thetas):
        alone = model(inputs, theta, lengths)
        torch.testing.assert_close(grid.states["hidden"][position], alone.states["hidden"])
        for group, outputs in alone.outputs.items():
            torch.testing.assert_close(grid.outputs[group][position], outputs)


@families
@conditionings
def test_stepping_is_running(family: type[RecurrentMetaModel], conditioning: str) -> None:
    model = _model(IDS, family, conditioning=conditioning)
    inputs, theta = torch.randint(0, 11, (4, 5)), torch.randn(4, DIM).double()
    states = model(inputs, theta, torch.full((4,), 5)).states["hidden"]
    state = torch.zeros(4, model.units).double()
    for time in range(5):
        state = model.step(inputs[:, time], theta, state)
        torch.testing.assert_close(state, states[:, time], rtol=1e-12, atol=1e-12)


@families
def test_outputs_are_read_at_the_last_real_step_or_at_every_step(
    family: type[RecurrentMetaModel],
) -> None:
    model = _model(FEATURES, family)
    inputs, theta = torch.randn(4, 6, 4).double(), torch.randn(DIM).double()
    lengths = torch.tensor([1, 6, 3, 2])
    trajectory = model(inputs, theta, lengths)
    states = trajectory.states["hidden"][..., :UNITS]
    final = torch.stack([states[i, length - 1] for i, length in enumerate(lengths)])
    first, second = model.readouts
    torch.testing.assert_close(trajectory.outputs["digit.s"], first(final))
    assert trajectory.outputs["memory"].shape == (4, 6, 2, 3)
    torch.testing.assert_close(trajectory.outputs["memory"].flatten(2), second(states))


@families
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), padding=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_padding_changes_neither_loss_nor_gradient(
    family: type[RecurrentMetaModel], lengths: list[int], padding: int
) -> None:
    model = _model(IDS, family)
    theta = torch.randn(DIM).double()
    sequences = [torch.randint(0, 11, (length,)) for length in lengths]

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    padded = nn.functional.pad(padded, (0, padding), value=3)
    together = model(padded, theta, torch.tensor(lengths)).outputs["word"].square().sum()
    alone = sum(
        model(sequence[None], theta, torch.tensor([len(sequence)])).outputs["word"].square().sum()
        for sequence in sequences
    )
    assert isinstance(alone, Tensor)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    for one, other in zip(gradients(together), gradients(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@families
@conditionings
def test_options_rebuild_it(family: type[RecurrentMetaModel], conditioning: str) -> None:
    model = _model(IDS, family, token_dim=5, conditioning=conditioning, rank=2)
    rebuilt = family(IDS, **model.options())  # type: ignore[arg-type]  # JSON values
    rebuilt.double().load_state_dict(model.state_dict())
    inputs, theta = torch.randint(0, 11, (2, 3)), torch.randn(DIM).double()
    lengths = torch.tensor([3, 3])
    assert torch.equal(
        rebuilt(inputs, theta, lengths).outputs["word"],
        model(inputs, theta, lengths).outputs["word"],
    )


@pytest.mark.parametrize("name", ["embedding_dim", "units", "token_dim", "rank"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} must be at least 1, got 0"):
        GRUMetaModel(IDS, **{"embedding_dim": 2, name: 0})  # type: ignore[arg-type]


def test_unknown_conditioning_and_arrays_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"no conditioning 'fiml'.*film"):
        GRUMetaModel(IDS, embedding_dim=2, conditioning="fiml")  # type: ignore[arg-type]
    images = PopulationSpec(InputSpec("array", 12, (3, 2, 2)), IDS.outputs)
    with pytest.raises(InvalidInput, match="reads sequences"):
        GRUMetaModel(images, embedding_dim=2)


@families
def test_a_conditional_readout_is_an_affine_map_of_each_theta(
    family: type[RecurrentMetaModel],
) -> None:
    model = _model(FEATURES, family, readout="conditional")
    plain = _model(FEATURES, family)
    inputs, lengths = torch.randn(6, 5, 4).double(), torch.tensor([5, 1, 3, 2, 5, 4])
    thetas = torch.randn(2, DIM).double()
    run = (inputs[None], thetas[:, None], lengths[None])
    before = model(*run)
    for group, outputs in plain(*run).outputs.items():  # it starts as the shared one
        assert torch.equal(before.outputs[group], outputs)
    assert model.readout_theta is not None
    for slope in model.readout_theta:
        nn.init.normal_(slope)
    found = model(*run)
    assert torch.equal(found.states["hidden"], before.states["hidden"])
    for index, output in enumerate(FEATURES.outputs):
        for row, theta in enumerate(thetas):
            bend = sum(
                t * slope for t, slope in zip(theta, model.readout_theta[index], strict=True)
            )
            head = model.readouts[index]
            assert isinstance(bend, Tensor)
            assert isinstance(head, nn.Linear)
            states = found.states["hidden"][row][..., :UNITS]
            if output.axis == "sample":
                states = states[torch.arange(6), lengths - 1]
            expected = states @ (head.weight.T + bend[:-1]) + head.bias + bend[-1]
            torch.testing.assert_close(
                found.outputs[output.group][row], expected.unflatten(-1, output.shape)
            )
    with pytest.raises(InvalidInput, match="Did you mean 'conditional'"):
        _model(FEATURES, readout="conditonal")
