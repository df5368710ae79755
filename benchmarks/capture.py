"""What does capture cost, beside the bare forward pass, a plain write, and other ways?

    python benchmarks/capture.py [--only gru reading] [--rounds 7] [--folder DIR] [--json FILE]

- gru, resnet, gpt2, bridge: a network is shown batches of 64 samples in every way of
  benchmarks/capture_ways.py, in turn, round after round, each right after a bare forward pass. A
  ratio is the median over rounds of the ratio to that pass, with its quartiles; those of the bare
  forward pass itself show how evenly the machine ran. Memory is the peak above what a process of
  its own held when network and inputs were loaded and had run once.
- reading: batches of stored sequences, shuffled, beside a memory map and zarr-python.

nnsight is measured where it is installed (pip install nnsight). Files are made under --folder, and
deleted. The rates of a copy in memory and of a matrix product are printed for orientation.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from capture_networks import NETWORKS, BenchmarkNetwork, make_network
from capture_reading import reading_rows
from capture_ways import bare_forward, ways_for

BATCHES = {"gru": 48, "resnet": 16, "gpt2": 16, "bridge": 16}
"""Batches that each model is shown: about a thousand samples or more, as captures have."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    experiments = [*NETWORKS, "reading"]
    parser.add_argument("--only", nargs="+", choices=experiments, default=experiments)
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of every way")
    parser.add_argument("--batches", type=int, help="batches of each model; by default many")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the forward pass")
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(arguments.threads))
    batches = BATCHES | (
        {} if arguments.batches is None else dict.fromkeys(BATCHES, arguments.batches)
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.only:
            if name == "reading":
                found = reading_rows(Path(folder), arguments.rounds)
            else:
                setting = Setting(name, batches[name], arguments.threads)
                found = network_rows(setting, Path(folder), arguments.rounds)
            print(table(found), flush=True)
            rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def describe_machine(threads: int) -> str:
    """Return machine, versions and rates."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "zarr", "numpy", "transformer-lens", "nnsight")
        if name != "nnsight" or importlib.util.find_spec(name)
    }
    matrix = torch.ones(2048, 2048)
    source, target = np.ones(2**26, dtype=np.uint8), np.empty(2**26, dtype=np.uint8)
    product = min(timed(lambda: matrix @ matrix) for _ in range(5))
    copy = min(timed(lambda: np.copyto(target, source)) for _ in range(5))
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}, {', '.join(map(' '.join, versions.items()))}; matrix "
        f"product {2 * 2048**3 / product / 1e9:.0f} GFLOP/s, copy {2**26 / copy / 1e9:.1f} GB/s"
    )


def timed(work: Callable[[], object]) -> float:
    """Return wall-clock seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Setting:
    """Which network is measured, and how."""

    network: str
    batches: int
    threads: int


def network_rows(setting: Setting, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return one row per way to record a network."""
    network = make_network(setting.network, setting.batches)
    ways = ways_for(setting.network)
    print(
        f"\n{network.description}; {network.models} models, {setting.batches} batches of "
        f"{network.batch_size}",
        flush=True,
    )
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    sizes: dict[str, int] = {}
    target = folder / "run"
    warm_up(network, target)
    for number in range(rounds):
        order = list(ways)
        turn = number % len(order)
        for way in order[turn:] + order[:turn]:
            bare = timed(lambda: bare_forward(network, target))
            seconds[way].append(timed(lambda way=way: ways[way](network, target)))
            ratios[way].append(seconds[way][-1] / bare)
            sizes[way] = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
            shutil.rmtree(target, ignore_errors=True)
            os.sync()  # or the system frees the files while the next way runs
    return [
        {
            "way": way,
            "seconds": statistics.median(seconds[way]),
            "over bare": statistics.median(ratios[way]),
            "quartiles": "{:.4g} to {:.4g}".format(*np.quantile(ratios[way], (0.25, 0.75))),
            "peak MiB": peak_memory(setting, way, target) / 2**20,
            "MB written": sizes[way] / 1e6,
        }
        for way in ways
    ]


def warm_up(network: BenchmarkNetwork, folder: Path) -> None:
    """Run the bare network on one batch."""
    bare_forward(replace(network, inputs=network.inputs[: network.batch_size]), folder)


def peak_memory(setting: Setting, way: str, folder: Path) -> int:
    """Return the bytes that a way takes at its peak, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_peak_memory, (setting, way, folder))
    shutil.rmtree(folder, ignore_errors=True)
    return peak


def _peak_memory(setting: Setting, way: str, folder: Path) -> int:
    torch.set_num_threads(setting.threads)
    network = make_network(setting.network, setting.batches)
    warm_up(network, folder)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before = _resident("VmRSS")
    ways_for(setting.network)[way](network, folder)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    return "\n".join(_lines(rows))


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"| {' | '.join(rows[0])} |"
    yield f"|{'---|' * len(rows[0])}"
    for row in rows:
        cells = (cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row.values())
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
