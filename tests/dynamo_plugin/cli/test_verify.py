from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dynamo_plugin.cli.verify import command
from dynamo_plugin.errors import StoreNotFound
from dynamo_plugin.store import PopulationInputs, PopulationWriter
from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


@pytest.fixture
def population(tmp_path: Path) -> Path:
    inputs = PopulationInputs(np.zeros(3, int), np.array([0, 3]), ("x",), InputSpec("ids", 1))
    writer = PopulationWriter.create(tmp_path / "p", inputs, config={})
    spec = TrajectorySpec(
        "a", (SiteSpec("s", (2,), "float32"),), OutputSpec("o", (1,), "float32", "sample")
    )
    model = writer.begin("m", spec, metadata={}, model_hash="h", index=0)
    model.append_states("s", np.ones((3, 2), dtype=np.float32))
    model.append_outputs(np.ones((1, 1), dtype=np.float32))
    model.finish()
    return tmp_path / "p"


def test_a_whole_population_exits_with_zero(population: Path) -> None:
    result = CliRunner().invoke(app, [str(population)])
    assert result.exit_code == 0
    assert result.stdout == f"{population}: ok; 1 model, 5 whole blocks, 77 bytes\n"
    assert "block" in result.stderr  # the progress bar
    quiet = CliRunner().invoke(app, [str(population), "--quiet"])
    assert quiet.stdout == result.stdout
    assert quiet.stderr == ""


def test_damage_exits_with_three(population: Path) -> None:
    (population / "models/m/states/s/c.0.0").write_bytes(b"xx")
    result = CliRunner().invoke(app, [str(population), "-q"])
    assert result.exit_code == 3
    assert "damaged: Block 0 of site 's' of model 'm'" in result.stdout
    assert "1 problem;" in result.stdout
    report = CliRunner().invoke(app, [str(population), "--json", "--quiet"])
    assert report.exit_code == 3
    (problem,) = json.loads(report.stdout)["problems"]
    assert (problem["model"], problem["block"], problem["kind"]) == ("m", 0, "damaged")


def test_nothing_there_is_an_error_for_the_program_to_print(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "nothing")])
    assert isinstance(result.exception, StoreNotFound)
