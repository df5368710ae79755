from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

import dynamo_plugin as dp
from dynamo_plugin.cli import analyse
from dynamo_plugin.errors import DynamoError, InvalidInput, StoreNotFound, UnknownName

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(analyse.command)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def embedding(saved_embedding: Path) -> Path:
    return saved_embedding / "embedding"


def test_prints_the_table(embedding: Path) -> None:
    result = run("fidelity", embedding)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["model", "hidden_r2"]
    assert [line.split()[0] for line in lines[1:]] == [f"net-{index}" for index in range(5)]


def test_json_is_the_summary_and_the_table(embedding: Path) -> None:
    result = run("clusters", embedding, "--labels", "size", "--option", "permutations=9", "--json")
    printed: dict[str, Any] = json.loads(result.stdout)
    loaded = dp.load_embedding(embedding)
    expected = dp.analyse("clusters", loaded, labels="size", permutations=9)
    assert printed["summary"] == expected.summary()
    assert [row["statistic"] for row in printed["table"]] == list(
        expected.to_dataframe()["statistic"]
    )
    assert printed["table"][0]["p_value"] is None


def test_options_are_json_or_text(embedding: Path) -> None:
    result = run(
        "clusters", embedding, "--option", "clusters=3", "--option", "distance=theta", "--json"
    )
    assert json.loads(result.stdout)["summary"]["clusters"] == 3


def test_writes_csv_and_plot(embedding: Path, tmp_path: Path) -> None:
    csv, plot = tmp_path / "table.csv", tmp_path / "plot.html"
    result = run("components", embedding, "--csv", csv, "--plot", plot)
    assert result.exit_code == 0
    expected = dp.analyse("components", dp.load_embedding(embedding)).to_dataframe()
    pd.testing.assert_frame_equal(pd.read_csv(csv), expected)
    page = plot.read_text(encoding="utf-8")
    assert '"showSendToCloud": false' in page
    assert "<script src=" not in page


def test_a_population_that_moved(saved_embedding: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.zarr"
    alone = tmp_path / "embedding"
    shutil.copytree(saved_embedding / "population.zarr", moved)
    shutil.copytree(saved_embedding / "embedding", alone)
    document = alone / "embedding.json"
    text = document.read_text().replace("population.zarr", "gone.zarr")
    document.write_text(text)
    assert isinstance(run("fidelity", alone).exception, StoreNotFound)
    assert run("fidelity", alone, "--population", moved).exit_code == 0


def test_control_characters_do_not_reach_the_terminal() -> None:
    missing = pd.array([pd.NA], dtype="Float64")
    table = pd.DataFrame({"model": ["a\x1b[31mred\n"], "value": [0.123456], "p": missing})
    shown = analyse._shown(table)
    assert "\x1b" not in shown
    assert shown.splitlines()[1].split() == ["a?[31mred?", "0.1235", "-"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["cluster"], UnknownName),
        (["clusters", "--option", "label=size"], InvalidInput),
        (["clusters", "--labels", "sise"], UnknownName),
        (["clusters", "--labels", "size", "--option", "labels=size"], InvalidInput),
        (["components", "--csv", "nowhere/table.csv"], InvalidInput),
    ],
)
def test_mistakes_are_our_errors(
    embedding: Path, arguments: list[str], error: type[DynamoError]
) -> None:
    name, *rest = arguments
    assert isinstance(run(name, embedding, *rest).exception, error)


@pytest.mark.parametrize("option", [["clusters"], ["=3"], ["clusters=2", "clusters=3"]])
def test_malformed_options_are_usage_errors(embedding: Path, option: list[str]) -> None:
    flags = [flag for text in option for flag in ("--option", text)]
    assert run("clusters", embedding, *flags).exit_code == 2
