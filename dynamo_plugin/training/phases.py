"""What a fit learns when: dimensions of theta that distinguish networks before those of their own.

A theta that has room for everything is filled with what is private to each network; one without
room for it emulates less well. So a fit may have two phases. In the first, the leading dimensions
are learned, with the alignment that makes them say what distinguishes the networks. In the second
they stay as they are, and private dimensions are learned for what is left, without alignment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamo_plugin.training.config import FitConfig

__all__ = ["Phase", "hold_thetas", "learning_rate", "phase_at", "theta_units"]


HELD = 0.5
"""Share of the first phase in which thetas that start along components stay there: a meta-model
that cannot do anything yet has nothing to say about them."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps in which the same is learned."""

    start: int
    stop: int
    dims: slice
    """The dimensions of theta that are learned."""
    alignment_weight: float


def phase_at(step: int, config: FitConfig) -> Phase:
    """Return the phase of a step, counted from 0; of the last one where a fit has ended.

    >>> config = FitConfig(steps=100, embedding_dim=10, leading_dim=2, leading_share=0.3)
    >>> phase_at(29, config).dims, phase_at(30, config).dims
    (slice(0, 2, None), slice(2, 10, None))
    """
    leading, dim = _dimensions(config)
    turn = config.steps if leading == dim else math.ceil(config.leading_share * config.steps)
    if step >= turn and leading < dim:
        return Phase(turn, config.steps, slice(leading, dim), 0.0)
    held = config.theta_init == "components" and step < HELD * turn
    return Phase(0, turn, slice(0, 0 if held else leading), config.alignment_weight)


def learning_rate(step: int, config: FitConfig) -> float:
    """Return the share of its peak that a rate has at a step, counted from 0.

    >>> config = FitConfig(steps=101, warmup=1, leading_dim=None)
    >>> [round(learning_rate(step, config), 3) for step in (0, 1, 51, 101)]
    [0.5, 1.0, 0.5, 0.0]
    """
    phase = phase_at(step, config)
    step -= phase.start
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(phase.stop - phase.start - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def hold_thetas(thetas: nn.Parameter, optimiser: torch.optim.Adam, dims: slice) -> None:
    """Take from a gradient, and from Adam's memory, all that moves other dimensions than these.

    Parameters
    ----------
    thetas
        (model, embedding_dim).
    optimiser
        Of theirs.
    dims
        The dimensions that are learned.
    """
    for moving in (thetas.grad, optimiser.state[thetas].get("exp_avg")):
        if moving is not None:
            learned = moving[:, dims].clone()
            moving.zero_()[:, dims] = learned


def theta_units(config: FitConfig) -> Tensor:
    """Return (embedding_dim,): in how large units the dimensions of theta are written in the end.

    >>> theta_units(FitConfig(embedding_dim=3, leading_dim=1, private_scale=0.1))
    tensor([1.0000, 0.1000, 0.1000])
    """
    leading, dim = _dimensions(config)
    units = torch.ones(dim)
    units[leading:] = config.private_scale
    return units


def _dimensions(config: FitConfig) -> tuple[int, int]:
    """Return the number of leading dimensions and of all, which are known once a fit is built."""
    dim, leading = config.embedding_dim, config.leading_dim
    if leading is None:
        leading = dim
    assert isinstance(dim, int)
    assert isinstance(leading, int)
    return leading, dim
