"""From a reading and what was found out about the model to a trajectory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import OutputSpec, SequenceBatch, SiteSpec, Trajectory, TrajectorySpec

from ._axes import Axes
from ._reading import Reading
from ._tensors import dtype_name

__all__ = ["record_reading", "still_there"]

T = TypeVar("T")


def record_reading(reading: Reading, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
    """Run a model once, and return what its specification says.

    Raises
    ------
    CaptureError
        The sequences differ in length though padding would change what is recorded, or the model
        does not behave as it did when it was described.
    """
    options: Mapping[str, Any] = spec.options
    if not options["ragged_batches"] and bool((inputs.lengths != inputs.lengths[0]).any()):
        raise CaptureError(
            f"{type(reading.model).__name__} cannot tell padding from data, and was given "
            f"sequences of {int(inputs.lengths.min())} to {int(inputs.lengths.max())} steps in one "
            "batch; record sequences of equal length together."
        )
    axes = Axes(options["site_axes"], options["output_axes"])
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
        states={site.name: run.states[site.name] for site in spec.sites},
        outputs={spec.output.group: run.output},
        lengths=inputs.lengths.clone(),
    )


def still_there(available: Mapping[str, T], names: Iterable[str], *, kind: str) -> dict[str, T]:
    """Return those of the modules or hooks of a model that were described.

    Raises
    ------
    CaptureError
        One of them is gone.
    """
    names = list(names)
    missing = [name for name in names if name not in available]
    if missing:
        raise CaptureError(
            f"{kind} {missing[0]!r} was there when the model was described, and is gone. The "
            "model changed in between."
        )
    return {name: available[name] for name in names}


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
