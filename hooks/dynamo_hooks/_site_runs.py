"""From runs of a model, of any framework, to its specification and its trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

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

from ._axes import arranged, axis_roles
from ._probe_batches import full_probe, probe_sizes, ragged_probe
from ._reading import AxisRole
from ._tensors import close, dtype_name, storable, stored_state

__all__ = ["Runner", "SiteRun", "described", "recorded"]


@dataclass(frozen=True, slots=True)
class SiteRun:
    """What one forward pass gave."""

    states: Mapping[str, Tensor]
    """Site name to its state with the axes as the model has them, in order of computation."""
    output: Tensor
    """With the axes as the model has them."""


Runner: TypeAlias = Callable[[SequenceBatch], SiteRun]
"""Runs one model on a batch, in evaluation mode, and returns copies."""

_Axes: TypeAlias = Mapping[str, Sequence[AxisRole]]
_OUTPUT = "the output"


def described(
    run: Runner,
    inputs: SequenceBatch,
    *,
    adapter: str,
    mend: Callable[[], str] = lambda: "Choose other sites with layers=.",
) -> TrajectorySpec:
    """Run a model on a few samples and say what it will give.

    The model runs on two batches that differ in the number of samples and, where it can, of
    steps: the axes are what follows. It runs twice on the same batch, on one sample alone, and on
    sequences with and without padding, which must not change what is recorded if
    `ragged_batches` is to be true.

    Parameters
    ----------
    run
        Runs the model; is called up to eight times.
    inputs
        At least one sample, of the kind that will be recorded.
    adapter
        Registered name, for the specification.
    mend
        Says how to choose other sites, for messages.

    Returns
    -------
    TrajectorySpec
        The options are `site_axes`, `output_axes` and `ragged_batches`.

    Raises
    ------
    CaptureError
        The model is not a function of each of its samples, or a tensor has axes that cannot be
        told apart or stored.
    """
    longest = int(inputs.lengths.max()) if inputs.has_time else 0
    others = [time for time in (longest - 1, longest + 1) if time > 0] if inputs.has_time else []
    samples, other_samples = probe_sizes([longest, *others])
    probe = full_probe(inputs, samples=samples, time=longest)
    first = run(probe)
    tensors = _labelled(first)
    _check_repeatable(tensors, _labelled(run(probe)))
    second, time = _second_run(run, inputs, samples=other_samples, times=[*others, longest])
    axes = _axes(tensors, _labelled(second), [(samples, longest), (other_samples, time)], mend)
    rows = _arranged(tensors, axes)
    _check_samples_apart(run, probe, rows, axes)
    sites = tuple(
        SiteSpec(
            name,
            tuple(rows[_site(name)].shape[2 if "time" in axes[_site(name)] else 1 :]),
            dtype_name(rows[_site(name)]),
            axis=_row_axis(axes[_site(name)]),
            source_dtype=stored_state(state, _site(name))[1],
        )
        for name, state in first.states.items()
    )
    output = rows[_OUTPUT]
    axis = _row_axis(axes[_OUTPUT])
    options: dict[str, JSON] = {
        "site_axes": {name: list(axes[_site(name)]) for name in first.states},
        "output_axes": list(axes[_OUTPUT]),
        "ragged_batches": inputs.has_time and _mixes_lengths(run, probe, axes),
    }
    return TrajectorySpec(
        adapter=adapter,
        sites=sites,
        output=OutputSpec(
            group=f"output{output.shape[-1]}" + ("-per-step" if axis == "time" else ""),
            shape=(int(output.shape[-1]),),
            dtype=dtype_name(output),
            axis=axis,
        ),
        options=options,
    )


def recorded(run: Runner, inputs: SequenceBatch, spec: TrajectorySpec, *, model: str) -> Trajectory:
    """Run a model once and arrange what it gave by what `described` found out.

    Raises
    ------
    CaptureError
        The sequences differ in length though padding would change what is recorded, or the
        model, called `model` in the message, does not behave as it was described.
    """
    options: Mapping[str, Any] = spec.options
    if not options["ragged_batches"] and bool((inputs.lengths != inputs.lengths[0]).any()):
        raise CaptureError(
            f"{model} cannot tell padding from data, and was given sequences of "
            f"{int(inputs.lengths.min())} to {int(inputs.lengths.max())} steps in one batch; "
            "record sequences of equal length together."
        )
    given = run(inputs)
    if set(given.states) != {site.name for site in spec.sites}:
        raise CaptureError(
            f"expected the sites {', '.join(site.name for site in spec.sites)} as they were "
            f"described; got {', '.join(given.states) or 'none'}. The model changed in between."
        )
    axes = {_site(name): roles for name, roles in options["site_axes"].items()}
    rows = _arranged(_labelled(given), {**axes, _OUTPUT: options["output_axes"]})
    leading = tuple(inputs.values.shape[:2])
    for site in spec.sites:
        _check_as_described(rows[_site(site.name)], site, leading, _site(site.name))
    _check_as_described(rows[_OUTPUT], spec.output, leading, _OUTPUT)
    return Trajectory(
        states={site.name: rows[_site(site.name)].contiguous() for site in spec.sites},
        outputs={spec.output.group: rows[_OUTPUT].contiguous()},
        lengths=inputs.lengths.clone(),
    )


def _site(name: str) -> str:
    return f"site {name!r}"


def _row_axis(roles: Sequence[AxisRole]) -> RowAxis:
    return "time" if "time" in roles else "sample"


def _labelled(run: SiteRun) -> dict[str, Tensor]:
    """Return states and output as a store holds them, by what messages call them."""
    tensors = {_site(name): stored_state(t, _site(name))[0] for name, t in run.states.items()}
    tensors[_OUTPUT] = storable(run.output, _OUTPUT)
    return tensors


def _arranged(tensors: Mapping[str, Tensor], axes: _Axes) -> dict[str, Tensor]:
    return {label: arranged(t, axes[label], what=label) for label, t in tensors.items()}


def _second_run(
    run: Runner, inputs: SequenceBatch, *, samples: int, times: Sequence[int]
) -> tuple[SiteRun, int]:
    """Run on the first of the given numbers of steps that the model takes; return it, and that.

    Some models take one number of steps only; it stands last.
    """
    for time in times[:-1]:
        try:
            return run(full_probe(inputs, samples=samples, time=time)), time
        except CaptureError:
            continue
    return run(full_probe(inputs, samples=samples, time=times[-1])), times[-1]


def _axes(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    sizes: Sequence[tuple[int, int]],
    mend: Callable[[], str],
) -> _Axes:
    times = (sizes[0][1], sizes[1][1])
    axes: dict[str, Sequence[AxisRole]] = {}
    for label, one in first.items():
        if label not in second:
            raise CaptureError(
                f"{label} was there on one batch and not on another. The model must take the same "
                "path for all inputs."
            )
        other = second[label]
        if label == _OUTPUT:
            axes[label] = axis_roles(one, other, sizes)
            continue
        pairs = list(zip(one.shape, other.shape, strict=False))
        if pairs.count(times) > 1 and times[0] != times[1]:
            raise CaptureError(
                f"{label} has shapes {tuple(one.shape)} and {tuple(other.shape)} for sequences of "
                f"{times[0]} and {times[1]} steps: two axes follow time, as in attention patterns, "
                f"so that its rows have no fixed size. Expected one axis of time. {mend()}"
            )
        try:
            axes[label] = axis_roles(one, other, sizes, what=label, mend=lambda: "")
        except CaptureError as error:
            raise CaptureError(f"{str(error).rstrip()} {mend()}") from None
    return axes


def _check_repeatable(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    for label, before in first.items():
        if label not in second or not close(before, second[label]):
            raise CaptureError(
                f"{label} differs between two runs on the same inputs. The model keeps a state "
                "between calls or draws random numbers in evaluation mode; give forward= that "
                "resets it first."
            )


def _check_samples_apart(
    run: Runner, probe: SequenceBatch, together: Mapping[str, Tensor], axes: _Axes
) -> None:
    """Compare the last sample of a batch with the same sample alone.

    The last, because models that take time for samples pass information from the first on.
    """
    lone = SequenceBatch(probe.values[-1:], probe.lengths[-1:], has_time=probe.has_time)
    alone = _arranged(_labelled(run(lone)), axes)
    for label, state in together.items():
        if not close(state[-1:], alone[label], loose=True):
            raise CaptureError(
                f"{label} of a sample is another one alone than in a batch. The model mixes its "
                "samples: it normalises over the batch, or wants (time, sample) inputs. Call it "
                "so that it does not with forward=lambda model, values, lengths: ..., for example "
                "on values.transpose(0, 1)."
            )


def _mixes_lengths(run: Runner, probe: SequenceBatch, axes: _Axes) -> bool:
    """Return whether padded sequences give what each gives alone, whatever the padding holds."""
    if int(probe.lengths[0]) == 1:
        return False
    zeros, alone = ragged_probe(probe)
    repeats = zeros.values.clone()
    real = int(zeros.lengths[1])
    repeats[1, real:] = repeats[1, :1]
    try:
        mixed = [
            _arranged(_labelled(run(SequenceBatch(values, zeros.lengths))), axes)
            for values in (zeros.values, repeats)
        ]
        singles = [_arranged(_labelled(run(batch)), axes) for batch in alone]
    except CaptureError:
        return False
    for row, (single, batch) in enumerate(zip(singles, alone, strict=True)):
        steps = int(batch.lengths[0])
        for label, state in single.items():
            for together in mixed:
                part = together[label][row : row + 1]
                if not close(part[:, :steps] if "time" in axes[label] else part, state):
                    return False
    return True


def _check_as_described(
    tensor: Tensor, declared: SiteSpec | OutputSpec, leading: tuple[int, ...], label: str
) -> None:
    wanted = leading[: 2 if declared.axis == "time" else 1] + declared.shape
    if tuple(tensor.shape) != wanted or dtype_name(tensor) != declared.dtype:
        raise CaptureError(
            f"{label} was described as {declared.dtype} of shape {wanted}; got "
            f"{dtype_name(tensor)} of {tuple(tensor.shape)}. Values per step must have as many "
            "steps as the padded inputs, and the model must not change in between."
        )
