"""Readouts: what turns states into outputs, one affine map per output group."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput, suggest
from dynamo_plugin.types import PopulationSpec

__all__ = ["Readout", "last_step", "make_readouts", "make_slopes", "read_outputs"]


Readout = Literal["shared", "conditional"]
"""Whether theta enters the readouts: `shared`, G does not see theta (the paper); `conditional`,
G(theta) = G_0 + sum_k theta_k G_k, so that theta says how the state is read, too."""


def make_readouts(spec: PopulationSpec, units: int) -> nn.ModuleList:
    """Return one affine readout per output group, in the order of the spec.

    (A name may hold any character, so readouts are kept by position.)
    """
    return nn.ModuleList(nn.Linear(units, math.prod(output.shape)) for output in spec.outputs)


def make_slopes(
    spec: PopulationSpec, units: int, embedding_dim: int, readout: Readout
) -> nn.ParameterList | None:
    """Return what theta adds to every readout, (embedding_dim, units + 1, size) each; zero.

    None where readouts are shared.

    Raises
    ------
    InvalidInput
        If there is no such kind of readout.
    """
    if readout not in get_args(Readout):
        raise InvalidInput(
            f"There is no readout {readout!r}. {suggest(readout, get_args(Readout))}"
        )
    if readout == "shared":
        return None
    return nn.ParameterList(
        nn.Parameter(torch.zeros(embedding_dim, units + 1, math.prod(output.shape)))
        for output in spec.outputs
    )


def last_step(states: Tensor, lengths: Tensor) -> Tensor:
    """Return (..., units): states (..., time, units) at the last real step of (...) lengths."""
    units = states.shape[-1]
    last = (lengths - 1)[..., None, None].expand(*lengths.shape, 1, units)
    return states.gather(-2, last).squeeze(-2)


def read_outputs(
    spec: PopulationSpec,
    readouts: nn.ModuleList,
    *,
    final: Tensor,
    steps: Tensor | None = None,
    theta: Tensor | None = None,
    slopes: nn.ParameterList | None = None,
) -> dict[str, Tensor]:
    """Read every output group.

    Parameters
    ----------
    final
        (..., units): what outputs of whole samples are read off.
    steps
        (..., time, units): what outputs of every step are read off.
    theta
        (..., embedding_dim), needed for slopes.
    slopes
        What theta adds to every readout, G(theta) = G_0 + sum_k theta_k G_k; None for nothing.

    Returns
    -------
    dict
        Output group to (..., *shape) or (..., time, *shape).
    """
    outputs = {}
    for index, (output, readout) in enumerate(zip(spec.outputs, readouts, strict=True)):
        source = steps if output.axis == "time" else final
        assert source is not None, "a family without steps has outputs of whole samples"
        read = readout(source)
        if theta is not None and slopes is not None:
            bend = torch.einsum("...k,kuo->...uo", theta, slopes[index])
            rows = source if output.axis == "time" else source.unsqueeze(-2)
            more = rows @ bend[..., :-1, :] + bend[..., -1:, :]
            read = read + (more if output.axis == "time" else more.squeeze(-2))
        outputs[output.group] = read.unflatten(-1, output.shape)
    return outputs
