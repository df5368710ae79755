"""The layers adapter against forward passes written out by hand."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from dynamo_hooks.torch_layers import TorchLayersAdapter
from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec


def arrays(*shape: int, dtype: torch.dtype = torch.float32) -> SequenceBatch:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    return SequenceBatch(values, torch.ones(shape[0], dtype=torch.int64), has_time=False)


def sequences(lengths: list[int], features: int = 2) -> SequenceBatch:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randn(len(lengths), max(lengths), features, generator=generator)
    counted = torch.tensor(lengths)
    values[torch.arange(max(lengths))[None, :] >= counted[:, None]] = 0
    return SequenceBatch(values, counted)


def captured(
    model: nn.Module, batch: SequenceBatch, **options: Any
) -> tuple[TrajectorySpec, Trajectory]:
    adapter = TorchLayersAdapter(**options)
    assert adapter.supports(model)
    spec = adapter.describe(model, batch)
    assert json.loads(json.dumps(dict(spec.options))) == spec.options
    trajectory = adapter.record(model, batch, spec)
    for tensor in (*trajectory.states.values(), *trajectory.outputs.values()):
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
    return spec, trajectory


def output_of(trajectory: Trajectory) -> Tensor:
    (output,) = trajectory.outputs.values()
    return output


# --- residual networks -------------------------------------------------------------------------


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Any:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Any:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """The structure and the names of torchvision's networks, small."""

    def __init__(self, block: type[BasicBlock | Bottleneck], blocks: int = 2) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 4, 7, 2), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 4
        for index in range(4):
            width = 4 * 2**index
            layers = []
            for repeat in range(blocks):
                layers.append(block(inputs, width, 2 if index and not repeat else 1))
                inputs = width * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(4):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def trained(model: nn.Module) -> nn.Module:
    """Give batch norms something to have learned."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator).mul_(0.1)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


def normed(x: Tensor, bn: Any) -> Tensor:
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)


def conv(x: Tensor, module: Any) -> Tensor:
    return F.conv2d(x, module.weight, None, module.stride, module.padding)


def residual_by_hand(model: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Written out with plain operations, nothing in place."""
    x = F.max_pool2d(normed(conv(x, model.conv1), model.bn1).relu(), 3, 2, 1)
    stages = []
    for index in range(4):
        for block in model.get_submodule(f"layer{index + 1}"):
            identity = x
            if block.downsample is not None:
                identity = normed(conv(x, block.downsample[0]), block.downsample[1])
            out = normed(conv(x, block.conv1), block.bn1).relu()
            out = normed(conv(out, block.conv2), block.bn2)
            if isinstance(block, Bottleneck):
                out = normed(conv(out.relu(), block.conv3), block.bn3)
            x = (out + identity).relu()
        stages.append(x)
    return stages, x.mean(dim=(2, 3)) @ model.fc.weight.T + model.fc.bias


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("samples", [1, 3])
@torch.no_grad()
def test_stages_of_residual_networks(block: type[BasicBlock | Bottleneck], samples: int) -> None:
    torch.manual_seed(0)
    model = trained(Residual(block))
    batch = arrays(samples, 3, 32, 32)
    spec, trajectory = captured(model, batch)
    assert [site.name for site in spec.sites] == ["layer1", "layer2", "layer3", "layer4"]
    assert {site.axis for site in spec.sites} == {"sample"}
    width = 4 * block.expansion
    assert [site.shape for site in spec.sites] == [
        (width, 8, 8),
        (2 * width, 4, 4),
        (4 * width, 2, 2),
        (8 * width, 1, 1),
    ]
    stages, logits = residual_by_hand(model, batch.values)
    for site, expected in zip(spec.sites, stages, strict=True):
        torch.testing.assert_close(trajectory.states[site.name], expected)
    assert (spec.output.group, spec.output.shape, spec.output.axis) == ("output5", (5,), "sample")
    torch.testing.assert_close(output_of(trajectory), logits)


@torch.no_grad()
def test_in_place_work_does_not_reach_a_state() -> None:
    """`bn2` is followed by `+=` and an in-place ReLU, `bn1` and `conv1` by in-place work too."""
    torch.manual_seed(0)
    model: Any = trained(Residual(BasicBlock, blocks=1))
    batch = arrays(2, 3, 32, 32)
    layers = ["conv1", "bn1", "relu", "layer1.0.bn2", "layer1.0"]
    spec, trajectory = captured(model, batch, layers=layers)
    assert [site.name for site in spec.sites] == layers
    stem = conv(batch.values, model.conv1)
    x = F.max_pool2d(normed(stem, model.bn1).relu(), 3, 2, 1)
    block = model.layer1[0]
    inside = normed(conv(normed(conv(x, block.conv1), block.bn1).relu(), block.conv2), block.bn2)
    expected = [stem, normed(stem, model.bn1), normed(stem, model.bn1).relu(), inside]
    expected.append((inside + x).relu())
    assert (expected[1] < 0).any()  # what an in-place ReLU would have taken away
    for name, state in zip(layers, expected, strict=True):
        torch.testing.assert_close(trajectory.states[name], state)


