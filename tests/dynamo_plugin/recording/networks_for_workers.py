"""Factories that worker processes import: functions of a module, as executors need them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import nn


def make_gru(seed: int, units: int = 6) -> nn.Module:
    """Return a GRU whose weights follow from the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.GRU(3, units, num_layers=2, batch_first=True)


def make_gru_and_die_once(seed: int, units: int, marker: str) -> nn.Module:
    """Kill this process, as an out-of-memory killer does, unless that was done before."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return make_gru(seed, units)


def die(seed: int) -> nn.Module:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(seed)


def make_nan(seed: int) -> nn.Module:
    """Return a GRU that diverges."""
    model = make_gru(seed)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model
