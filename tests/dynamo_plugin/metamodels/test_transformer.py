"""The transformer family against `torch.nn.TransformerEncoderLayer` with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels import TransformerMetaModel
from dynamo_plugin.metamodels.transformer import _positions
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec, StageSpec

UNITS, HEADS, DIM = 8, 2, 3
STAGES = tuple(StageSpec(f"stage{number}", "time") for number in range(3))
IDS = PopulationSpec(
    InputSpec("ids", 11),
    (OutputSpec("word", (2,), "float32", "sample"), OutputSpec("next", (4,), "float32", "time")),
    STAGES,
)
FEATURES = PopulationSpec(InputSpec("features", 4), IDS.outputs, STAGES)

conditionings = pytest.mark.parametrize("conditioning", ["bias", "film"])


def _model(spec: PopulationSpec = IDS, **options: Any) -> TransformerMetaModel:
    torch.manual_seed(0)
    model = TransformerMetaModel(spec, embedding_dim=DIM, units=UNITS, heads=HEADS, **options)
    for name, parameter in model.named_parameters():
        if "gains" in name or "norms" in name:  # not where they start
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.double()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("spec", [IDS, FEATURES], ids=["ids", "features"])
def test_at_theta_zero_blocks_are_those_of_torch(spec: PopulationSpec, causal: bool) -> None:
    model = _model(spec, causal=causal)
    time = 6
    if model.token_embedding is not None:
        inputs = torch.randint(0, 11, (3, time))
        stream = model.token_embedding(inputs)
    else:
        inputs = torch.randn(3, time, 4).double()
        stream = model.feature_map(inputs)
    stream = stream + _positions(time, UNITS, stream)
    states = model(inputs, torch.zeros(DIM).double(), torch.full((3,), time)).states
    torch.testing.assert_close(states["stage0"], stream)
    mask = nn.Transformer.generate_square_subsequent_mask(time, dtype=torch.float64)
    for number, block in enumerate(model.blocks):
        assert isinstance(block.norms, nn.ModuleList)
        layer = nn.TransformerEncoderLayer(
            UNITS, HEADS, 4 * UNITS, 0.0, "gelu", batch_first=True, norm_first=True
        ).double()
        pairs = (
            ("self_attn.in_proj_", block.attention),
            ("self_attn.out_proj.", block.merge),
            ("linear1.", block.inner),
            ("linear2.", block.outer),
            ("norm1.", block.norms[0]),
            ("norm2.", block.norms[1]),
        )
        layer.load_state_dict(
            {f"{a}{kind}": getattr(own, kind) for a, own in pairs for kind in ("weight", "bias")}
        )
        stream = layer(stream, src_mask=mask if causal else None)
        found = states[f"stage{number + 1}"]
        torch.testing.assert_close(found, stream, rtol=1e-9, atol=1e-10)


@conditionings
def test_every_theta_runs_on_every_sequence(conditioning: str) -> None:
    model = _model(conditioning=conditioning)
    inputs, thetas = torch.randint(0, 11, (4, 5)), torch.randn(3, DIM).double()
    lengths = torch.tensor([5, 2, 3, 1])
    grid = model(inputs[None], thetas[:, None], lengths[None])
    assert not torch.allclose(grid.states["stage2"][0], grid.states["stage2"][1])
    for position, theta in enumerate(thetas):
        alone = model(inputs, theta, lengths)
        for stage in grid.states:
            torch.testing.assert_close(grid.states[stage][position], alone.states[stage])
        for group, outputs in alone.outputs.items():
            torch.testing.assert_close(grid.outputs[group][position], outputs)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), padding=st.integers(0, 3))
@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=15, deadline=None)
def test_padding_changes_neither_loss_nor_gradient(
    causal: bool,
    lengths: list[int],
    padding: int,
) -> None:
    model = _model(causal=causal)
    theta = torch.randn(DIM).double()
    sequences = [torch.randint(0, 11, (length,)) for length in lengths]

    def loss(values: Tensor, own: list[int]) -> Tensor:
        trajectory = model(values, theta, torch.tensor(own))
        real = torch.arange(values.shape[1]) < torch.tensor(own)[:, None]
        total = trajectory.outputs["word"].square().sum()
        total = total + trajectory.outputs["next"][real].square().sum()
        for states in trajectory.states.values():
            total = total + states[real].square().sum()
        result: Tensor = total
        return result

    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    together = loss(nn.functional.pad(padded, (0, padding), value=3), lengths)
    alone = sum(loss(sequence[None], [len(sequence)]) for sequence in sequences)
    assert isinstance(alone, Tensor)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(together, parameters),
        torch.autograd.grad(alone, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_a_causal_network_sees_no_later_step() -> None:
    model, theta = _model(), torch.randn(DIM).double()
    one, other = torch.randint(0, 11, (2, 6))
    other[:4] = one[:4]
    states = [model(x[None], theta, torch.tensor([6])).states["stage2"][0] for x in (one, other)]
    torch.testing.assert_close(states[0][:4], states[1][:4])
    assert not torch.allclose(states[0][4:], states[1][4:])


@conditionings
def test_options_rebuild_it(conditioning: str) -> None:
    model = _model(conditioning=conditioning, causal=False)
    rebuilt = TransformerMetaModel(IDS, **model.options())  # type: ignore[arg-type]  # JSON values
    rebuilt.double().load_state_dict(model.state_dict())
    inputs, theta = torch.randint(0, 11, (2, 3)), torch.randn(DIM).double()
    lengths = torch.tensor([3, 3])
    found, expected = rebuilt(inputs, theta, lengths), model(inputs, theta, lengths)
    assert torch.equal(found.outputs["word"], expected.outputs["word"])


def test_what_it_cannot_embed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="multiple of heads, got 6 and 4"):
        TransformerMetaModel(IDS, embedding_dim=1, units=6)
    with pytest.raises(InvalidInput, match="bias or film, got 'low_rank'"):
        TransformerMetaModel(IDS, embedding_dim=1, conditioning="low_rank")  # type: ignore[arg-type]
    maps = PopulationSpec(IDS.inputs, IDS.outputs, (StageSpec("stage0", "sample", (2, 2)),))
    with pytest.raises(InvalidInput, match="stage0 has none"):
        TransformerMetaModel(maps, embedding_dim=1)


def test_learned_positions_are_near_an_affine_map_of_the_positions() -> None:
    """With wavelengths that begin at 2 pi, about half of their variance would be explained."""
    positions = _positions(16, 64, torch.zeros(1, dtype=torch.float64)).numpy()
    learned = np.random.default_rng(0).normal(size=(16, 200))
    # As weakly penalised as a state map is, whose features vary about as much as the positions.
    regression = Ridge(1e-3 * 16 * np.square(positions).mean()).fit(positions, learned)
    assert regression.score(positions, learned) > 0.85
