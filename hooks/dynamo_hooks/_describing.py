"""What a model gives, found out by running it on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import (
    JSON,
    OutputSpec,
    RowAxis,
    SequenceBatch,
    SiteSpec,
    TrajectorySpec,
)

from ._axes import Axes
from ._checks import check_repeatable, check_samples_apart, keeps_padding_out
from ._probe_batches import full_probe, probe_sizes
from ._reading import Reading, Run
from ._tensors import dtype_name

__all__ = ["describe_reading"]

R = TypeVar("R", bound=Reading)


def describe_reading(
    read: Callable[[bool, SequenceBatch], tuple[R, Any]],
    inputs: SequenceBatch,
    *,
    adapter: str,
    takes_lengths: bool,
    layouts: Sequence[bool] = (False, True),
    settle: Callable[[R, SequenceBatch, Run], R] = lambda reading, probe, run: reading,
) -> TrajectorySpec:
    """Run a model on a few samples until it is known how to read it, and what that gives.

    The runs use batches whose sample count differs from the number of steps, so that no layout
    is ever guessed. The model must give the same twice, and for each sample the same alone as
    among others.

    Parameters
    ----------
    read
        Takes `time_first` (the model is to be handed (time, sample, ...) values) and a probe;
        returns what to read, and how, and what it saw when the model ran on the probe.
    inputs
        At least one sample, of the kind that will be recorded.
    adapter
        Registered name, for the specification.
    takes_lengths
        Whether the model is told the lengths.
    layouts
        The values of `time_first` to try; those after the first only on sequences.
    settle
        Takes a reading, a probe and what it gave; returns the reading with what only further
        runs can tell, before samples and padding are looked at.

    Returns
    -------
    TrajectorySpec
        Its options are `time_first`, `takes_lengths`, `ragged_batches` (sequences of different
        lengths may share a batch: each gives what it gives alone), `site_axes`, `output_axes`,
        and those of the reading.

    Raises
    ------
    CaptureError
        The model can be read in none of the layouts; says why in each.
    """
    layouts = layouts if inputs.has_time else layouts[:1]
    probes = _Probes.of(inputs)
    faults: list[CaptureError] = []
    for time_first in layouts:
        try:
            reading, seen = read(time_first, probes.first)
            first = reading.interpret(seen, probes.first)
        except CaptureError as error:
            faults.append(error)
            continue
        try:
            found = _found(reading, first, probes, takes_lengths=takes_lengths, settle=settle)
        except CaptureError as error:
            if reading.proves_layout:
                raise
            faults.append(error)
            continue
        options = {"time_first": time_first, "takes_lengths": takes_lengths}
        return _specification(adapter, found, options)
    if len({str(fault) for fault in faults}) == 1:
        raise faults[0]
    raise CaptureError(
        f"{faults[0]} (Given (time, sample, ...) values instead: {faults[1]})"
    ) from faults[0]


@dataclass(frozen=True, slots=True)
class _Probes:
    inputs: SequenceBatch
    first: SequenceBatch
    """Samples without padding, of as many steps as the longest of the inputs."""
    other_samples: int
    """How many samples the second run has."""
    other_times: tuple[int, ...]
    """Numbers of steps to try there; the last is that of the first run, which the model takes."""

    @classmethod
    def of(cls, inputs: SequenceBatch) -> _Probes:
        time = int(inputs.lengths.max()) if inputs.has_time else 0
        times = (*([time - 1] if time > 1 else []), time + 1, time) if inputs.has_time else (0,)
        samples, others = probe_sizes(times)
        return cls(inputs, full_probe(inputs, samples=samples, time=time), others, times)

    def other(self, time: int) -> SequenceBatch:
        return full_probe(self.inputs, samples=self.other_samples, time=time)


@dataclass(frozen=True, slots=True)
class _Found:
    reading: Reading
    run: Run
    """What the first probe gave, arranged."""
    axes: Axes
    ragged: bool


def _found(
    reading: R,
    first: Run,
    probes: _Probes,
    *,
    takes_lengths: bool,
    settle: Callable[[R, SequenceBatch, Run], R],
) -> _Found:
    probe = probes.first
    check_repeatable(reading, probe, first)
    second, other_size = _second_run(reading, probes)
    sizes = [(len(probe.values), probes.other_times[-1]), other_size]
    axes = Axes.found(reading, (first, second), sizes, probes.inputs)
    run = axes.arrange(first)
    reading = settle(reading, probe, run)
    check_samples_apart(reading, probe, axes)
    ragged = keeps_padding_out(reading, probe, axes, takes_lengths=takes_lengths)
    return _Found(reading, run, axes, ragged)


def _second_run(reading: Reading, probes: _Probes) -> tuple[Run, tuple[int, int]]:
    """Run on the first of the other numbers of steps that the model takes; return it, and size.

    Some models take one number of steps only. Only what the model itself raises counts as not
    taking them: a site that behaves otherwise on other inputs is an error.
    """
    *others, same = probes.other_times
    fault: CaptureError | None = None
    for time in others:
        batch = probes.other(time)
        try:
            seen = reading.watch(batch)
        except CaptureError as error:
            fault = error
            continue
        return reading.interpret(seen, batch), (probes.other_samples, time)
    if fault is not None and (refusal := reading.fixed_steps_fault(same, fault)) is not None:
        raise refusal from fault
    return reading.run(probes.other(same)), (probes.other_samples, same)


def _specification(adapter: str, found: _Found, options: Mapping[str, JSON]) -> TrajectorySpec:
    run, axes = found.run, found.axes
    sites = []
    for name, roles in axes.sites.items():
        shape, axis = _rows(run.states[name], roles)
        dtype = dtype_name(run.states[name])
        sites.append(SiteSpec(name, shape, dtype, axis=axis, source_dtype=run.sources[name]))
    shape, axis = _rows(run.output, axes.output)
    group = f"output{'x'.join(map(str, shape))}" + ("-per-step" if axis == "time" else "")
    return TrajectorySpec(
        adapter=adapter,
        sites=tuple(sites),
        output=OutputSpec(group=group, shape=shape, dtype=dtype_name(run.output), axis=axis),
        options={
            **options,
            "ragged_batches": found.ragged,
            "site_axes": {name: list(roles) for name, roles in axes.sites.items()},
            "output_axes": list(axes.output),
            **found.reading.options(),
        },
    )


def _rows(arranged: Tensor, roles: Sequence[str]) -> tuple[tuple[int, ...], RowAxis]:
    if "time" in roles:
        return tuple(arranged.shape[2:]), "time"
    return tuple(arranged.shape[1:]), "sample"
