"""Reading what modules return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import JSON, SequenceBatch, TrajectorySpec

from ._calling import Caller
from ._layer_choice import Event, calls_of
from ._layer_places import Place, Watched, watched
from ._reading import Reading, Run

__all__ = ["LayerReading"]

Select: TypeAlias = Callable[[Any], Tensor | PackedSequence]


@dataclass(frozen=True, slots=True)
class LayerReading(Reading):
    """Where states are read in a model, and how it is called."""

    model: nn.Module
    places: Mapping[str, Place]
    """Site name to place, in order of computation."""
    calls: Mapping[str, int]
    """Module path to its calls in a forward pass."""
    call: Caller
    """How the model takes its inputs."""
    select: Select
    """Finds the output in its result."""
    counted_on: int | None = None
    """Number of steps of the batch on which the calls were counted, if that is known."""

    @classmethod
    def chosen(
        cls,
        model: nn.Module,
        probe: SequenceBatch,
        choose: Callable[[Sequence[Event]], Mapping[str, Place]],
        *,
        call: Caller,
        select: Select,
    ) -> tuple[LayerReading, Any]:
        """Run the model, and choose places by what was called; watch these in another run.

        `choose` takes the calls of modules in order of return.
        """
        events = calls_of(model, call, probe)
        places = choose(events)
        paths = [path for path, _ in events]
        calls = {place.path: paths.count(place.path) for place in places.values()}
        reading = cls(model, places, calls, call, select, _steps(probe))
        return reading, reading.watch(probe)

    @classmethod
    def described(
        cls, model: nn.Module, spec: TrajectorySpec, *, call: Caller, select: Select
    ) -> LayerReading:
        """Return the reading whose options a specification holds."""
        options: Mapping[str, Any] = spec.options
        places = {name: Place(**place) for name, place in options["places"].items()}
        return cls(model, places, options["calls"], call, select)

    def watch(self, batch: SequenceBatch) -> tuple[Watched, Any]:
        """Call the model once; return what its modules did, and its result."""
        with watched(self.model, self.places) as seen:
            result = self.call(self.model, batch)
        return seen, result

    def interpret(self, seen: tuple[Watched, Any], batch: SequenceBatch) -> Run:
        """Return states and output of a call."""
        modules, result = seen
        self._check_calls(modules.calls, _steps(batch))
        states = {name: modules.states[name] for name in self.places}
        return Run.of(states, self.select(result))

    def options(self) -> dict[str, JSON]:
        """Return the places and how often their modules are called."""
        return {
            "places": {name: place.as_json() for name, place in self.places.items()},
            "calls": dict(self.calls),
        }

    def _check_calls(self, calls: Mapping[str, int], steps: int | None) -> None:
        for path, expected in self.calls.items():
            came = calls.get(path, 0)
            if came == expected:
                continue
            sites = ", ".join(
                repr(name) for name, place in self.places.items() if place.path == path
            )
            advice = "choose other modules with layers=."
            if (expected, came) == (self.counted_on, steps):
                advice = (
                    "this module is called once per step, as a cell is. Its calls are read as "
                    f'time by adapter="torch_recurrent" with layers=[{path!r}].'
                )
            raise CaptureError(
                f"site {sites}: the module ran {came} times in this forward pass and {expected} "
                "times in the first one. The number of calls must be the same for all inputs; "
                f"{advice}"
            )


def _steps(batch: SequenceBatch) -> int | None:
    return int(batch.values.shape[1]) if batch.has_time else None
