"""What a step of a fit costs in time and memory, by the number of models.

    python benchmarks/scale.py [--models 10 100 1000] [--device cuda]

States of random recurrent networks of 64 units on 128 sequences of 50 steps, in memory; default
settings but for the number of steps and the dimensions of theta. A process of its own for every
row, so that peaks of memory are its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dynamo_plugin.store import Population, PopulationInputs, PopulationWriter, open_population
from dynamo_plugin.training import Callback, FitConfig, Trainer
from dynamo_plugin.training.phases import phase_at
from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec

SEQUENCES, TIME, UNITS, FEATURES, STEPS, SKIPPED = 128, 50, 64, 8, 15, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, torch.device(arguments.device))))
        return
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, {arguments.threads} threads, torch {torch.__version__}")
    rows = []
    for models in arguments.models:
        command = [sys.executable, __file__, "--one", str(models), "--device", arguments.device]
        command += ["--threads", str(arguments.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


class Clock(Callback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def step(self, fit: Trainer) -> None:
        """Note it; every step ends with a number on the CPU, so that nothing is still running."""
        self.ends.append(time.perf_counter())


def measure(models: int, device: torch.device) -> dict[str, Any]:
    """Return milliseconds per step and microseconds per row, and memory in MiB.

    Steps in which leading dimensions are learned, with alignment, cost more than those after them.
    """
    population = make(models)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    clock = Clock()
    config = FitConfig(embedding_dim=8, leading_dim=2, steps=STEPS)
    started = time.perf_counter()
    trainer = Trainer(population, config, device=device, callbacks=[clock])
    prepared = time.perf_counter() - started
    trainer.run()
    seconds = np.diff(clock.ends)  # of all steps but the first
    turn = phase_at(0, trainer.config).stop
    step = float(np.median(seconds[turn:]))
    row = {
        "models": models,
        "prepare s": prepared,
        "leading step ms": 1e3 * float(np.median(seconds[SKIPPED : turn - 1])),
        "step ms": 1e3 * step,
        "us per row": 1e6 * step / (models * config.batch_size * TIME),
        "states MiB": models * SEQUENCES * TIME * UNITS * 4 / 2**20,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
    }
    if device.type == "cuda":
        row["peak MiB"] = torch.cuda.max_memory_allocated(device) / 2**20
    return row


def make(models: int) -> Population:
    """Return a population in memory: echo-state networks, each with weights of its own."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SEQUENCES, TIME, FEATURES)).astype(np.float32)
    given = PopulationInputs(
        values=inputs.reshape(-1, FEATURES),
        offsets=np.arange(SEQUENCES + 1) * TIME,
        sample_ids=tuple(map(str, range(SEQUENCES))),
        spec=InputSpec("features", FEATURES),
    )
    names = tuple(f"network-{index}" for index in range(models))
    store: dict[str, Any] = {}
    writer = PopulationWriter.create(store, given, models=names, config={})
    spec = TrajectorySpec(
        adapter="none",
        sites=(SiteSpec("rnn", (UNITS,), "float32"),),
        output=OutputSpec("output", (2,), "float32", "sample"),
    )
    for index, name in enumerate(names):
        weight = rng.normal(size=(UNITS, UNITS)).astype(np.float32) / UNITS**0.5
        drive = inputs @ rng.normal(size=(FEATURES, UNITS)).astype(np.float32)
        states = np.zeros((SEQUENCES, TIME, UNITS), np.float32)
        for step in range(TIME):
            states[:, step] = np.tanh(drive[:, step] + states[:, step - 1] @ weight)
        block = writer.begin(name, spec, metadata={}, model_hash=f"{index:064x}", index=index)
        block.append_states("rnn", states.reshape(-1, UNITS))
        block.append_outputs(states[:, -1] @ rng.normal(size=(UNITS, 2)).astype(np.float32))
        block.finish()
    return open_population(store)


if __name__ == "__main__":
    main()
