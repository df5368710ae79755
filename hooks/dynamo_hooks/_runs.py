"""What a forward pass gave, and how its axes are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from dynamo_plugin.types import SequenceBatch

from ._probes import AxisRole, arranged

__all__ = ["Axes", "Reading", "Run"]


@dataclass(frozen=True, slots=True)
class Run:
    """What one forward pass gave."""

    states: dict[str, Tensor]
    """Site name to copy, in order of computation and in a dtype that can be stored."""
    sources: dict[str, str | None]
    """Site name to the torch name of the dtype that it was widened from, if it was."""
    output: Tensor
    """As the model returned it, in a dtype that can be stored."""
    output_source: str | None = None
    """The dtype that the output was widened from, if it was."""

    def values(self) -> list[tuple[str, Tensor, str | None]]:
        """Return name, tensor and source dtype of every site and of the output, for messages."""
        sites = [
            (f"site {name!r}", state, self.sources[name]) for name, state in self.states.items()
        ]
        return [*sites, ("the output", self.output, self.output_source)]


class Reading(Protocol):
    """One settled way of reading a model: what is watched, and how the model is called."""

    @property
    def model(self) -> nn.Module:
        """In evaluation mode, without gradients."""

    def watch(self, batch: SequenceBatch) -> Any:
        """Call the model once; raises `CaptureError` where it does not take the batch."""

    def interpret(self, seen: Any, batch: SequenceBatch) -> Run:
        """Return what a call gave; raises `CaptureError` where a site did not behave."""

    def run(self, batch: SequenceBatch) -> Run:
        """Call and interpret."""


@dataclass(frozen=True, slots=True)
class Axes:
    """What each axis of the states and of the output is."""

    sites: Mapping[str, tuple[AxisRole, ...]]
    output: tuple[AxisRole, ...]

    def arrange(self, run: Run) -> Run:
        """Return the run with axes (sample, units...) or (sample, time, units...), contiguous."""
        return replace(
            run,
            states={
                name: arranged(state, self.sites[name], what=f"site {name!r}").contiguous()
                for name, state in run.states.items()
            },
            output=arranged(run.output, self.output).contiguous(),
        )

    def all_in_time(self) -> bool:
        """Return whether every site and the output have one row per step."""
        return all("time" in roles for roles in (*self.sites.values(), self.output))
