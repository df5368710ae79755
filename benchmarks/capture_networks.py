"""The networks that the capture benchmark records, and the inputs they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

__all__ = ["NETWORKS", "BenchmarkNetwork", "make_network"]


@dataclass(frozen=True)
class BenchmarkNetwork:
    """A network, its inputs, and what is recorded of it."""

    model: nn.Module
    inputs: Tensor
    """(sample, ...): all samples; every way shows them in the same batches."""
    sites: tuple[str, ...]
    """Module paths, or names of hooks. Where a module returns a tuple, its first entry counts."""
    description: str
    models: int = 2
    """So many networks of a population; one network stands for all of them."""
    batch_size: int = 64

    def batches(self) -> Iterator[Tensor]:
        """Yield all inputs batch by batch, once for every model."""
        for _ in range(self.models):
            yield from self.inputs.split(self.batch_size)


class Recurrent(nn.Module):
    """A GRU whose last state is read out."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(64, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        logits: Tensor = self.head(states[:, -1])
        return logits


class Block(nn.Module):
    """The basic block of He et al. (2016, doi:10.1109/CVPR.2016.90)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class Residual(nn.Module):
    """ResNet-18 with the stem for images of 32 by 32: one convolution of 3 by 3, no pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        channels = 64
        for number, width in enumerate((64, 128, 256, 512), 1):
            stride = 1 if number == 1 else 2
            blocks = [Block(channels, width, stride), Block(width, width, 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def recurrent(batches: int) -> BenchmarkNetwork:
    """Return the GRU: 256 units, 100 steps, 64 sequences a batch."""
    inputs = torch.randn(64 * batches, 100, 64)
    description = "GRU, 256 units, 100 steps"
    return BenchmarkNetwork(Recurrent(), inputs, ("gru",), description, models=4)


def residual(batches: int) -> BenchmarkNetwork:
    """Return the ResNet-18 with the outputs of its eight blocks."""
    sites = tuple(f"layer{number}.{block}" for number in range(1, 5) for block in (0, 1))
    inputs = torch.randn(64 * batches, 3, 32, 32)
    return BenchmarkNetwork(Residual(), inputs, sites, "ResNet-18, 32 by 32 pixels, 8 sites")


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=1000, n_positions=64, n_embd=256, n_layer=6, n_head=4
    )
    return transformers.GPT2LMHeadModel(config).eval()


def _tokens(batches: int) -> Tensor:
    return torch.randint(1000, (64 * batches, 64))


def gpt2(batches: int) -> BenchmarkNetwork:
    """Return a GPT-2 of transformers with the outputs of its six blocks."""
    sites = tuple(f"transformer.h.{block}" for block in range(6))
    description = "GPT-2, 6 blocks, 256 wide, 64 tokens"
    return BenchmarkNetwork(_gpt2(), _tokens(batches), sites, description)


def bridge(batches: int) -> BenchmarkNetwork:
    """Return the same GPT-2 inside TransformerLens' bridge, with its residual stream."""
    inner = _gpt2()
    model = build_bridge_from_module(inner, "GPT2LMHeadModel", hf_config=inner.config)
    sites = tuple(f"blocks.{block}.hook_resid_post" for block in range(6))
    return BenchmarkNetwork(model, _tokens(batches), sites, "the same GPT-2 in a TransformerBridge")


NETWORKS = {"gru": recurrent, "resnet": residual, "gpt2": gpt2, "bridge": bridge}


def make_network(name: str, batches: int) -> BenchmarkNetwork:
    """Return one of the networks by name, the same at every call, in evaluation mode."""
    torch.manual_seed(0)
    network = NETWORKS[name](batches)
    network.model.eval()
    return network
