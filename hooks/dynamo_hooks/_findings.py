"""What is found out about a model by running it on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._probes import axis_roles, full_probe, probe_sizes
from ._run_checks import check_repeatable, check_samples_apart, keeps_padding_out
from ._runs import Axes, Reading, Run

__all__ = ["Findings", "find_out", "second_run"]


@dataclass(frozen=True, slots=True)
class Findings:
    """A model that was run on a few samples."""

    reading: Reading
    """The way of reading it that fits."""
    run: Run
    """What a batch gave, arranged as (sample, [time,] units...)."""
    axes: Axes
    """What each axis is of what the model gives."""
    time_first: bool
    """Whether the model wants (time, sample, ...) values."""
    ragged: bool
    """Whether sequences of different lengths may share a batch."""


def find_out(
    read: Callable[[bool, SequenceBatch], Reading],
    inputs: SequenceBatch,
    *,
    layouts: Sequence[bool] = (False, True),
    takes_lengths: bool,
) -> Findings:
    """Run a model on a few samples until it is known how to read it.

    The runs use batches whose sample count differs from the number of steps, so that no layout
    is ever guessed.

    Parameters
    ----------
    read
        Takes `time_first` and a probe, runs the model on it, and returns what to read.
    inputs
        At least one sample, of the kind that will be recorded.
    layouts
        The values of `time_first` to try; those after the first only on sequences.
    takes_lengths
        Whether the model is told the lengths.

    Raises
    ------
    CaptureError
        The model can be read in none of the layouts; says why in each.
    """
    if not inputs.has_time:
        layouts = layouts[:1]
    faults: list[CaptureError] = []
    for time_first in layouts:
        try:
            return _found(read, inputs, time_first=time_first, takes_lengths=takes_lengths)
        except CaptureError as error:
            faults.append(error)
    if len({str(fault) for fault in faults}) == 1:
        raise faults[0]
    raise CaptureError(
        f"{faults[0]} (Given (time, sample, ...) values instead: {faults[1]})"
    ) from faults[0]


def _found(
    read: Callable[[bool, SequenceBatch], Reading],
    inputs: SequenceBatch,
    *,
    time_first: bool,
    takes_lengths: bool,
) -> Findings:
    time = int(inputs.lengths.max()) if inputs.has_time else 0
    times = ([time - 1] if time > 1 else []) + [time + 1, time] if inputs.has_time else [0]
    samples, other_samples = probe_sizes(times)
    probe = full_probe(inputs, samples=samples, time=time)
    reading = read(time_first, probe)
    run = reading.run(probe)
    check_repeatable(reading, probe, run)
    second, size = second_run(reading, inputs, samples=other_samples, times=times)
    sizes = [(samples, time), size]
    choose = "Choose other modules with layers=, or another part of what they return."
    axes = Axes(
        sites={
            name: axis_roles(
                state,
                second.states[name],
                sizes,
                what=f"site {name!r}",
                unit_axes=None,
                mend=choose,
            )
            for name, state in run.states.items()
        },
        output=axis_roles(run.output, second.output, sizes, unit_axes=None),
    )
    check_samples_apart(reading, probe, axes)
    return Findings(
        reading=reading,
        run=axes.arrange(run),
        axes=axes,
        time_first=time_first,
        ragged=keeps_padding_out(reading, probe, axes, takes_lengths=takes_lengths),
    )


def second_run(
    reading: Reading, inputs: SequenceBatch, *, samples: int, times: Sequence[int]
) -> tuple[Run, tuple[int, int]]:
    """Run on the first of the given numbers of steps that the model takes; return it, and size.

    Some models take one number of steps only; it stands last. Only what the model itself raises
    counts as not taking them: a site that behaves otherwise on other inputs is an error.
    """
    for time in times[:-1]:
        batch = full_probe(inputs, samples=samples, time=time)
        try:
            seen = reading.watch(batch)
        except CaptureError:
            continue
        return reading.interpret(seen, batch), (samples, time)
    last = full_probe(inputs, samples=samples, time=times[-1])
    return reading.run(last), (samples, times[-1])
