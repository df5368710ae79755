"""The convolutional family against a residual network written out, layer after layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels import ResNetMetaModel
from dynamo_plugin.metamodels.resnet import _Block
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec, StageSpec

DIM = 3
OUTPUTS = (OutputSpec("class", (4,), "float32", "sample"),)


def _spec(positions: list[int], size: int = 8) -> PopulationSpec:
    stages = (StageSpec(f"stage{i}", "sample", (p, p)) for i, p in enumerate(positions))
    return PopulationSpec(
        InputSpec("array", 3 * size * size, (3, size, size)), OUTPUTS, tuple(stages)
    )


def _model(spec: PopulationSpec | None = None, **options: Any) -> ResNetMetaModel:
    torch.manual_seed(0)
    options = {"depth": 10, "width": 4, **options}
    model = ResNetMetaModel(spec or _spec([8, 4, 2, 1]), embedding_dim=DIM, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return model.double().eval()


def _written_out(model: ResNetMetaModel, images: Tensor, theta: Tensor) -> list[Tensor]:
    """Return the output of every stage, of a block: relu(branch + shortcut + W theta)."""
    maps = model.stem(images)
    outputs = []
    for blocks, theta_map in zip(model.stages, model.theta_maps, strict=True):
        assert isinstance(blocks, nn.ModuleList)
        assert isinstance(theta_map, nn.Linear)
        for block in blocks:
            assert isinstance(block, _Block)
            out = maps
            for layer in block.branch:
                if isinstance(layer, nn.Conv2d):
                    out = F.conv2d(out, layer.weight, None, layer.stride, layer.padding)
                elif isinstance(layer, nn.BatchNorm2d):
                    assert layer.running_mean is not None
                    assert layer.running_var is not None
                    centred = out - layer.running_mean[:, None, None]
                    out = centred / (layer.running_var[:, None, None] + layer.eps).sqrt()
                    out = out * layer.weight[:, None, None] + layer.bias[:, None, None]
                else:
                    out = out.clamp(min=0)
            short = maps if isinstance(block.shortcut, nn.Identity) else block.shortcut(maps)
            shift = theta_map.weight @ theta
            maps = (out + short + shift[None, :, None, None]).clamp(min=0)
        outputs.append(maps)
    return outputs


@pytest.mark.parametrize(
    "options", [{}, {"depth": 18}, {"blocks": [1, 2, 1, 1], "block": "bottleneck"}]
)
def test_stages_are_those_of_the_network_written_out(options: dict[str, Any]) -> None:
    model = _model(**options)
    images, thetas = torch.randn(5, 3, 8, 8).double(), torch.randn(2, DIM).double()
    found = model(images[None], thetas[:, None], torch.ones(1, 5, dtype=torch.int64))
    for position, theta in enumerate(thetas):
        expected = _written_out(model, images, theta)
        for number, maps in enumerate(expected):
            states = found.states[f"stage{number}"][position]
            assert states.shape == (5, maps.shape[2] * maps.shape[3], maps.shape[1])
            torch.testing.assert_close(states, maps.flatten(2).transpose(1, 2))
            assert maps.shape[1] == model.stage_units[f"stage{number}"]
        readout = model.readouts[0](expected[-1].mean((2, 3)))
        torch.testing.assert_close(found.outputs["class"][position], readout)


def test_blocks_of_one_width_share_their_theta_map() -> None:
    model = _model(depth=34)
    assert [tuple(weight.shape) for weight in model.theta_maps.parameters()] == [
        (4, DIM), (8, DIM), (16, DIM), (32, DIM),
    ]  # fmt: skip
    assert model.counts == (3, 4, 6, 3)


@pytest.mark.parametrize(("depth", "counts", "units"), [(8, (1, 1, 1), 64), (20, (3, 3, 3), 64)])
def test_three_stages_make_the_networks_for_small_images(
    depth: int, counts: tuple[int, ...], units: int
) -> None:
    model = ResNetMetaModel(_spec([8, 4, 2]), embedding_dim=DIM, depth=depth)
    assert model.counts == counts
    assert model.units == units


def test_base_models_on_a_coarser_grid_are_met_by_averages() -> None:
    fine, coarse = _model(), _model(_spec([4, 4, 1, 1]))
    images, theta = torch.randn(2, 3, 8, 8).double(), torch.randn(DIM).double()
    ones = torch.ones(2, dtype=torch.int64)
    whole, pooled = fine(images, theta, ones).states, coarse(images, theta, ones).states
    maps = whole["stage0"].transpose(1, 2).unflatten(2, (8, 8))
    averaged = maps.reshape(2, -1, 4, 2, 4, 2).mean((3, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled["stage0"], averaged)
    torch.testing.assert_close(pooled["stage1"], whole["stage1"])
    torch.testing.assert_close(pooled["stage2"][:, 0], whole["stage2"].mean(1))


def test_group_norm_treats_every_sample_alone_in_training_too() -> None:
    model = _model(norm="group").train()
    images, theta = torch.randn(4, 3, 8, 8).double(), torch.randn(DIM).double()
    together = model(images, theta, torch.ones(4, dtype=torch.int64)).outputs["class"]
    alone = model(images[1:2], theta, torch.ones(1, dtype=torch.int64)).outputs["class"]
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize(
    ("size", "positions", "stem"),
    [
        (32, [32, 16, 8], 1),
        (32, [16, 8, 4], 2),
        (15, [8, 4, 2, 1], 2),  # odd sides are rounded up, as by convolutions
        (64, [64, 32, 16], 1),
        (64, [32, 16, 8], 2),
        (64, [16, 8, 4], 4),
        (32, [1, 1, 1], 1),  # averaged when they were captured: there is none that fits
        (64, [1, 1, 1], 4),
    ],
)
def test_the_stem_gives_stages_the_positions_that_were_recorded(
    size: int, positions: list[int], stem: int
) -> None:
    model = _model(_spec(positions, size), depth=None, blocks=[1] * len(positions))
    entered: list[tuple[int, ...]] = []
    hook = model.stem.register_forward_hook(
        lambda module, given, maps: entered.append(tuple(maps.shape[2:]))
    )
    ones = torch.ones(2, dtype=torch.int64)
    states = model(torch.randn(2, 3, size, size).double(), torch.zeros(DIM).double(), ones).states
    hook.remove()
    assert entered == [(-(-size // stem),) * 2]
    assert [states[f"stage{i}"].shape[1] for i in range(len(positions))] == [
        p * p for p in positions
    ]


def test_large_images_get_the_large_stem() -> None:
    model = ResNetMetaModel(_spec([16, 8, 4, 2], 64), embedding_dim=DIM, depth=10, width=4)
    states = model(torch.randn(2, 3, 64, 64), torch.zeros(DIM), torch.ones(2, dtype=torch.int64))
    assert states.states["stage0"].shape == (2, 256, 4)


@pytest.mark.parametrize("options", [{}, {"depth": 50}, {"norm": "group", "stem": "small"}])
def test_options_rebuild_it(options: dict[str, Any]) -> None:
    model = _model(**options)
    spec = model.spec
    rebuilt = ResNetMetaModel(spec, **model.options())  # type: ignore[arg-type]  # JSON values
    rebuilt.double().eval().load_state_dict(model.state_dict())
    images, ones = torch.randn(2, 3, 8, 8).double(), torch.ones(2, dtype=torch.int64)
    theta = torch.randn(DIM).double()
    expected = model(images, theta, ones).outputs["class"]
    assert torch.equal(rebuilt(images, theta, ones).outputs["class"], expected)


def test_what_it_cannot_embed_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"depth 12 with 4 stages.*10, 18, 34"):
        _model(depth=12)
    with pytest.raises(InvalidInput, match=r"recorded at 4 sites, and blocks=.* makes 2 stages"):
        _model(blocks=[1, 1])
    with pytest.raises(InvalidInput, match="norm must be one of batch, group, got 'layer'"):
        _model(norm="layer")
    vectors = PopulationSpec(_spec([1]).inputs, OUTPUTS, (StageSpec("stage0", "sample"),))
    with pytest.raises(InvalidInput, match="stage0 has none"):
        ResNetMetaModel(vectors, embedding_dim=1)
    ids = PopulationSpec(InputSpec("ids", 3), OUTPUTS, _spec([1]).stages)
    with pytest.raises(InvalidInput, match="reads images"):
        ResNetMetaModel(ids, embedding_dim=1)
