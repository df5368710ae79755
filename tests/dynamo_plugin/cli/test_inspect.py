"""`dynamo-plugin inspect` and `capture --dry-run` on somebody else's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dynamo_plugin.cli._app import app
from dynamo_plugin.store import open_population

MODULE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, units, layers=1):
        super().__init__()
        self.cell = nn.GRU(2, units, num_layers=layers, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]
"""

CONFIG = """
store = "out/population.zarr"
batch_size = 2
[inputs]
file = "inputs.npy"
[reduce."*"]
dtype = "float16"
[[models]]
id = "small"
factory = "NAME:Net"
arguments = { units = 3 }
[[models]]
id = "deep"
factory = "NAME:Net"
arguments = { units = 4, layers = 2 }
"""


@pytest.fixture
def name(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder to work in; the module's name is unique per test."""
    name = f"inspected_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "capture.toml").write_text(CONFIG.replace("NAME", name))
    np.save(tmp_path / "inputs.npy", np.zeros((5, 4, 2), np.float32))
    monkeypatch.chdir(tmp_path)
    return name


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def listed() -> set[str]:
    return {str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("command", [("inspect",), ("capture", "--dry-run")])
def test_a_capture_file(name: str, command: tuple[str, ...]) -> None:
    before = listed()
    result = invoke(*command, "capture.toml")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "small torch_recurrent cell 3 float32 -> float16 time 24 B" in lines
    assert "cell.layer1 4 float32 -> float16 time 32 B" in lines
    assert "output: output3 3 float32 sample 12 B" in lines
    assert "2 models on 5 samples, 20 steps" in result.stdout
    assert "it fits" in result.stdout
    assert "estimated" in result.stdout
    assert listed() == before
    summary = json.loads(invoke(*command, "capture.toml", "--json").stdout)
    assert invoke("capture", "capture.toml", "--quiet").exit_code == 0
    store = Path("out/population.zarr")
    assert open_population(store).ids == tuple(model["id"] for model in summary["models"])
    files = [path for path in store.rglob("*") if path.is_file()]
    assert summary["files"] == len(files)
    assert summary["bytes"] == sum(p.stat().st_size for p in files if p.name.startswith("c."))
    assert summary["fits"] is True
    assert summary["models"][0]["arrays"][0]["source_dtype"] == "float32"


def test_options_take_the_place_of_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    result = invoke("inspect", "capture.toml", "--store", "elsewhere.zarr", "--batch-size", "1")
    assert "100 B free at elsewhere.zarr; IT DOES NOT FIT" in result.stdout
    result = invoke("capture", "capture.toml", "--dry-run", "--workers", "2")
    assert "in 2 processes" in result.stdout


def test_of_many_models_one_of_each_table(name: str) -> None:
    config = CONFIG.replace("NAME", name)
    table = config[config.index("[[models]]") :]
    for copy in range(4):
        config += table.replace("small", f"small-{copy}").replace("deep", f"deep-{copy}")
    Path("capture.toml").write_text(config)
    result = invoke("inspect", "capture.toml")
    assert "small (+4 alike)" in result.stdout
    assert "deep (+4 alike)" in result.stdout
    assert "small-0" not in result.stdout
    assert "10 models on" in result.stdout
    whole = invoke("inspect", "capture.toml", "--all")
    assert "small-3" in whole.stdout
    assert (
        result.stdout.partition("size: ")[2].splitlines()[0]
        == (whole.stdout.partition("size: ")[2].splitlines()[0])
    )


@pytest.mark.parametrize("command", [("inspect",), ("capture", "--dry-run")])
def test_a_model_that_cannot_be_recorded_is_a_line(name: str, command: tuple[str, ...]) -> None:
    text = Path("capture.toml").read_text()
    Path("capture.toml").write_text(text.replace("layers = 2", "layers = 0"))
    result = invoke(*command, "capture.toml")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("deep")]
    assert "error: ValueError: num_layers must be greater than zero" in line
    assert "without 1 that cannot be recorded" in result.stdout
    assert invoke(*command, "capture.toml", "--json").exit_code == 1


def test_a_factory(name: str) -> None:
    target = (f"{name}:Net", "--arguments", "units=6", "--inputs", "inputs.npy")
    before = listed()
    result = invoke("inspect", *target, "--arguments", "layers=2", "--layers", "cell")
    assert result.exit_code == 0, result.output
    assert "Net    torch_recurrent  cell.layer0" in result.stdout
    assert "room" not in result.stdout
    assert listed() == before
    found: Any = json.loads(invoke("inspect", *target, "--json", "--batch-size", "2").stdout)
    assert found["models"][0]["arrays"][0]["shape"] == [6]
    assert found["free_bytes"] is None
    wrong = invoke("inspect", *target, "--adapter", "torch_recurent")
    assert wrong.exit_code == 1
    assert "Did you mean 'torch_recurrent'" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["NAME:Net"], 2, "needs inputs"),
        (["NAME:Net", "--inputs", "inputs.npy", "--all"], 2, "makes one model"),
        (["NAME:Net", "--inputs", "inputs.npy", "--arguments", "units"], 2, "NAME=VALUE"),
        (["capture.toml", "--inputs", "inputs.npy"], 2, "capture file says that"),
        (["capture.toml", "--layers", "x"], 2, "capture file says that"),
        (["NAME:Nets", "--inputs", "inputs.npy"], 1, "cannot be imported: AttributeError"),
        (["NAME:Net", "--inputs", "other.npy"], 1, "other.npy cannot be read"),
        (["NAME:Net", "--inputs", "inputs.csv"], 1, "expected a file of type .npy"),
        (["NAME:Net", "--inputs", "x.parquet"], 1, "Describe other inputs in a capture file"),
        (["other.toml"], 1, "cannot be read: No such file"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_is_wrong_is_said(name: str, arguments: list[str], code: int, message: str) -> None:
    result = invoke("inspect", *(each.replace("NAME:", f"{name}:") for each in arguments))
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_metadata_that_do_not_fit_are_noticed(name: str) -> None:
    text = Path("capture.toml").read_text()
    Path("capture.toml").write_text(text.replace("[reduce", '[metadata]\nfile = "r.csv"\n[reduce'))
    Path("r.csv").write_text("model,rate\nsmall,1\n")
    result = invoke("inspect", "capture.toml")
    assert result.exit_code == 1
    assert "metadata lacks 'deep'" in result.stderr


def test_help_says_that_code_is_run() -> None:
    result = invoke("inspect", "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "runs their code" in text
    assert "dynamo-plugin inspect my_lab.networks:make" in text
