"""One settled way of running a foreign model, and what a run gives."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.registry.copying import copied
from dynamo_plugin.types import JSON, SequenceBatch

from ._tensors import padded, storable, stored_state

__all__ = ["AxisRole", "Reading", "Run"]

AxisRole: TypeAlias = Literal["sample", "time", "unit"]
"""What an axis of a state or of an output is."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one forward pass gave, with the axes as the model has them until they are arranged."""

    states: Mapping[str, Tensor]
    """Site name to copy, in order of computation and in a dtype that can be stored."""
    sources: Mapping[str, str | None]
    """Site name to the torch name of the dtype that it was widened from, if it was."""
    output: Tensor
    """Copy, in a dtype that can be stored."""
    output_source: str | None = None
    """The dtype that the output was widened from, if it was."""

    @classmethod
    def of(cls, states: Mapping[str, Tensor], output: Tensor | PackedSequence) -> Run:
        """Return a run with its tensors in dtypes that can be stored.

        Parameters
        ----------
        states
            Copies of what was seen, in order of computation.
        output
            What the model returned; copied here. Packed sequences are padded.

        Raises
        ------
        CaptureError
            A tensor is of a dtype that cannot be stored.
        """
        stored = {name: stored_state(state, f"site {name!r}") for name, state in states.items()}
        if isinstance(output, PackedSequence):
            output = padded(output)[0]
        plain = output.dequantize() if output.is_quantized else output
        plain = storable(plain, "the output")
        source = None
        if plain.dtype != output.dtype:
            source = str(output.dtype).removeprefix("torch.")
        return cls(
            states={name: state for name, (state, _) in stored.items()},
            sources={name: own for name, (_, own) in stored.items()},
            output=copied(plain),
            output_source=source,
        )

    def check_sites(self, expected: Collection[str]) -> None:
        """Raise `CaptureError` where the run has other sites than expected."""
        if set(expected) != set(self.states):
            raise CaptureError(
                f"expected the sites {', '.join(expected)}, as on the first samples; got "
                f"{', '.join(self.states) or 'none'}. The model must take the same path for all "
                "inputs, and must not change in between."
            )

    def values(self) -> list[tuple[str, Tensor, str | None]]:
        """Return name, tensor and source dtype of every site and of the output, for messages."""
        sites = [
            (f"site {name!r}", state, self.sources[name]) for name, state in self.states.items()
        ]
        return [*sites, ("the output", self.output, self.output_source)]


class Reading(abc.ABC):
    """Which sites of a model are read, and how it is called.

    An adapter derives from it, and hands it to `describe_reading` and `record_reading`. The model
    is in evaluation mode, without gradients, while it is read.
    """

    model: Any

    proves_layout: ClassVar[bool] = False
    """Whether a run that raises nothing shows that samples and time are where they belong."""

    @abc.abstractmethod
    def watch(self, batch: SequenceBatch) -> Any:
        """Call the model once; raises `CaptureError` where it does not take the batch."""

    @abc.abstractmethod
    def interpret(self, seen: Any, batch: SequenceBatch) -> Run:
        """Return what a call gave; raises `CaptureError` where a site did not behave."""

    def run(self, batch: SequenceBatch) -> Run:
        """Call and interpret."""
        return self.interpret(self.watch(batch), batch)

    def known_axes(self, state: Tensor) -> tuple[AxisRole, ...] | None:
        """Return what the axes of a site's state are, where the reading puts them there itself."""
        return None

    def fixed_steps_fault(self, steps: int, fault: CaptureError) -> CaptureError | None:
        """Return why a model that takes one number of steps only cannot be read, if it cannot.

        Parameters
        ----------
        steps
            The number of steps that it takes.
        fault
            What it raised on another number.
        """
        return None

    def mend(self, inputs: SequenceBatch) -> str:
        """Say how to choose other sites, for messages."""
        return "Choose other modules with layers=, or another part of what they return."

    def options(self) -> dict[str, JSON]:
        """Return what is needed to build the reading again, beside what all readings need."""
        return {}
