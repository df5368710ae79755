"""The residual family against its formula."""

from __future__ import annotations

import pytest
import torch

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels import ResidualMetaModel
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec, StageSpec

SPEC = PopulationSpec(
    InputSpec("array", 6, (3, 2)),
    (OutputSpec("class", (4,), "float32", "sample"),),
    tuple(StageSpec(f"stage{number}", "sample") for number in range(2)),
)


def _model() -> ResidualMetaModel:
    torch.manual_seed(0)
    return ResidualMetaModel(SPEC, embedding_dim=3, units=5).double()


def test_every_theta_runs_on_every_sample_as_written() -> None:
    model = _model()
    inputs, thetas = torch.randn(4, 3, 2).double(), torch.randn(2, 3).double()
    found = model(inputs[None], thetas[:, None], torch.ones(1, 4, dtype=torch.int64))
    for position, theta in enumerate(thetas):
        hidden = model.enter(inputs.reshape(4, 6))
        for number in range(2):
            inner = model.inner[number](hidden) + model.theta_maps[number].weight @ theta
            hidden = hidden + model.outer[number](torch.tanh(inner))
            states = found.states[f"stage{number}"]
            assert states.shape == (2, 4, 1, 5)
            torch.testing.assert_close(states[position, :, 0], hidden)
        expected = model.readouts[0](hidden)
        torch.testing.assert_close(found.outputs["class"][position], expected)


def test_options_rebuild_it() -> None:
    model = _model()
    rebuilt = ResidualMetaModel(SPEC, **model.options())  # type: ignore[arg-type]  # JSON values
    rebuilt.double().load_state_dict(model.state_dict())


def test_what_it_cannot_embed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="units must be at least 1"):
        ResidualMetaModel(SPEC, embedding_dim=3, units=0)
    steps = PopulationSpec(InputSpec("ids", 5), SPEC.outputs, (StageSpec("stage0", "time"),))
    with pytest.raises(InvalidInput, match="'transformer' for one vector per step"):
        ResidualMetaModel(steps, embedding_dim=3)
