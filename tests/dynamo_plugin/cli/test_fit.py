from __future__ import annotations

import inspect
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import dynamo_plugin as dp
from dynamo_plugin.cli import fit
from dynamo_plugin.cli._app import app
from dynamo_plugin.cli._exit import ExitCode
from dynamo_plugin.training import FitConfig

QUICK = ("--steps", "3", "--embedding-dim", "2", "--set", 'family_options={"units": 4}', "--quiet")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


@pytest.fixture
def store(saved_embedding: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_embedding / "population.zarr", tmp_path / "population.zarr"))


def test_writes_an_embedding_and_says_how_good_it_is(store: Path, tmp_path: Path) -> None:
    result = run(store, "--output", tmp_path / "e", *QUICK, "--seed", 4, "--json")
    assert result.exit_code == ExitCode.OK, result.stderr
    printed = json.loads(result.stdout)
    embedding = dp.load_embedding(tmp_path / "e")
    assert (embedding.config.seed, embedding.config.steps) == (4, 3)
    assert embedding.config.family_options["units"] == 4
    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    assert printed["models"] == 5
    assert printed["held_out_hidden_r2"] == pytest.approx(fidelity["hidden_r2"].mean())


def test_an_embedding_that_is_there_stays(store: Path, tmp_path: Path) -> None:
    assert run(store, "--output", tmp_path / "e", *QUICK).exit_code == ExitCode.OK
    before = (tmp_path / "e" / "embedding.json").read_bytes()
    again = run(store, "--output", tmp_path / "e", *QUICK, "--seed", 1)
    assert again.exit_code == ExitCode.ERROR
    assert "There is an embedding at" in again.stderr
    assert (tmp_path / "e" / "embedding.json").read_bytes() == before
    assert run(store, "--output", tmp_path / "e", *QUICK, "--seed", 1, "--overwrite").exit_code == 0
    assert (tmp_path / "e" / "embedding.json").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("--family", "grue"), "Did you mean 'gru'", ExitCode.ERROR),
        (("--set", "theta_dekay=1"), "Did you mean 'theta_decay'", ExitCode.ERROR),
        (("--set", "theta_decay"), "Expected NAME=VALUE", ExitCode.USAGE),
        (("--set", "held_out=0.1", "--set", "held_out=0.2"), "given twice", ExitCode.USAGE),
    ],
)
def test_bad_settings(
    store: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, code: ExitCode
) -> None:
    result = run(store, "--output", tmp_path / "e", "--quiet", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "e").exists()


def test_a_log_gets_few_lines_of_progress(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dynamo_plugin", "fit", str(store), "--steps", "200"]
    options = ["--output", str(tmp_path / "e"), *QUICK[2:-1]]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    assert 1 <= done.stderr.count("step/s") <= 5


def test_defaults_are_those_of_the_library() -> None:
    defaults = FitConfig()
    for name, parameter in inspect.signature(fit.command).parameters.items():
        # Those that a preset may set are None, and their help says what then holds.
        if hasattr(defaults, name) and parameter.default is not None:
            assert parameter.default == getattr(defaults, name), name
    text = " ".join(CliRunner().invoke(app, ["fit", "--help"]).stdout.split())
    assert f"[default: {defaults.embedding_dim}]" in text
    assert f"[default: {defaults.steps}]" in text


def test_a_preset_and_what_comes_on_top(store: Path, tmp_path: Path) -> None:
    small = ("--set", 'family_options={"units": 4}', "--quiet")
    found = run(store, "--output", tmp_path / "e", "--preset", "paper", "--steps", 3, *small)
    assert found.exit_code == ExitCode.OK, found.stderr
    config = dp.load_embedding(tmp_path / "e").config
    found_by = (config.state_map_solver, config.alignment_weight, config.leading_dim, config.steps)
    assert found_by == ("gradient", 0.0, 16, 3)
    auto = run(store, "--output", tmp_path / "f", "--embedding-dim", "auto", "--steps", 1, *small)
    assert auto.exit_code == ExitCode.OK, auto.stderr
    wrong = run(store, "--output", tmp_path / "g", "--preset", "papre")
    assert wrong.exit_code == ExitCode.ERROR
    assert "Did you mean 'paper'" in wrong.stderr


@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_and_resumed(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dynamo_plugin", "fit", str(store), *QUICK, "--steps", "4000"]
    command += ["--output", str(tmp_path / "e")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "e.checkpoints").glob("step-*")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, printed
    assert "--resume --overwrite goes on" in printed
    part = dp.load_embedding(tmp_path / "e")
    assert part.stopped == "interrupted"
    refused = run(store, "--output", tmp_path / "e", *QUICK, "--steps", 4000, "--overwrite")
    assert refused.exit_code == ExitCode.ERROR
    assert "unfinished fit" in refused.stderr
    rest = run(
        store, "--output", tmp_path / "e", *QUICK, "--steps", 4000, "--resume", "--overwrite"
    )
    assert rest.exit_code == ExitCode.OK, rest.stderr
    whole = dp.load_embedding(tmp_path / "e")
    assert whole.stopped is None
    assert whole.history["step"].max() == 4000
    assert not (tmp_path / "e.checkpoints").exists()


def test_checkpoints_that_were_asked_for_stay(store: Path, tmp_path: Path) -> None:
    kept = ("--checkpoints", tmp_path / "kept")
    assert run(store, "--output", tmp_path / "e", *QUICK, *kept).exit_code == ExitCode.OK
    assert [p.name for p in (tmp_path / "kept").glob("step-*")]
    again = run(store, "--output", tmp_path / "f", *QUICK, *kept, "--resume")
    assert again.exit_code == ExitCode.OK
    one, other = (dp.load_embedding(tmp_path / name) for name in "ef")
    assert torch.equal(one.thetas, other.thetas)


def test_several_seeds_have_a_folder_each(store: Path, tmp_path: Path) -> None:
    several = run(store, "--output", tmp_path / "e", *QUICK, "--seed", 3, "--seeds", 2, "--json")
    assert several.exit_code == ExitCode.OK, several.stderr
    printed = json.loads(several.stdout)
    assert [one["embedding"] for one in printed] == [
        str(tmp_path / "e" / name) for name in ("seed-3", "seed-4")
    ]
    assert not (tmp_path / "e.checkpoints").exists()
    alone = run(store, "--output", tmp_path / "f", *QUICK, "--seed", 4)
    assert alone.exit_code == ExitCode.OK, alone.stderr
    one, other = (dp.load_embedding(tmp_path / name) for name in ("e/seed-4", "f"))
    torch.testing.assert_close(one.thetas, other.thetas)
    again = run(store, "--output", tmp_path / "e", *QUICK, "--seed", 4, "--seeds", 2)
    assert again.exit_code == ExitCode.ERROR
    assert "There is an embedding at" in again.stderr
    assert not (tmp_path / "e" / "seed-5").exists()
