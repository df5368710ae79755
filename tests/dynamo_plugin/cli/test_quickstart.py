from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import dynamo_plugin as dp
from dynamo_plugin.cli._app import app
from dynamo_plugin.cli._exit import ExitCode


def run(*arguments: object) -> Result:
    small = ("--networks", "2", "--steps", "4", "--quiet")
    return CliRunner().invoke(app, ["quickstart", *small, *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "results"
    result = run("--output", folder, "--json")
    assert result.exit_code == ExitCode.OK, result.stderr
    printed = json.loads(result.stdout)
    assert [group["networks"] for group in printed["groups"]] == [2] * 6
    assert set(printed["clusters"]) == {"architecture", "fraction"}
    return folder


def test_leaves_a_population_an_embedding_and_a_report(folder: Path) -> None:
    assert dp.verify_population(folder / "population.zarr").ok
    embedding = dp.load_embedding(folder / "embedding")
    population = embedding.population
    assert len(population.ids) == 12
    assert len(set(population.metadata["hidden_size"])) > 1
    # Accuracy computed from the stored outputs and targets is that of the metadata.
    targets = population.inputs.targets
    accuracy = [(population.outputs(m).argmax(1) == targets).mean() for m in population.ids]
    assert np.allclose(accuracy, population.metadata["score"], atol=1e-6)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")[:200]


def test_an_earlier_run_stays_unless_asked(folder: Path) -> None:
    before = (folder / "report.html").stat().st_mtime_ns
    result = run("--output", folder)
    assert result.exit_code == ExitCode.ERROR
    assert "--overwrite" in result.stderr
    assert (folder / "report.html").stat().st_mtime_ns == before


def test_the_seed_makes_it_reproducible(folder: Path, tmp_path: Path) -> None:
    again = run("--output", tmp_path / "again", "--json")
    assert again.exit_code == ExitCode.OK
    first, second = (dp.load_embedding(f / "embedding") for f in (folder, tmp_path / "again"))
    assert first.provenance.model_hashes == second.provenance.model_hashes
    assert np.array_equal(first.thetas, second.thetas)