def test_last_batches_may_be_small() -> None:
    model = Residual(BasicBlock, blocks=1)
    adapter = TorchLayersAdapter()
    batch = arrays(5, 3, 32, 32)
    spec = adapter.describe(model, batch)
    whole = adapter.record(model, batch, spec)
    last = SequenceBatch(batch.values[4:], batch.lengths[4:], has_time=False)
    part = adapter.record(model, last, spec)
    for name, state in part.states.items():
        torch.testing.assert_close(state, whole.states[name][4:])
    torch.testing.assert_close(output_of(part), output_of(whole)[4:])


class Stages(nn.Module):
    """The structure of timm's networks: names say nothing, `feature_info` does."""

    def __init__(self, info: Any = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.blocks = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1))
        self.head = nn.Linear(8, 5)
        described = [
            {"num_chs": 4, "reduction": 2, "module": "stem"},
            {"num_chs": 6, "reduction": 4, "module": "blocks.0"},
            {"num_chs": 8, "reduction": 8, "module": "blocks.1"},
        ]
        self.feature_info = described if info is None else info(described)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


class FeatureInfo:
    def __init__(self, info: list[dict[str, Any]]) -> None:
        self.info = info

    def module_name(self) -> list[str]:
        return [entry["module"] for entry in self.info]

    def get_dicts(self) -> list[dict[str, Any]]:
        return self.info


@pytest.mark.parametrize("info", [None, FeatureInfo])
@torch.no_grad()
def test_networks_that_describe_their_stages(info: Any) -> None:
    model = Stages(info)
    batch = arrays(2, 3, 16, 16)
    spec, trajectory = captured(model, batch)
    assert [site.name for site in spec.sites] == ["stem", "blocks.0", "blocks.1"]
    x = F.conv2d(batch.values, model.stem.weight, model.stem.bias, 2, 1)
    torch.testing.assert_close(trajectory.states["stem"], x)
    first: Any = model.blocks[0]
    x = F.conv2d(x.relu(), first.weight, first.bias, 2, 1)
    torch.testing.assert_close(trajectory.states["blocks.0"], x)


def test_layouts_that_are_not_known() -> None:
    def unlike(info: list[dict[str, Any]]) -> Any:
        return [{**info[0], "module": "gone"}]

    def before(info: list[dict[str, Any]]) -> Any:
        return [{**info[0], "hook_type": "forward_pre"}]

    inner = Residual(BasicBlock, blocks=1)
    two = nn.ModuleList([inner, Residual(BasicBlock, blocks=1)])
    plain = nn.Sequential(nn.Linear(2, 3))
    layers = nn.Module()
    layers.layer1, layers.layer2, layers.fc = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    stages_only = nn.Module()
    stages_only.layer1, stages_only.layer2 = inner.layer1, inner.layer2
    for model in (Stages(unlike), Stages(before), two, plain, layers, stages_only):
        assert not TorchLayersAdapter().supports(model)
    assert TorchLayersAdapter(layers=["0"]).supports(plain)
    with pytest.raises(UnsupportedModel, match=r"stages of Sequential are not known.*layers="):
        TorchLayersAdapter().describe(plain, arrays(2, 2))
    assert TorchLayersAdapter().supports(nn.ModuleDict({"backbone": inner}))


def test_a_known_network_inside_another_is_found() -> None:
    class Segmentation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Residual(BasicBlock, blocks=1)
            self.classifier = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            stem = self.backbone.maxpool(self.backbone.conv1(x))
            features = self.backbone.get_submodule("layer1")(stem)
            deeper = features
            for index in (2, 3, 4):
                deeper = self.backbone.get_submodule(f"layer{index}")(deeper)
            maps = F.interpolate(self.classifier(features), x.shape[2:])
            return {"out": maps, "aux": deeper.mean()}

    batch = arrays(3, 3, 32, 32)
    spec, trajectory = captured(Segmentation(), batch, output="out")
    assert [site.name for site in spec.sites] == [f"backbone.layer{index}" for index in range(1, 5)]
    assert (spec.output.group, spec.output.shape) == ("output2x32x32", (2, 32, 32))
    assert output_of(trajectory).shape == (3, 2, 32, 32)


# --- which modules -----------------------------------------------------------------------------


