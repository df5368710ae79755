"""The convolutional meta-model of the paper: a residual network with theta in every block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels._readouts import Readout, make_readouts, make_slopes, read_outputs
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import JSON, PopulationSpec, Trajectory

__all__ = ["ResNetMetaModel"]

BLOCKS: dict[int, tuple[str, tuple[int, ...]]] = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Depth to kind and number of blocks of networks with four stages (He et al. 2016, table 1)."""

EXPANSION = 4
"""By how much a bottleneck block widens."""

STEM_STRIDES = {"small": 1, "strided": 2, "large": 4}
"""By how much a stem makes images smaller, each side rounded up."""

Norm = Literal["batch", "group"]
Stem = Literal["auto", "small", "strided", "large"]


class ResNetMetaModel(MetaModel):
    """A residual network to whose channels every block adds W theta, at every position.

    The family of Cotler et al. 2023 (arXiv:2302.14078, appendices A and B.1, algorithm 2) for
    networks of He et al. 2016 (doi:10.1109/CVPR.2016.90): the matrix W is shared by all blocks of
    equal width, W theta enters before the last nonlinearity of a block, and states are the outputs
    of the stages, one per recorded site. Where base models were recorded at a coarser grid of
    positions, stage outputs are averaged to it.

    Whatever comes before the first W theta is computed once per image, however many thetas there
    are.

    Parameters
    ----------
    spec
        Images as inputs; one stage per recorded site.
    embedding_dim
        Length of theta.
    depth
        Four stages: 10, 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks). Three: 6 n + 2, as the
        CIFAR networks of He et al. Otherwise give `blocks`.
    blocks
        Number of blocks of each stage, in place of `depth`.
    block
        `basic` or `bottleneck`; by default what the depth says.
    width
        Channels of the first stage; every later one has twice as many as the one before. By default
        64, or 16 with three stages.
    norm
        `batch`, or `group` (Wu and He 2018, doi:10.1007/978-3-030-01261-8_1), which treats every
        sample alone.
    stem
        `small`: one convolution of 3 by 3. `strided`: the same at stride 2. `large`: 7 by 7 at
        stride 2, and pooling. `auto`: the one whose stages have the positions of the recorded ones,
        so that nothing is computed on a finer grid to be averaged afterwards; where there is none,
        large for images of at least 64, and small for others.
    readout
        `conditional` or `shared` (the paper), see `dynamo_plugin.metamodels.Readout`.
    """

    layered = True

    def __init__(
        self,
        spec: PopulationSpec,
        *,
        embedding_dim: int,
        depth: int | None = 18,
        blocks: Sequence[int] | None = None,
        block: Literal["basic", "bottleneck"] | None = None,
        width: int | None = None,
        norm: Norm = "batch",
        stem: Stem = "auto",
        readout: Readout = "conditional",
    ) -> None:
        super(MetaModel, self).__init__()
        stages = len(spec.stages)
        _check(spec, norm=norm, stem=stem, embedding_dim=embedding_dim)
        kind, counts = _counts(stages, depth) if blocks is None else ("basic", tuple(blocks))
        if len(counts) != stages or min(counts) < 1:
            raise InvalidInput(
                f"The population was recorded at {stages} sites, and blocks={list(counts)} makes "
                f"{len(counts)} stages. Give one number of blocks, at least 1, per site."
            )
        self.spec = spec
        self.embedding_dim = embedding_dim
        self.counts = counts
        self.block = block or kind
        self.width = width or (16 if stages == 3 else 64)
        self.norm = norm
        self.stem_kind = _fitting_stem(spec) if stem == "auto" else stem
        self.token_embedding = None
        channels = spec.inputs.shape[0]
        normalise = functools.partial(_make_norm, norm)
        self.stem = _make_stem(self.stem_kind, channels, self.width, normalise)
        expansion = EXPANSION if self.block == "bottleneck" else 1
        make = _bottleneck if self.block == "bottleneck" else _basic
        self.stages = nn.ModuleList()
        entering = self.width
        for stage, count in enumerate(counts):
            inner = self.width * 2**stage
            parts = nn.ModuleList()
            for number in range(count):
                stride = 2 if stage and number == 0 else 1
                parts.append(make(entering, inner, stride, normalise))
                entering = inner * expansion
            self.stages.append(parts)
        self.widths = tuple(self.width * 2**stage * expansion for stage in range(stages))
        self.theta_maps = nn.ModuleList(
            nn.Linear(embedding_dim, units, bias=False) for units in self.widths
        )
        self.stage_units = {
            stage.name: units for stage, units in zip(spec.stages, self.widths, strict=True)
        }
        self.units = self.widths[-1]
        self.readouts = make_readouts(spec, self.units)
        self.readout: Readout = readout
        self.readout_theta = make_slopes(spec, self.units, embedding_dim, readout)

    def options(self) -> dict[str, JSON]:
        """Return the keyword arguments that rebuild this meta-model from the same spec."""
        return {
            "embedding_dim": self.embedding_dim,
            "blocks": list(self.counts),
            "block": self.block,
            "width": self.width,
            "norm": self.norm,
            "stem": self.stem_kind,
            "readout": self.readout,
        }

    def theta_weights(self) -> list[tuple[Tensor, int]]:
        """See `MetaModel.theta_weights`."""
        return [
            *((layer.weight, 1) for layer in self.theta_maps),
            *((slopes, 0) for slopes in self.readout_theta or ()),
        ]

    def forward(self, inputs: Tensor, theta: Tensor, lengths: Tensor) -> Trajectory:
        """Run the network; see `MetaModel.forward`.

        Returns
        -------
        Trajectory
            Per stage (..., position, channel), positions in rows of the image.
        """
        maps = _each(self.stem, inputs.to(next(self.parameters()).dtype))
        states = {}
        for spec, blocks, theta_map in zip(
            self.spec.stages, self.stages, self.theta_maps, strict=True
        ):
            shift = theta_map(theta)[..., None, None]
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                maps = block(maps, shift)
            pooled = maps
            if spec.positions != tuple(maps.shape[-2:]):
                pooled = _each(nn.AdaptiveAvgPool2d((spec.positions[0], spec.positions[1])), maps)
            states[spec.name] = pooled.flatten(-2).mT
        outputs = read_outputs(
            self.spec,
            self.readouts,
            final=maps.mean((-2, -1)),
            theta=theta,
            slopes=self.readout_theta,
        )
        batch = maps.shape[:-3]
        return Trajectory(states, outputs, lengths.to(maps.device).expand(batch))


