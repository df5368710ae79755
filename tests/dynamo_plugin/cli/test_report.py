from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from dynamo_plugin.cli import report
from dynamo_plugin.errors import StoreExists, StoreNotFound, UnknownName

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(report.command)


def test_writes_and_names_the_file(saved_embedding: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    arguments = [str(saved_embedding / "embedding"), "--output", str(output), "--labels", "size"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0
    assert first.stdout == f"{output}\n"
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, StoreExists)
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0


def test_another_copy_of_the_population(saved_embedding: Path, tmp_path: Path) -> None:
    arguments = [
        str(saved_embedding / "embedding"),
        "--population",
        str(saved_embedding / "population.zarr"),
        "--output",
        str(tmp_path / "page.html"),
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_mistakes_are_our_errors(saved_embedding: Path, tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, [str(tmp_path / "nothing")])
    assert isinstance(missing.exception, StoreNotFound)
    output = str(tmp_path / "page.html")
    arguments = [str(saved_embedding / "embedding"), "-o", output, "--labels", "sise"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, UnknownName)


def test_further_analyses(saved_embedding: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    arguments = [str(saved_embedding / "embedding"), "-o", str(output), "--analysis", "null"]
    options = ["--option", "null.labels=size", "--option", "null.permutations=7"]
    assert CliRunner().invoke(app, [*arguments, *options]).exit_code == 0
    page = output.read_text(encoding="utf-8")
    assert '<section id="result-1"' in page
    assert "<dt>permutations</dt><dd>7</dd>" in page
    for wrong in (["--option", "clusters.seed=1"], ["--analysis", "null"], ["--option", "null.=1"]):
        assert CliRunner().invoke(app, [*arguments, "--overwrite", *wrong]).exit_code == 2