class Stack(nn.Module):
    """Named layers, one silent module, a list that is never called, and a shared block."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
        self.layer2 = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.layer3_unused = nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.shared = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.layer2(self.layer1(x))
        for layer in self.layers:
            x = self.shared(layer(x))
        return x


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["layer*"], ["layer1", "layer2"]),
        (["layer?"], ["layer1", "layer2"]),
        (["layer2", "layer1"], ["layer1", "layer2"]),
        (["layer1.*"], ["layer1.0", "layer1.1"]),
        (["layer1.**"], ["layer1.0", "layer1.1", "layer1"]),
        (["layers.*"], ["layers.0", "layers.1"]),
        (["shared"], ["shared.call0", "shared.call1"]),
        (["shared.call1"], ["shared.call1"]),
        (["shared.call1", "shared.call0"], ["shared.call0", "shared.call1"]),
        (["layers.*", "shared"], ["layers.0", "shared.call0", "layers.1", "shared.call1"]),
    ],
)
def test_patterns(layers: list[str], expected: list[str]) -> None:
    spec, trajectory = captured(Stack(), arrays(3, 2), layers=layers)
    assert [site.name for site in spec.sites] == expected == list(trajectory.states)


@torch.no_grad()
def test_each_call_is_a_state_of_its_own() -> None:
    model = Stack()
    batch = arrays(3, 2)
    _, trajectory = captured(model, batch, layers=["layers.*", "shared"])
    x = batch.values
    linear: Any
    for linear in (model.layer1[0], model.layer2[0]):
        x = (x @ linear.weight.T + linear.bias).tanh()
    for index in range(2):
        layer = model.layers[index]
        x = F.linear(x, layer.get_parameter("weight"), layer.get_parameter("bias"))
        torch.testing.assert_close(trajectory.states[f"layers.{index}"], x)
        x = F.linear(x, model.shared.weight, model.shared.bias)
        torch.testing.assert_close(trajectory.states[f"shared.call{index}"], x)
    _, one = captured(model, batch, layers=["shared.call1"])
    torch.testing.assert_close(one.states["shared.call1"], x)


def test_a_module_under_two_names_is_one_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    model.append(model[0])
    spec, trajectory = captured(model, arrays(4, 3), layers=["2"])
    assert [site.name for site in spec.sites] == ["2.call0", "2.call1"]
    torch.testing.assert_close(trajectory.states["2.call1"], output_of(trajectory))


def test_modules_that_are_not_there_or_silent_are_named() -> None:
    batch = arrays(3, 2)
    with pytest.raises(UnknownName, match=r"'leyer1' matches no module.*Did you mean 'layer1'"):
        captured(Stack(), batch, layers=["leyer1"])
    with pytest.raises(UnknownName, match=r"call0\.x' matches no module"):
        captured(Stack(), batch, layers=["layer3_unused.call0.x"])
    with pytest.raises(CaptureError, match=r"'layer3_unused' did not run .*that did: 'layer1.0'"):
        captured(Stack(), batch, layers=["layer1", "layer3_unused"])
    with pytest.raises(CaptureError, match=r"'layers' did not run .* lists of modules"):
        captured(Stack(), batch, layers=["layers"])
    with pytest.raises(CaptureError, match=r"call 2 of 'shared', counted from 0; .* 2 times"):
        captured(Stack(), batch, layers=["shared.call2"])


@pytest.mark.parametrize(
    "layers", ["layer1", [], {}, [3], [""], 3, {"a": 1.5}, {"a": True}, {"a": []}]
)
def test_layers_that_are_none(layers: Any) -> None:
    with pytest.raises(InvalidInput, match="layers"):
        TorchLayersAdapter(layers=layers)


class Nested(nn.Module):
    class Part(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"count": torch.arange(len(x)), "x": (x.long(), x + 1, [x + 2, x + 3])}

    def __init__(self) -> None:
        super().__init__()
        self.part = self.Part()
        self.plain = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.plain(self.part(x)["x"][1])


@pytest.mark.parametrize(
    ("selector", "added"),
    [(["x", 1], 1.0), (["x"], 1.0), ("x", 1.0), (("x", 2, -1), 3.0), (["x", 2, 0], 2.0)],
)
def test_selectors(selector: Any, added: float) -> None:
    batch = arrays(3, 2)
    _, trajectory = captured(Nested(), batch, layers={"plain": ..., "part": selector})
    torch.testing.assert_close(trajectory.states["part"], batch.values + added)
    torch.testing.assert_close(trajectory.states["plain"], batch.values + 1)


def test_selectors_that_stand_for_the_tensor_itself() -> None:
    batch = arrays(3, 2)
    for selector in (None, ..., "..."):
        spec, trajectory = captured(Nested(), batch, layers={"plain": selector})
        torch.testing.assert_close(trajectory.states["plain"], batch.values + 1)
        places: Any = spec.options["places"]
        assert places["plain"]["selector"] is None


@pytest.mark.parametrize(
    ("selector", "error", "message"),
    [
        ("y", UnknownName, "selector 'y' of site 'part' is no part of dict"),
        (0, UnknownName, "selector 0 .* asks for an entry of a tuple or list"),
        (["x", 3], UnknownName, "selector 3 .* there is tuple of Tensor, Tensor, list"),
    ],
)
def test_selectors_that_name_nothing(selector: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        captured(Nested(), arrays(3, 2), layers={"part": selector})


def test_the_first_pattern_that_matches_counts() -> None:
    batch = arrays(3, 2)
    _, trajectory = captured(Nested(), batch, layers={"part": ["x", 2, 0], "p*": ...})
    torch.testing.assert_close(trajectory.states["part"], batch.values + 2)


def test_a_model_without_parts() -> None:
    spec, trajectory = captured(nn.Linear(2, 3), arrays(4, 2), layers=["linear"])
    assert [site.name for site in spec.sites] == ["linear"]
    torch.testing.assert_close(trajectory.states["linear"], output_of(trajectory))
    assert trajectory.states["linear"].data_ptr() != output_of(trajectory).data_ptr()


# --- axes --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    samples=st.integers(1, 5),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    order=st.randoms(use_true_random=False),
)
def test_any_arrangement_of_axes_is_read(samples: int, shape: list[int], order: Any) -> None:
    """Where a module puts the samples makes no difference, nor do sizes that agree by chance."""
    permutation = list(range(len(shape) + 1))
    order.shuffle(permutation)

    def state(x: Tensor) -> Tensor:
        return (x[:, 0].view(-1, *[1] * len(shape)) * torch.ones(shape)).cumsum(-1)

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

        def forward(self, x: Tensor) -> Any:
            return self.site(state(x).permute(permutation)), x

    batch = arrays(samples, 2)
    spec, trajectory = captured(Shaped(), batch, layers=["site"], output=1)
    others = [axis for axis in permutation if axis]
    assert spec.sites[0].shape == tuple(shape[axis - 1] for axis in others)
    assert torch.equal(trajectory.states["site"], state(batch.values).permute(0, *others))


def test_tokens_of_images_are_a_shape() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.5)

        def forward(self, x: Tensor) -> Any:
            return self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1)

    spec, _ = captured(Patches(), arrays(4, 3, 8, 8), layers=["embed", "block"])
    assert [(site.shape, site.axis) for site in spec.sites] == [
        ((8, 2, 2), "sample"),
        ((4, 8), "sample"),
    ]


class Reader(nn.Module):
    """Attends over time, on the axis that it was built for."""

    def __init__(self, *, time_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=not time_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.block(self.embed(x)))


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("samples", [1, 4, 5])
@torch.no_grad()
def test_layout_is_found_where_both_would_run(time_first: bool, samples: int) -> None:
    torch.manual_seed(0)
    model = Reader(time_first=time_first)
    batch = sequences([4] * samples)
    spec, trajectory = captured(model, batch, layers=["embed", "block"])
    assert spec.options["time_first"] is time_first
    assert [site.axis for site in spec.sites] == ["time", "time"]
    assert spec.output.group == "output3-per-step"
    model.eval()
    for row in range(samples):
        one = batch.values[row]
        embedded = one @ model.embed.weight.T + model.embed.bias
        expected = model.block(embedded[:, None] if time_first else embedded[None]).view(4, 8)
        torch.testing.assert_close(trajectory.states["embed"][row], embedded)
        torch.testing.assert_close(trajectory.states["block"][row], expected)
        torch.testing.assert_close(output_of(trajectory)[row], model.head(expected))


def test_time_may_stand_last() -> None:
    class Convolving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Any:
            return self.conv(x.transpose(1, 2)).mean(2)

    model = Convolving()
    batch = sequences([5, 5, 5])
    spec, trajectory = captured(model, batch, layers=["conv"])
    assert (spec.sites[0].shape, spec.sites[0].axis) == ((6,), "time")
    expected = F.conv1d(batch.values.transpose(1, 2), model.conv.weight, model.conv.bias, padding=1)
    torch.testing.assert_close(trajectory.states["conv"], expected.transpose(1, 2).detach())


def test_states_that_belong_to_no_step_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(2, 3), nn.Unflatten(0, (-1, 4)))
    with pytest.raises(CaptureError, match=r"site '1' has shapes .* follows neither.*layers="):
        captured(model, sequences([4, 4]), layers=["1"])


def test_a_fixed_number_of_steps_leaves_axes_open() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(2, 3)
            self.head = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.embed(x).flatten(1))

    batch = sequences([4, 4])
    spec, _ = captured(Fixed(), batch, layers=["head"])
    assert spec.sites[0].axis == "sample"
    with pytest.raises(CaptureError, match=r"site 'embed'.*may be the time steps or the units"):
        captured(Fixed(), batch, layers=["embed"])


# --- samples and padding -----------------------------------------------------------------------


class Causal(nn.Module):
    """Looks at earlier steps only, so that padding at the end never reaches a real step."""

    def __init__(self, *, reach: int = 0, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.reach = reach
        self.pooled = pooled

    def forward(self, x: Tensor) -> Any:
        padded = F.pad(x.transpose(1, 2), (2 - self.reach, self.reach))
        states = self.conv(padded).transpose(1, 2)
        return (states, states.amax(1)) if self.pooled else states


def test_ragged_batches_of_models_that_do_not_know_the_lengths() -> None:
    batch = sequences([5, 3, 1])
    adapter = TorchLayersAdapter(layers=["conv"])
    model = Causal()
    spec = adapter.describe(model, batch)
    assert spec.options["takes_lengths"] is False
    assert spec.options["ragged_batches"] is True
    mixed = adapter.record(model, batch, spec)
    for row, length in enumerate([5, 3, 1]):
        one = SequenceBatch(batch.values[row : row + 1, :length], torch.tensor([length]))
        alone = adapter.record(model, one, spec)
        torch.testing.assert_close(
            mixed.states["conv"][row, :length], alone.states["conv"][0], rtol=1e-5, atol=1e-6
        )
    looking_ahead = Causal(reach=1)
    spec = adapter.describe(looking_ahead, batch)
    assert spec.options["ragged_batches"] is False
    with pytest.raises(CaptureError, match="cannot tell padding from data"):
        adapter.record(looking_ahead, batch, spec)
    pooling = TorchLayersAdapter(layers=["conv"], output=1)
    assert pooling.describe(Causal(pooled=True), batch).options["ragged_batches"] is False


def test_zeros_that_look_harmless_are_not_taken_for_padding_that_is() -> None:
    class Sum(nn.Module):
        """Adds up all steps: zeros at the end change nothing, other padding does."""

        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

        def forward(self, x: Tensor) -> Any:
            return self.site(x + x.sum(1, keepdim=True))

    spec = TorchLayersAdapter(layers=["site"]).describe(Sum(), sequences([5, 3]))
    assert spec.options["ragged_batches"] is False


def test_rows_per_sample_may_agree_by_chance() -> None:
    """A maximum that no padding reaches on these inputs, and on others would."""

    class Highest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

        def forward(self, x: Tensor) -> Any:
            return self.site(x * (5 - x)).amax(1)

    batch = sequences([5, 5])
    batch = SequenceBatch(batch.values.abs().clamp(max=2) + 1, batch.lengths)
    spec = TorchLayersAdapter(layers=["site"]).describe(Highest(), batch)
    assert spec.output.axis == "sample"
    assert spec.options["ragged_batches"] is False


class Masked(nn.Module):
    def __init__(self, *, honest: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.honest = honest

    def forward(self, ids: Tensor, lengths: Tensor) -> Any:
        padding = torch.arange(ids.shape[1])[None, :] >= lengths[:, None]
        mask = padding if self.honest else None
        states = self.block(self.embedding(ids), src_key_padding_mask=mask)
        return states.masked_fill(padding[..., None], 0).sum(1)


@torch.no_grad()
def test_ragged_batches_of_models_that_are_told_the_lengths() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 6, 3, 3], [4, 3, 3, 0, 0]])
    batch = SequenceBatch(ids, torch.tensor([5, 3]))
    adapter = TorchLayersAdapter(layers=["block"])
    model = Masked()
    spec = adapter.describe(model, batch)
    assert (spec.options["takes_lengths"], spec.options["ragged_batches"]) == (True, True)
    trajectory = adapter.record(model, batch, spec)
    model.eval()
    expected = model.block(model.embedding(ids[1:, :3]))
    torch.testing.assert_close(trajectory.states["block"][1:, :3], expected)
    dishonest = adapter.describe(Masked(honest=False), batch)
    assert (dishonest.options["takes_lengths"], dishonest.options["ragged_batches"]) == (
        True,
        False,
    )


def test_samples_that_influence_each_other_are_refused() -> None:
    batchwise = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(CaptureError, match=r"one sample"):
        captured(batchwise, arrays(4, 2), layers=["1"])
    imagewise = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(CaptureError, match="site '1' of a sample depends on the other samples"):
        captured(imagewise, arrays(4, 3, 8, 8), layers=["*"])
    with pytest.raises(CaptureError, match="other samples"):  # the samples of inputs may be equal
        captured(imagewise, arrays(1, 3, 8, 8), layers=["*"])


def test_a_model_that_drops_the_axis_of_single_samples_is_refused() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Any:
            return self.site(x).squeeze(0)

    with pytest.raises(CaptureError, match="with a batch of one sample, the output has shape"):
        captured(Squeezing(), arrays(4, 2), layers=["site"])


def test_a_model_that_is_no_function_is_refused() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Linear(2, 8)

        def forward(self, x: Tensor) -> Any:
            return F.dropout(self.site(x), 0.5, training=True)

    model = Dropping()
    before = torch.random.get_rng_state()
    with pytest.raises(CaptureError, match="the output differs between two runs"):
        captured(model, arrays(4, 2), layers=["site"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_threads_keep_what_they_drew() -> None:
    """Generators are shared by threads; putting one back would rewind the others."""
    drawn = []

    def record() -> None:
        model = nn.Sequential(nn.Identity())
        model[0].register_forward_hook(lambda *_: drawn.append(torch.rand(())))
        captured(model, arrays(2, 2), layers=["0"])

    with torch.random.fork_rng():
        before = torch.random.get_rng_state()
        record()
        assert drawn
        assert torch.equal(torch.random.get_rng_state(), before)
        thread = threading.Thread(target=record)
        thread.start()
        thread.join()
        assert not torch.equal(torch.random.get_rng_state(), before)


# --- hazards -----------------------------------------------------------------------------------


class Repeating(nn.Module):
    """Runs its block as often as its inputs say."""

    def __init__(self, count: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.block = nn.Linear(2, 2)
        self.count = count

    def forward(self, x: Tensor) -> Any:
        for _ in range(self.count(x)):
            x = self.block(x)
        return x


def test_a_changing_number_of_calls_is_refused() -> None:
    by_steps = Repeating(lambda x: x.shape[1])
    with pytest.raises(
        CaptureError, match=r"'block.call0', .*: the module ran \d times .* \d times"
    ):
        captured(by_steps, sequences([3, 3]), layers=["block"])
    by_value = Repeating(lambda x: 2 + int(x.sum() > 0))
    adapter = TorchLayersAdapter(layers=["block"])
    batch = SequenceBatch(torch.ones(3, 2), torch.ones(3, dtype=torch.int64), has_time=False)
    spec = adapter.describe(by_value, batch)
    assert [site.name for site in spec.sites] == [f"block.call{index}" for index in range(3)]
    other = SequenceBatch(-batch.values, batch.lengths, has_time=False)
    with pytest.raises(CaptureError, match=r"'block.call0'.* ran 2 times .* 3 times in the first"):
        adapter.record(by_value, other, spec)
    sometimes = Repeating(lambda x: int(x.sum() > 0))
    spec = adapter.describe(sometimes, batch)
    with pytest.raises(CaptureError, match=r"site 'block': the module ran 0 times .* 1 times"):
        adapter.record(sometimes, other, spec)


@pytest.mark.parametrize("time_first", [False, True])
def test_modules_that_are_called_once_per_step_are_left_to_torch_recurrent(
    time_first: bool,
) -> None:
    class Leaky(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return 0.5 * h + x

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.ModuleDict({"cell": Leaky()})

        def forward(self, values: Tensor) -> Tensor:
            steps = values.unbind(0 if time_first else 1)
            h = torch.zeros_like(steps[0])
            for step in steps:
                h = self.core["cell"](step, h)
            return h

    model, batch = Loop(), sequences([4, 4])
    with pytest.raises(CaptureError, match="called once per step") as caught:
        captured(model, batch, layers=["core.*"])
    advice = """adapter="torch_recurrent" with layers=['core.cell']"""
    assert advice in str(caught.value)
    chosen = AdapterChoice("torch_recurrent", {"layers": ["core.cell"]}).of(model)
    spec = chosen.describe(model, batch)
    states = chosen.record(model, batch, spec).states["core.cell"]
    torch.testing.assert_close(states[:, 1], 0.5 * batch.values[:, 0] + batch.values[:, 1])


def test_scripted_and_compiled_modules() -> None:
    adapter = TorchLayersAdapter(layers=["0"])
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    batch = arrays(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    assert not adapter.supports(scripted)
    with pytest.raises(UnsupportedModel, match="a ScriptModule"):
        adapter.describe(scripted, batch)
    with pytest.raises(UnsupportedModel, match="submodule '0' is a ScriptModule"):
        adapter.describe(nn.Sequential(scripted), batch)
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    _, trajectory = captured(compiled, batch, layers=["0"])
    torch.testing.assert_close(trajectory.states["0"], model[0](batch.values).detach())
    inside = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    inside[1].compile(backend="eager")
    with pytest.raises(UnsupportedModel, match="submodule '1' is compiled"):
        adapter.describe(inside, batch)
    with pytest.raises(UnsupportedModel, match="got str"):
        adapter.describe("model", batch)
    assert not adapter.supports("model")


def test_data_parallel_is_seen_through() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    batch = arrays(3, 2)
    _, trajectory = captured(nn.DataParallel(model), batch, layers=["0"])
    torch.testing.assert_close(trajectory.states["0"], model[0](batch.values).detach())


def test_autocast_inside_the_model() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.linear(x).float()

    model = Cast()
    batch = arrays(3, 2)
    spec, trajectory = captured(model, batch, layers=["linear"])
    site = spec.sites[0]
    assert (site.dtype, site.source_dtype) == ("float32", "bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = F.linear(batch.values, model.linear.weight, model.linear.bias)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(trajectory.states["linear"], expected.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_states_are_exact(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh()).to(dtype)
    batch = arrays(3, 2, dtype=torch.float64)
    spec, trajectory = captured(model, batch, layers=["*"])
    state = trajectory.states["0"]
    with torch.no_grad():
        own = model[0](batch.values.to(dtype))
    widened = dtype == torch.bfloat16
    assert state.dtype == (torch.float32 if widened else dtype)
    assert spec.sites[0].source_dtype == ("bfloat16" if widened else None)
    assert torch.equal(state.to(dtype), own)


@pytest.mark.parametrize(
    ("convert", "source", "stored"),
    [
        (lambda x: x > 0, "bool", torch.float32),
        (lambda x: (x * 10).to(torch.int8), "int8", torch.float32),
        (lambda x: (x * 10).to(torch.int64), "int64", torch.float64),
    ],
)
def test_whole_numbers_and_truth_values(
    convert: Callable[[Tensor], Tensor], source: str, stored: torch.dtype
) -> None:
    class Codes(nn.Module):
        class Coding(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return convert(x)

        def __init__(self) -> None:
            super().__init__()
            self.codes = self.Coding()

        def forward(self, x: Tensor) -> Any:
            return x + self.codes(x).float()

    batch = arrays(3, 2)
    spec, trajectory = captured(Codes(), batch, layers=["codes"])
    assert spec.sites[0].source_dtype == source
    assert trajectory.states["codes"].dtype == stored
    assert torch.equal(trajectory.states["codes"], convert(batch.values).to(stored))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantised_states_become_numbers() -> None:
    class Quantising(nn.Module):
        class Quantise(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.quantize_per_tensor(x, 0.1, 10, torch.quint8)

        def __init__(self) -> None:
            super().__init__()
            self.quantise = self.Quantise()

        def forward(self, x: Tensor) -> Any:
            return self.quantise(x)

    batch = arrays(3, 2)
    spec, trajectory = captured(Quantising(), batch, layers=["quantise"])
    assert (spec.sites[0].dtype, spec.sites[0].source_dtype) == ("float32", "quint8")
    expected = ((batch.values / 0.1).round() + 10).clamp(0, 255).sub(10) * 0.1
    torch.testing.assert_close(trajectory.states["quantise"], expected)
    torch.testing.assert_close(output_of(trajectory), expected)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_dynamically_quantised_models() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    quantised = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    batch = arrays(5, 8)
    spec, trajectory = captured(quantised, batch, layers=["*"])
    assert [site.name for site in spec.sites] == ["0", "1", "2"]
    assert torch.equal(trajectory.states["2"], quantised(batch.values))
    exact = plain(batch.values).detach()
    assert not torch.equal(trajectory.states["2"], exact)
    torch.testing.assert_close(trajectory.states["2"], exact, rtol=0, atol=0.1)
    # A sample that is much larger than its neighbour takes most of the range of their batch.
    batch.values[1] *= 20
    with torch.no_grad():
        alone, together = quantised(batch.values[:1]), quantised(batch.values[:2])[:1]
    assert 0.03 < (alone - together).norm() / alone.norm() < 0.3
    captured(quantised, batch, layers=["*"])


def test_weights_on_the_meta_device_that_nobody_uses() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 3, device="meta", dtype=torch.float64)
            self.used = nn.Linear(2, 3, dtype=torch.float64)

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    batch = arrays(3, 2)
    _, trajectory = captured(Partial(), batch, layers=["used"])
    assert trajectory.states["used"].device.type == "cpu"

    class Empty(Partial):
        def forward(self, x: Tensor) -> Any:
            self.unused(x.to("meta"))
            return self.used(x)

    with pytest.raises(CaptureError, match="site 'unused' lies on the meta device"):
        captured(Empty(), batch, layers=["unused"])


def test_what_users_hooks_make_of_a_state_is_recorded() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Identity())
    handle = model[0].register_forward_hook(lambda module, arguments, result: result * 0 + 7)
    _, trajectory = captured(model, arrays(3, 2), layers=["0"])
    assert torch.equal(trajectory.states["0"], torch.full((3, 3), 7.0))
    assert list(model[0]._forward_hooks) == [handle.id]


def test_states_share_no_memory() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Flatten())
    batch = arrays(3, 2)
    _, trajectory = captured(model, batch, layers=["*"])
    tensors = [*trajectory.states.values(), output_of(trajectory)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 4
    _, trajectory = captured(nn.Sequential(nn.Identity()), batch, layers=["*"])
    tensors = [batch.values, trajectory.states["0"], output_of(trajectory)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 3


def test_copies_are_contiguous() -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            maps = self.site(x.contiguous(memory_format=torch.channels_last))
            assert not maps.is_contiguous()
            return maps

    _, trajectory = captured(ChannelsLast(), arrays(2, 3, 8, 8), layers=["site"])
    assert trajectory.states["site"].is_contiguous()


def test_sparse_and_missing_tensors_are_refused() -> None:
    class Returning(nn.Module):
        class Part(nn.Module):
            make: Callable[[Tensor], Any]

            def forward(self, x: Tensor) -> Any:
                return self.make(x)

        def __init__(self, make: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.part = self.Part()
            self.part.make = make

        def forward(self, x: Tensor) -> Any:
            self.part(x)
            return x

    batch = arrays(3, 2)
    with pytest.raises(CaptureError, match="site 'part' holds a sparse_coo tensor"):
        captured(Returning(lambda x: x.to_sparse()), batch, layers=["part"])
    with pytest.raises(CaptureError, match="site 'part' holds no tensor but tuple of str"):
        captured(Returning(lambda x: ("a",)), batch, layers=["part"])
    with pytest.raises(CaptureError, match=r"packed sequence.*torch_recurrent"):
        captured(Returning(lambda x: pack_sequence([x[0]])), batch, layers=["part"])
    with pytest.raises(CaptureError, match="expected one axis of samples"):
        captured(Returning(lambda x: x.sum()), batch, layers=["part"])


# --- the model is left alone -------------------------------------------------------------------


def snapshot(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [p.data_ptr() for p in model.parameters()],
        {name: value.tolist() for name, value in model.state_dict().items()},
        torch.random.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


def prepared() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)
    )
    model[0].register_forward_hook(lambda *_: None)
    model[1].eval()
    weight = model[0].get_parameter("weight")
    weight.requires_grad_(False)
    model[4].get_parameter("bias").grad = torch.ones(2)
    return model


def test_model_is_left_as_it_was_found() -> None:
    model = prepared()
    before = snapshot(model)
    captured(model, arrays(3, 3, 8, 8), layers=["*"])
    assert snapshot(model) == before


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_model_is_left_as_it_was_found_after_exceptions(error: BaseException) -> None:
    model = prepared()
    batch = arrays(3, 3, 8, 8)
    adapter = TorchLayersAdapter(layers=["*"])
    spec = adapter.describe(model, batch)
    before = snapshot(model)
    fuse = model[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(error))
    expected = CaptureError if isinstance(error, Exception) else KeyboardInterrupt
    for act in (
        lambda: adapter.record(model, batch, spec),
        lambda: adapter.describe(model, batch),
    ):
        with pytest.raises(expected):
            act()
    fuse.remove()
    assert snapshot(model) == before


def test_a_model_that_changed_since_it_was_described_is_refused() -> None:
    adapter = TorchLayersAdapter(layers=["0"])
    batch = arrays(3, 2)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    spec = adapter.describe(model, batch)
    with pytest.raises(CaptureError, match=r"site '0': expected float32 .* got float64"):
        adapter.record(model.double(), batch, spec)
    with pytest.raises(CaptureError, match=r"site '0' was computed in float32 .* now in bfloat16"):
        adapter.record(model.bfloat16(), batch, spec)
    wider = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    with pytest.raises(CaptureError, match=r"expected float32 of shape \(3, 3\).* \(3, 4\)"):
        adapter.record(wider, batch, spec)
    with pytest.raises(CaptureError, match="'0' was there"):
        adapter.record(nn.Tanh(), batch, spec)


def test_inputs_without_time_go_to_the_model_as_they_are() -> None:
    class Lengthy(nn.Module):
        """Has a parameter of that name, which means something else."""

        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Linear(2, 3)
            self.seen: list[tuple[int, ...]] = []

        def forward(self, x: Tensor, length: float = 2.0) -> Any:
            assert length == 2.0
            self.seen.append(tuple(x.shape))
            return self.site(x) / length

    model = Lengthy()
    captured(model, arrays(5, 2), layers=["site"])
    assert model.seen[-1] == (5, 2)
    assert {shape[1:] for shape in model.seen} == {(2,)}


def test_forward_and_faults_of_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Linear(2, 3)

        def forward(self, x: Tensor, scale: Tensor) -> Any:
            return self.site(x) * scale

    batch = arrays(4, 2)
    with pytest.raises(CaptureError, match=r"raised TypeError.*model\(values\).*forward="):
        captured(Two(), batch, layers=["site"])
    options: Mapping[str, Any] = {
        "layers": ["site"],
        "forward": lambda model, values, lengths: model(values, torch.tensor(2.0)),
    }
    _, trajectory = captured(Two(), batch, **options)
    torch.testing.assert_close(output_of(trajectory), trajectory.states["site"] * 2)
