"""Readouts: what turns states into outputs, one affine map per output group."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dynamo_plugin.types import PopulationSpec

__all__ = ["last_step", "make_readouts", "read_outputs"]


def make_readouts(spec: PopulationSpec, units: int) -> nn.ModuleList:
    """Return one affine readout per output group, in the order of the spec.

    (A name may hold any character, so readouts are kept by position.)
    """
    return nn.ModuleList(nn.Linear(units, math.prod(output.shape)) for output in spec.outputs)


def last_step(states: Tensor, lengths: Tensor) -> Tensor:
    """Return (..., units): states (..., time, units) at the last real step of (...) lengths."""
    units = states.shape[-1]
    last = (lengths - 1)[..., None, None].expand(*lengths.shape, 1, units)
    return states.gather(-2, last).squeeze(-2)


def read_outputs(
    spec: PopulationSpec, readouts: nn.ModuleList, *, final: Tensor, steps: Tensor | None = None
) -> dict[str, Tensor]:
    """Read every output group.

    Parameters
    ----------
    final
        (..., units): what outputs of whole samples are read off.
    steps
        (..., time, units): what outputs of every step are read off.

    Returns
    -------
    dict
        Output group to (..., *shape) or (..., time, *shape).
    """
    outputs = {}
    for output, readout in zip(spec.outputs, readouts, strict=True):
        source = steps if output.axis == "time" else final
        outputs[output.group] = readout(source).unflatten(-1, output.shape)
    return outputs
