"""In whatever units theta is written, a meta-model does the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dynamo_plugin.metamodels import (
    AmortisedStateMaps,
    GRUMetaModel,
    LSTMMetaModel,
    ResidualMetaModel,
    ResNetMetaModel,
    RNNMetaModel,
    TransformerMetaModel,
)
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec, StageSpec

DIM = 3
CLASS = OutputSpec("class", (4,), "float32", "sample")
NEXT = OutputSpec("next", (2,), "float32", "time")
FEATURES = PopulationSpec(InputSpec("features", 4), (CLASS, NEXT))
LAYERS = PopulationSpec(FEATURES.inputs, (CLASS, NEXT), tuple(StageSpec(n, "time") for n in "ab"))
VECTORS = PopulationSpec(InputSpec("array", 6, (6,)), (CLASS,), (StageSpec("a", "sample"),))
IMAGES = PopulationSpec(
    InputSpec("array", 192, (3, 8, 8)),
    (CLASS,),
    tuple(StageSpec(f"s{i}", "sample", (8 >> i, 8 >> i)) for i in range(3)),
)

FAMILIES: dict[str, Callable[[], MetaModel]] = {
    "gru": lambda: GRUMetaModel(FEATURES, embedding_dim=DIM, units=6),
    "shared readout": lambda: RNNMetaModel(FEATURES, embedding_dim=DIM, units=6, readout="shared"),
    "film": lambda: LSTMMetaModel(FEATURES, embedding_dim=DIM, units=6, conditioning="film"),
    "low rank": lambda: GRUMetaModel(FEATURES, embedding_dim=DIM, units=6, conditioning="low_rank"),
    "transformer": lambda: TransformerMetaModel(LAYERS, embedding_dim=DIM, units=8),
    "transformer film": lambda: TransformerMetaModel(
        LAYERS, embedding_dim=DIM, units=8, conditioning="film"
    ),
    "residual": lambda: ResidualMetaModel(VECTORS, embedding_dim=DIM, units=6),
    "resnet": lambda: ResNetMetaModel(IMAGES, embedding_dim=DIM, depth=8, width=4),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_meta_model_in_other_units_does_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name]().double().eval()
    for parameter in model.parameters():  # not where some of them start, at zero
        nn.init.normal_(parameter, std=0.3)
    shape = model.spec.inputs.shape if model.spec.inputs.kind == "array" else (5, 4)
    inputs = torch.randn(1, 3, *shape).double()
    lengths = torch.tensor([[5, 2, 3]]) if model.spec.inputs.kind != "array" else torch.ones(1, 3)
    thetas = torch.randn(2, 1, DIM).double()
    factors = torch.tensor([0.03, 1.0, 7.0]).double()
    before = model(inputs, thetas, lengths.long())
    moved = model(inputs, thetas * factors, lengths.long())
    model.rescale_theta(factors)
    after = model(inputs, thetas * factors, lengths.long())
    for found, expected, other in (
        (after.states, before.states, moved.states),
        (after.outputs, before.outputs, moved.outputs),
    ):
        for key, values in expected.items():
            torch.testing.assert_close(found[key], values)
            assert not torch.allclose(other[key], values)


def test_so_does_a_map_that_theta_bends() -> None:
    torch.manual_seed(0)
    maps = AmortisedStateMaps(5, [3, 4], embedding_dim=2).double()
    maps.weight.data.normal_()
    states, models = torch.randn(2, 3, 4, 5).double(), torch.arange(2)
    thetas, factors = torch.randn(2, DIM).double(), torch.tensor([0.1, 3.0, 5.0]).double()
    before = maps(states, models, thetas)
    maps.rescale_theta(factors)
    torch.testing.assert_close(maps(states, models, thetas * factors), before)
    longer = thetas * factors + torch.tensor([0.0, 0.0, 1.0])  # what lies past its dimensions
    torch.testing.assert_close(maps(states, models, longer), before)
