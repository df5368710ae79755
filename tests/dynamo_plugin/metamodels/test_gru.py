"""The GRU family against `torch.nn.GRU` on the concatenation [x ; theta]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels import GRUMetaModel
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


def _model(spec: PopulationSpec, seed: int = 0, **options: Any) -> GRUMetaModel:
    torch.manual_seed(seed)
    return GRUMetaModel(spec, embedding_dim=DIM, units=UNITS, **options).double()


def _reference(model: GRUMetaModel, inputs: Tensor, theta: Tensor) -> Tensor:
    """Run torch's own GRU, with the same weights, on [x ; theta]."""
    width = model.weight_input.shape[1]
    gru = nn.GRU(width + DIM, UNITS, batch_first=True).double()
    gru.load_state_dict(
        {
            "weight_ih_l0": torch.cat([model.weight_input, model.weight_theta], dim=1),
            "weight_hh_l0": model.weight_hidden,
            "bias_ih_l0": model.bias_input,
            "bias_hh_l0": model.bias_hidden,
        }
    )
    embedded = model.embed(inputs)
    repeated = theta[:, None].expand(-1, inputs.shape[1], -1)
    states: Tensor = gru(torch.cat([embedded, repeated], dim=-1))[0]
    return states


@pytest.mark.parametrize("spec", [FEATURES, IDS], ids=["features", "ids"])
def test_states_are_those_of_torch_on_the_concatenation(spec: PopulationSpec) -> None:
    model = _model(spec)
    inputs = (
        torch.randn(6, 9, 4).double()
        if spec.inputs.kind == "features"
        else torch.randint(0, 11, (6, 9))
    )
    theta = torch.randn(6, DIM).double()
    states = model(inputs, theta, torch.full((6,), 9)).states["hidden"]
    torch.testing.assert_close(states, _reference(model, inputs, theta), rtol=1e-10, atol=1e-12)


def test_every_theta_runs_on_every_sequence() -> None:
    model = _model(FEATURES)
    inputs, thetas = torch.randn(5, 6, 4).double(), torch.randn(3, DIM).double()
    lengths = torch.tensor([6, 2, 3, 1, 6])
    grid = model(inputs[None], thetas[:, None], lengths[None])
    assert grid.states["hidden"].shape == (3, 5, 6, UNITS)
    for position, theta in enumerate(thetas):
        alone = model(inputs, theta, lengths)
        torch.testing.assert_close(grid.states["hidden"][position], alone.states["hidden"])
        for group, outputs in alone.outputs.items():
            torch.testing.assert_close(grid.outputs[group][position], outputs)


def test_stepping_is_running() -> None:
    model = _model(IDS)
    inputs, theta = torch.randint(0, 11, (4, 5)), torch.randn(4, DIM).double()
    states = model(inputs, theta, torch.full((4,), 5)).states["hidden"]
    state = torch.zeros(4, UNITS).double()
    for time in range(5):
        state = model.step(inputs[:, time], theta, state)
        torch.testing.assert_close(state, states[:, time], rtol=1e-12, atol=1e-12)


def test_outputs_are_read_at_the_last_real_step_or_at_every_step() -> None:
    model = _model(FEATURES)
    inputs, theta = torch.randn(4, 6, 4).double(), torch.randn(DIM).double()
    lengths = torch.tensor([1, 6, 3, 2])
    trajectory = model(inputs, theta, lengths)
    states = trajectory.states["hidden"]
    final = torch.stack([states[i, length - 1] for i, length in enumerate(lengths)])
    first, second = model.readouts
    torch.testing.assert_close(trajectory.outputs["digit.s"], first(final))
    assert trajectory.outputs["memory"].shape == (4, 6, 2, 3)
    torch.testing.assert_close(trajectory.outputs["memory"].flatten(2), second(states))


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), padding=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_padding_changes_neither_loss_nor_gradient(lengths: list[int], padding: int) -> None:
    model = _model(IDS)
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


def test_options_rebuild_it() -> None:
    model = _model(IDS, token_dim=5)
    rebuilt = GRUMetaModel(IDS, **model.options())  # type: ignore[arg-type]  # JSON values
    rebuilt.double().load_state_dict(model.state_dict())
    inputs, theta = torch.randint(0, 11, (2, 3)), torch.randn(DIM).double()
    lengths = torch.tensor([3, 3])
    assert torch.equal(
        rebuilt(inputs, theta, lengths).outputs["word"],
        model(inputs, theta, lengths).outputs["word"],
    )


@pytest.mark.parametrize("name", ["embedding_dim", "units", "token_dim"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} must be at least 1, got 0"):
        GRUMetaModel(IDS, **{"embedding_dim": 2, name: 0})
