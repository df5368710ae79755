"""Reading the results of modules: from places to a specification and to trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import (
    JSON,
    OutputSpec,
    RowAxis,
    SequenceBatch,
    SiteSpec,
    Trajectory,
    TrajectorySpec,
)

from ._calling import Caller
from ._findings import Findings
from ._runs import Axes, Run
from ._tensors import copied, dtype_name, padded, storable, stored_state
from ._watching import Place, Watched, watched

__all__ = ["LayerReading", "Select", "specification", "trajectory"]

Select: TypeAlias = Callable[[Any], Tensor | PackedSequence]


@dataclass(frozen=True, slots=True)
class LayerReading:
    """Where states are read in a model, and how it is called."""

    model: nn.Module
    """In evaluation mode, without gradients."""
    places: Mapping[str, Place]
    """Site name to place, in order of computation."""
    calls: Mapping[str, int]
    """Module path to its calls in a forward pass."""
    call: Caller
    """How the model takes its inputs."""
    select: Select
    """Finds the output in its result."""

    def watch(self, batch: SequenceBatch) -> tuple[Watched, Any]:
        """Call the model once; return what its modules did, and its result."""
        with watched(self.model, self.places) as seen:
            result = self.call(self.model, batch)
        return seen, result

    def interpret(self, seen: tuple[Watched, Any], batch: SequenceBatch) -> Run:
        """Return states and output of a call."""
        modules, result = seen
        self._check_calls(modules.calls)
        states: dict[str, Tensor] = {}
        sources: dict[str, str | None] = {}
        for name in self.places:
            states[name], sources[name] = stored_state(modules.states[name], f"site {name!r}")
        output = self.select(result)
        if isinstance(output, PackedSequence):
            output = padded(output)[0]
        source = None
        if output.is_quantized:
            output, source = stored_state(output, "the output")
        stored = storable(output, "the output")
        if stored.dtype != output.dtype:
            source = str(output.dtype).removeprefix("torch.")
        return Run(states, sources, copied(stored), source)

    def run(self, batch: SequenceBatch) -> Run:
        """Call and interpret."""
        return self.interpret(self.watch(batch), batch)

    def _check_calls(self, calls: Mapping[str, int]) -> None:
        for path, expected in self.calls.items():
            came = calls.get(path, 0)
            if came != expected:
                sites = ", ".join(
                    repr(name) for name, place in self.places.items() if place.path == path
                )
                raise CaptureError(
                    f"site {sites}: the module ran {came} times in this forward pass and "
                    f"{expected} times in the first one. The number of calls must be the same for "
                    "all inputs; choose other modules with layers=. Modules that are stepped "
                    "through time are no layers."
                )


def specification(adapter: str, findings: Findings, *, takes_lengths: bool) -> TrajectorySpec:
    """Return what an adapter records of a model, with what `trajectory` needs to know."""
    reading, run, axes = findings.reading, findings.run, findings.axes
    assert isinstance(reading, LayerReading)
    sites = []
    for name, state in run.states.items():
        leading, axis = _leading(axes.sites[name])
        sites.append(
            SiteSpec(
                name,
                tuple(state.shape[leading:]),
                dtype_name(state),
                axis=axis,
                source_dtype=run.sources[name],
            )
        )
    leading, axis = _leading(axes.output)
    shape = tuple(run.output.shape[leading:])
    group = f"output{'x'.join(map(str, shape))}" + ("-per-step" if axis == "time" else "")
    options: dict[str, JSON] = {
        "time_first": findings.time_first,
        "takes_lengths": takes_lengths,
        "ragged_batches": findings.ragged,
        "places": {name: _as_json(place) for name, place in reading.places.items()},
        "calls": dict(reading.calls),
        "site_axes": {name: list(roles) for name, roles in axes.sites.items()},
        "output_axes": list(axes.output),
    }
    return TrajectorySpec(
        adapter=adapter,
        sites=tuple(sites),
        output=OutputSpec(group=group, shape=shape, dtype=dtype_name(run.output), axis=axis),
        options=options,
    )


def trajectory(
    model: nn.Module,
    inputs: SequenceBatch,
    spec: TrajectorySpec,
    *,
    call: Caller,
    select: Select,
) -> Trajectory:
    """Run a model, in evaluation mode, and return what a specification says.

    Raises
    ------
    CaptureError
        The model does not behave as it did when it was described.
    """
    options: Mapping[str, Any] = spec.options
    if not options["ragged_batches"] and bool((inputs.lengths != inputs.lengths[0]).any()):
        raise CaptureError(
            f"{type(model).__name__} cannot tell padding from data, and was given sequences "
            f"of {int(inputs.lengths.min())} to {int(inputs.lengths.max())} steps in one "
            "batch; record sequences of equal length together."
        )
    places = {name: Place(**place) for name, place in options["places"].items()}
    axes = Axes(
        {name: tuple(roles) for name, roles in options["site_axes"].items()},
        tuple(options["output_axes"]),
    )
    reading = LayerReading(model, places, options["calls"], call, select)
    run = axes.arrange(reading.run(inputs))
    for site in spec.sites:
        _check(f"site {site.name!r}", site, run.states[site.name], inputs)
        if run.sources[site.name] != site.source_dtype:
            raise CaptureError(
                f"site {site.name!r} was computed in "
                f"{site.source_dtype or site.dtype} when it was described, and now in "
                f"{run.sources[site.name] or site.dtype}. The model, or autocast around it, "
                "changed in between."
            )
    _check("the output", spec.output, run.output, inputs)
    return Trajectory(
        states=run.states,
        outputs={spec.output.group: run.output},
        lengths=inputs.lengths.clone(),
    )


def _check(name: str, declared: SiteSpec | OutputSpec, came: Tensor, inputs: SequenceBatch) -> None:
    leading = tuple(inputs.values.shape[: 2 if declared.axis == "time" else 1])
    expected = (*leading, *declared.shape)
    if tuple(came.shape) != expected or dtype_name(came) != declared.dtype:
        raise CaptureError(
            f"{name}: expected {declared.dtype} of shape {expected}, as it was described; got "
            f"{dtype_name(came)} of shape {tuple(came.shape)}. The model changed in between, or "
            "gives other shapes for other inputs: the number of rows must be that of the samples "
            "or of the padded steps."
        )


def _leading(roles: tuple[str, ...]) -> tuple[int, RowAxis]:
    return (2, "time") if "time" in roles else (1, "sample")


def _as_json(place: Place) -> JSON:
    selector = None if place.selector is Ellipsis else place.selector
    described: dict[str, JSON] = {
        "path": place.path,
        "call": place.call,
        "selector": list(selector) if isinstance(selector, list) else selector,
        "side": place.side,
    }
    return described
