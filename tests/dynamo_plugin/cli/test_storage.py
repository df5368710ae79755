"""`dynamo-plugin capture` on storage that fails or was damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dynamo_plugin.cli._app import app

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, units):
        super().__init__()
        torch.manual_seed(units)
        self.cell = nn.GRU(2, units, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]
"""

CONFIG = """
store = "population.zarr"
[inputs]
file = "inputs.npy"
[[models]]
id = "small"
factory = "{name}:Net"
arguments = {{ units = 3 }}
[[models]]
id = "large"
factory = "{name}:Net"
arguments = {{ units = 300 }}
"""


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = f"storage_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "capture.toml").write_text(CONFIG.format(name=name))
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).normal(size=(5, 4, 2)))
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("c.*")}


def test_repair(folder: Path) -> None:
    config, store = folder / "capture.toml", folder / "population.zarr"
    assert invoke("capture", config).exit_code == 0
    before = files(store)
    path = next(store.glob("models/small/outputs/*/c.0.0"))
    path.write_bytes(path.read_bytes()[::-1])
    (path.parent / "c.7.0").write_bytes(b"x")
    result = invoke("verify", store, "--quiet")
    assert result.exit_code == 3
    assert "dynamo-plugin repair" in result.output
    assert invoke("capture", config, "--resume").exit_code == 0
    assert invoke("verify", store).exit_code == 3
    assert invoke("repair", config).exit_code == 0
    assert invoke("verify", store).exit_code == 0
    assert files(store) == before


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(folder: Path) -> None:
    """As a quota sets it; the signal that comes with it ends neither Python nor the message."""

    # the process limits itself: to fork this one is no good where other tests started threads
    program = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); "
        "runpy.run_module('dynamo_plugin', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-B", "-c", program, "capture", str(folder / "capture.toml")]
    result = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: model 'large': Cannot write models/large/")
    assert "File too large" in line
    assert line.endswith("go on with resume=True (--resume).")
    kept = files(folder / "population.zarr")
    assert any("small" in name for name in kept)
    assert invoke("capture", folder / "capture.toml", "--resume").exit_code == 0
    assert kept.items() <= files(folder / "population.zarr").items()
    assert invoke("verify", folder / "population.zarr").exit_code == 0
