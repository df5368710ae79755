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
    "Trajectory",
    "TrajectorySpec",
]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

RowAxis: TypeAlias = Literal["time", "sample"]
"""What one stored row is: one time step of one sample, or one sample."""


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Some sequences, padded at the end to the longest of them."""

    values: Tensor
    """(sample, time) integer ids, or (sample, time, feature) numbers; padding is zero."""
    lengths: Tensor
    """(sample,) int64 on the CPU: how many steps of each row are real."""


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """A place in a base model whose state is recorded."""

    name: str
    shape: tuple[int, ...]
    """Shape of one row, for example (units,)."""
    dtype: str
    """NumPy name of the stored dtype: float16, float32 or float64."""
    axis: RowAxis = "time"


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
    """Site name to (sample, time, *row shape); entries past a sequence's length mean nothing."""
    outputs: Mapping[str, Tensor]
    """Output group to (sample, *row shape), or (sample, time, *row shape) for per-step outputs."""
    lengths: Tensor
    """(sample,) int64: how many steps are real."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the shared inputs of a population are."""

    kind: Literal["ids", "features"]
    size: int
    """Number of distinct ids (vocabulary size), or of features per step."""


@dataclass(frozen=True, slots=True)
class PopulationSpec:
    """What a meta-model family must know of a population to build itself."""

    inputs: InputSpec
    outputs: tuple[OutputSpec, ...]
    """One per output group, in order of group name."""
