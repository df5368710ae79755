"""What a step of a fit costs by where the states of the base models come from.

    python benchmarks/targets.py [--networks 4] [--device cpu]

GRUs of 64 units on sequences of 50 steps: states kept in memory, read from the store in every step
(one step ahead, and not), and computed by running the networks in every step (`live_population`).
Median seconds of a step with default settings, in one run, interleaved; steps in memory are the
floor.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import dynamo_plugin as dp
from dynamo_plugin.training import Callback, Targets, Trainer
from dynamo_plugin.training import targets as targets_module

UNITS, STEPS, FEATURES, SAMPLES = 64, 50, 8, 512


class Clock(Callback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, trainer: Trainer) -> None:
        """See `Callback`."""
        self.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="of each fit, a look every 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, STEPS, FEATURES)
    networks: dict[str, nn.Module] = {
        f"gru-{index}": nn.GRU(FEATURES, UNITS, batch_first=True).to(arguments.device)
        for index in range(arguments.networks)
    }
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, "
        f"{arguments.device}, {arguments.networks} networks"
    )
    with tempfile.TemporaryDirectory() as folder:
        stored = dp.capture(networks, inputs, Path(folder) / "p.zarr", progress=False)
        live = dp.live_population(networks, inputs)
        ways: dict[str, tuple[dp.Population, int, Callable[..., None]]] = {
            "in memory": (stored, targets_module.IN_MEMORY_BYTES, Targets.prefetch),
            "from the store": (stored, 0, Targets.prefetch),
            "from the store, not ahead": (stored, 0, lambda *_: None),
            "live": (live, 0, Targets.prefetch),
            "live, not ahead": (live, 0, lambda *_: None),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, (population, in_memory, prefetch) in ways.items():
                seconds[way] += step_times(population, arguments, in_memory, prefetch)
    rows = [
        {"states": way, "seconds per step": float(np.median(times)),
         "times in memory": float(np.median(times) / np.median(seconds["in memory"]))}
        for way, times in seconds.items()
    ]  # fmt: skip
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))


def step_times(
    population: dp.Population,
    arguments: argparse.Namespace,
    in_memory: int,
    prefetch: Callable[..., Any],
) -> list[float]:
    """Return the seconds of the steps of a fit, the first ones left out.

    How states are read is no setting of a fit, so that the module is changed for its duration.
    """
    before = targets_module.IN_MEMORY_BYTES, Targets.prefetch
    targets_module.IN_MEMORY_BYTES = in_memory
    Targets.prefetch = prefetch  # type: ignore[method-assign]
    clock = Clock()
    try:
        dp.fit(
            population,
            steps=arguments.steps,
            device=arguments.device,
            callbacks=[clock],
            progress=False,
        )
    finally:
        targets_module.IN_MEMORY_BYTES, Targets.prefetch = before  # type: ignore[method-assign]
    return np.diff(clock.times)[5:].tolist()


if __name__ == "__main__":
    main()
