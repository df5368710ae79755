"""The values that travel between rooms: frozen, slotted, without behaviour of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "JSON",
    "InputSpec",
    "OutputSpec",
    "PopulationSpec",
    "RowAxis",
    "SequenceBatch",
    "SiteSpec",
    "StageSpec",
    "Trajectory",
    "TrajectorySpec",
]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

RowAxis: TypeAlias = Literal["time", "sample"]
"""What one stored row is: one time step of one sample, or one sample."""


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Some samples: sequences, padded at the end to the longest of them, or single arrays."""

    values: Tensor
    """(sample, time) integer ids or (sample, time, feature) numbers, padded with zeros; without
    time, (sample, *shape) numbers, such as images."""
    lengths: Tensor
    """(sample,) int64 on the CPU: how many steps of each row are real; 1 without time."""
    has_time: bool = True
    """Whether axis 1 of the values is time."""


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """A place in a base model whose state is recorded."""

    name: str
    shape: tuple[int, ...]
    """Shape of one row: (units,), (channels, height, width), ..."""
    dtype: str
    """NumPy name of the stored dtype: float16, float32 or float64."""
    axis: RowAxis = "time"
    """`time`: one row per step; `sample`: one per sample, as in feed-forward networks."""
    source_dtype: str | None = None
    """torch name of the dtype in which the network computed the state, where another one is
    stored: bfloat16 and integers are widened, quantised tensors are dequantised."""
    every: int = 1
    """Steps 0, every, 2 every, ... of each sample are stored; above 1 only with axis `time`."""
    reduction: Mapping[str, JSON] | None = None
    """How rows were made smaller before they were stored; `shape` is that of the result."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What a base model returns."""

    group: str
    """Models of one output group share a readout of the meta-model."""
    shape: tuple[int, ...]
    """Shape of one row, for example (classes,)."""
    dtype: str
    axis: RowAxis
    """`sample`: one output per sequence; `time`: one per step."""


@dataclass(frozen=True, slots=True)
class TrajectorySpec:
    """What an adapter will record of one model."""

    adapter: str
    """Registered name of the adapter."""
    sites: tuple[SiteSpec, ...]
    """In the order in which the network computes them."""
    output: OutputSpec
    options: Mapping[str, JSON] = field(default_factory=dict)
    """What the adapter found out about the model and needs again while recording, for example
    that the model takes (time, sample) inputs."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Hidden states and outputs of one model, or of a meta-model, on a batch of sequences."""

    states: Mapping[str, Tensor]
    """Site name to (sample, time, *row shape), where entries past a sequence's length mean
    nothing; to (sample, *row shape) for sites with one row per sample."""
    outputs: Mapping[str, Tensor]
    """Output group to (sample, *row shape), or (sample, time, *row shape) for per-step outputs."""
    lengths: Tensor
    """(sample,) int64: how many steps are real."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the shared inputs of a population are."""

    kind: Literal["ids", "features", "array"]
    """`ids` and `features`: sequences, with one id or one vector per step. `array`: one array per
    sample, such as an image, without time."""
    size: int
    """Number of distinct ids (vocabulary size), of features per step, or of numbers per array."""
    shape: tuple[int, ...] = ()
    """Of one array; empty for sequences."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A place along the depth of feed-forward networks where they are compared."""

    name: str
    axis: RowAxis
    """`time`: one vector of states per step; `sample`: one per position of a sample."""
    positions: tuple[int, ...] = ()
    """Of a sample: (height, width) of feature maps, () where there is one vector per sample or
    step."""


@dataclass(frozen=True, slots=True)
class PopulationSpec:
    """What a meta-model family must know of a population to build itself."""

    inputs: InputSpec
    outputs: tuple[OutputSpec, ...]
    """One per output group, in order of group name."""
    stages: tuple[StageSpec, ...] = ()
    """In order of depth, for families whose depth takes the place of time; empty for others."""
