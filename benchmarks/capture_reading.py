"""Reading stored sequences back in a shuffled order, ours and other ways."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import nn

import dynamo_plugin as dp

__all__ = ["reading_rows"]

SAMPLES, STEPS, UNITS = 4096, 100, 256
BATCH = 64


def reading_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return one row per way to read batches of shuffled sequences of a GRU's states."""
    print(f"\nreading {BATCH} sequences of {STEPS} steps and {UNITS} units, shuffled")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(8, UNITS, batch_first=True)
        inputs = torch.randn(SAMPLES, STEPS, 8)
    store = folder / "population.zarr"
    population = dp.capture({"gru": model}, inputs, store, batch_size=BATCH, progress=False)
    states = population.states("gru").reshape(SAMPLES, STEPS, UNITS)
    np.save(folder / "states.npy", states)
    whole = zarr.open_group(store, mode="r")
    [path] = [name for name, _ in whole.members(max_depth=None) if "/states/" in name]
    rows, mapped = whole[path], np.load(folder / "states.npy", mmap_mode="r")
    assert isinstance(rows, zarr.Array)
    shape = (BATCH, STEPS, UNITS)

    def from_zarr(samples: np.ndarray) -> np.ndarray:
        steps = (samples[:, None] * STEPS + np.arange(STEPS)).ravel()
        return np.asarray(rows.oindex[steps]).reshape(shape)

    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "memory map": lambda samples: np.asarray(mapped[samples]),
        "**population.states**": lambda samples: population.states("gru", samples=samples).reshape(
            shape
        ),
        "zarr-python, rows by oindex": from_zarr,
        "floor: the same from memory": lambda samples: states[samples],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    generator = np.random.default_rng(0)
    for number in range(rounds + 1):
        epoch = generator.permutation(SAMPLES).reshape(-1, BATCH)
        for way, read in ways.items():
            batches = epoch[:4] if "zarr" in way else epoch
            start = time.perf_counter()
            for samples in batches:
                read(samples)
            elapsed = (time.perf_counter() - start) / len(batches)
            np.testing.assert_array_equal(read(epoch[0]), states[epoch[0]])
            if number:  # the first epoch checks every block, and fills the caches of the system
                seconds[way].append(elapsed)
    population = dp.open_population(store)
    start = time.perf_counter()
    for samples in epoch:
        population.states("gru", samples=samples)
    first = (time.perf_counter() - start) / len(epoch)
    shutil.rmtree(store)
    mapping = seconds["memory map"]
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    ratios = {way: statistics.median(np.divide(times, mapping)) for way, times in seconds.items()}
    medians["population.states, first epoch, every block checked"] = first
    ratios["population.states, first epoch, every block checked"] = first / medians["memory map"]
    return [
        {
            "way": way,
            "milliseconds a batch": 1e3 * medians[way],
            "over a memory map": float(ratios[way]),
        }
        for way in medians
    ]
