"""What `benchmarks/capture.py` compares must record the same states."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dynamo_plugin import open_population

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    networks = importlib.import_module("capture_networks")
    return networks.make_network, importlib.import_module("capture_ways")


@pytest.mark.parametrize("name", ["gru", "resnet", "gpt2", "bridge"])
def test_all_ways_record_the_same(benchmark: Any, name: str, tmp_path: Path) -> None:
    make_network, ways = benchmark
    network = replace(make_network(name, 1), models=1)
    ways.capture(network, tmp_path / "population")
    population = open_population(tmp_path / "population")
    states = {site: population.states("network 0", site) for site in network.sites}
    assert population.sites("network 0") == network.sites
    ways.hooks_and_zarr(network, tmp_path / "zarr")
    root: Any = zarr.open_group(tmp_path / "zarr", mode="r")
    others: dict[str, Any] = {"hooks and zarr": {site: root[site][:] for site in network.sites}}
    others_written = {  # nnsight where it is installed
        way: run for way, run in ways.ways_for(name).items() if "np.save" in way
    }
    assert ("run_with_cache + np.save" in others_written) == (name == "bridge")
    for way, run in others_written.items():
        run(network, tmp_path / way)
        others[way] = {site: np.load(tmp_path / way / f"{site}-0.npy") for site in network.sites}
    for way, found in others.items():
        for site, values in states.items():
            expected = found[site].reshape(values.shape)
            np.testing.assert_array_equal(values, expected, err_msg=f"{way}: {site}")


def test_the_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "capture.py"), "--only", "gru", "reading"]
    command += ["--rounds", "1", "--batches", "2", "--json", str(tmp_path / "rows.json")]
    command += ["--folder", str(tmp_path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "| **capture to disk** |" in result.stdout
    rows = {row["way"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["bare forward"]["MB written"] == 0
    stored = 4 * 2 * 64 * (100 * 256 + 10) * 4 / 1e6  # four models, two batches of 64
    assert rows["hooks + np.save"]["MB written"] == pytest.approx(stored, rel=0.01)
    assert rows["**capture to disk**"]["MB written"] > stored
    assert rows["memory map"]["over a memory map"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