class _Block(nn.Module):
    """What follows the residual branch: shortcut, theta, nonlinearity."""

    def __init__(
        self, branch: nn.Sequential, entering: int, leaving: int, stride: int, normalise: _NormMaker
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or entering != leaving:
            self.shortcut = nn.Sequential(
                nn.Conv2d(entering, leaving, 1, stride, bias=False), normalise(leaving)
            )

    def forward(self, maps: Tensor, shift: Tensor) -> Tensor:
        """Return the block's output; only here does theta make batches of their own."""
        return F.relu(_each(self._sum, maps) + shift)

    def _sum(self, maps: Tensor) -> Tensor:
        total: Tensor = self.branch(maps) + self.shortcut(maps)
        return total


def _basic(entering: int, inner: int, stride: int, normalise: _NormMaker) -> _Block:
    branch = nn.Sequential(
        nn.Conv2d(entering, inner, 3, stride, 1, bias=False),
        normalise(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
        normalise(inner),
    )
    return _Block(branch, entering, inner, stride, normalise)


def _bottleneck(entering: int, inner: int, stride: int, normalise: _NormMaker) -> _Block:
    leaving = inner * EXPANSION
    branch = nn.Sequential(
        nn.Conv2d(entering, inner, 1, bias=False),
        normalise(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
        normalise(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, leaving, 1, bias=False),
        normalise(leaving),
    )
    return _Block(branch, entering, leaving, stride, normalise)


_NormMaker = Callable[[int], nn.Module]


def _make_norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # Several channels to a group: at a single position, one channel alone would become zero.
    counts = (count for count in (32, 16, 8, 4, 2, 1) if channels % count == 0)
    return nn.GroupNorm(
        next(count for count in counts if channels >= 4 * count or count == 1), channels
    )


def _make_stem(kind: str, channels: int, width: int, normalise: _NormMaker) -> nn.Sequential:
    if kind in ("small", "strided"):
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, STEM_STRIDES[kind], 1, bias=False),
            normalise(width),
            nn.ReLU(inplace=True),
        )
    return nn.Sequential(
        nn.Conv2d(channels, width, 7, 2, 3, bias=False),
        normalise(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    )


def _fitting_stem(spec: PopulationSpec) -> str:
    """Return the stem under which every stage has the positions that were recorded."""
    image = spec.inputs.shape[1:]
    for kind, stride in STEM_STRIDES.items():
        if all(
            stage.positions == tuple(-(-size // (stride * 2**number)) for size in image)
            for number, stage in enumerate(spec.stages)
        ):
            return kind
    small = spec.stages[0].positions == image or min(image) < 64
    return "small" if small else "large"


def _each(module: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """Apply a module to (..., channel, height, width)."""
    result: Tensor = module(maps.flatten(0, -4)).unflatten(0, maps.shape[:-3])
    return result


def _counts(stages: int, depth: int | None) -> tuple[str, tuple[int, ...]]:
    if stages == 3 and depth is not None and depth % 6 == 2 and depth > 2:
        return "basic", ((depth - 2) // 6,) * 3
    if stages == 3 and depth == 18:  # the default
        return "basic", (3, 3, 3)
    if stages == 4 and depth in BLOCKS:
        return BLOCKS[depth]
    raise InvalidInput(
        f"There is no residual network of depth {depth} with {stages} stages, the number of sites "
        f"that were recorded. Four stages have depth {', '.join(map(str, BLOCKS))}, three 6 n + 2; "
        "or give blocks=[...], one number per site, or choose sites=[...]."
    )


def _check(spec: PopulationSpec, *, norm: str, stem: str, embedding_dim: int) -> None:
    if embedding_dim < 1:
        raise InvalidInput(f"embedding_dim must be at least 1, got {embedding_dim}.")
    if spec.inputs.kind != "array" or len(spec.inputs.shape) != 3:
        raise InvalidInput(
            "The family 'resnet' reads images (channel, height, width); the inputs of this "
            f"population are {spec.inputs.kind} of shape {spec.inputs.shape}."
        )
    flat = [stage.name for stage in spec.stages if len(stage.positions) != 2]
    if flat or not spec.stages:
        raise InvalidInput(
            "The family 'resnet' compares feature maps (channel, height, width) of every stage; "
            f"{', '.join(flat) or 'this population'} has none. Choose other sites=[...]."
        )
    for name, value, known in (("norm", norm, get_args(Norm)), ("stem", stem, get_args(Stem))):
        if value not in known:
            raise InvalidInput(f"{name} must be one of {', '.join(known)}, got {value!r}.")
