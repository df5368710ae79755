from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

import dynamo_plugin as dp
from dynamo_plugin.cli import compare, pairwise
from dynamo_plugin.errors import (
    DuplicateName,
    DynamoError,
    InvalidInput,
    StoreExists,
    UnknownName,
)

one = typer.Typer(pretty_exceptions_enable=False)
one.command()(compare.command)
every = typer.Typer(pretty_exceptions_enable=False)
every.command()(pairwise.command)


def run(app: typer.Typer, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(saved_embedding: Path) -> Path:
    return saved_embedding / "population.zarr"


def test_two_models(store: Path) -> None:
    result = run(one, store, "net-0", "net-3")
    assert result.exit_code == 0
    lines = [line.split()[:2] for line in result.stdout.splitlines()]
    assert lines == [
        ["METRIC", "KIND"],
        ["cka", "similarity"],
        ["procrustes", "distance"],
        ["svcca", "similarity"],
        ["rsa", "similarity"],
    ]


def test_two_models_as_json(store: Path) -> None:
    options = ("--metric", "pwcca", "--option", "side=first", "--json")
    (found,) = json.loads(run(one, store, "net-0", "net-3", *options).stdout)
    population = dp.open_population(store)
    x, y = (population.states(model) for model in ("net-0", "net-3"))
    metric = dp.metric("pwcca", side="first")
    assert found["value"] == pytest.approx(metric(x, y), abs=1e-9)
    assert found["reverse"] == pytest.approx(metric(y, x), abs=1e-9)
    assert "reverse" in run(one, store, "net-0", "net-3", *options[:-1]).stdout


def test_all_pairs(store: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "cka.json", tmp_path / "cka.html"
    result = run(every, store, "--output", output, "--plot", plot, "--json")
    assert result.exit_code == 0
    loaded = dp.PairwiseDistances.load(output)
    expected = dp.pairwise(dp.open_population(store), "cka", progress=False)
    assert np.array_equal(loaded.values, expected.values)
    assert json.loads(result.stdout) == expected.summary()
    assert '"showSendToCloud": false' in plot.read_text(encoding="utf-8")
    assert isinstance(run(every, store, "--output", output).exception, StoreExists)
    again = run(every, store, "--output", output, "--overwrite", "--metric", "procrustes")
    assert "procrustes (distance)" in again.stdout
    assert dp.PairwiseDistances.load(output).metric == "procrustes"


def test_all_pairs_as_csv(store: Path, tmp_path: Path) -> None:
    output = tmp_path / "cka.csv"
    options = ("--rows", 30, "--row-seed", 2, "--workers", 2, "--option", "estimator=unbiased")
    assert run(every, store, "--output", output, *options).exit_code == 0
    expected = dp.pairwise(
        dp.open_population(store),
        "cka",
        rows=30,
        row_seed=2,
        progress=False,
        estimator="unbiased",
    )
    table = pd.read_csv(output, index_col="model")
    assert table.to_numpy() == pytest.approx(expected.values)
    assert list(table.columns) == list(expected.ids)


def test_checkpoints_that_are_there(store: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "tiles", tmp_path / "cka.json"
    options = ("--output", output, "--checkpoints", folder)
    assert run(every, store, *options).exit_code == 0
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.txt").write_text("")
    assert isinstance(run(every, store, *options, "--overwrite", "--resume").exception, StoreExists)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["net-0", "net-9"], UnknownName),
        (["net-0", "net-1", "--metric", "ckaa"], UnknownName),
        (["net-0", "net-1", "--option", "estimator=unbiased"], InvalidInput),
        (["net-0", "net-1", "--metric", "cka", "--option", "estimater=1"], InvalidInput),
        (["net-0", "net-1", "--site", "rnm"], UnknownName),
    ],
)
def test_mistakes_are_our_errors(
    store: Path, arguments: list[str], error: type[DynamoError]
) -> None:
    assert isinstance(run(one, store, *arguments).exception, error)


def test_places_to_write(store: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "cka.txt", tmp_path / "nowhere" / "cka.json"):
        assert isinstance(run(every, store, "--output", output).exception, InvalidInput)


def test_networks_of_an_embedding(saved_embedding: Path, tmp_path: Path) -> None:
    folder, output = saved_embedding / "embedding", tmp_path / "functional.json"
    embedding = dp.load_embedding(folder)
    assert run(every, folder, "--metric", "functional", "--output", output).exit_code == 0
    expected = embedding.distances("functional").to_numpy()
    assert dp.PairwiseDistances.load(output).values == pytest.approx(expected, rel=1e-6, abs=1e-9)
    names = ("--metric", "theta", "--metric", "cka", "--json")
    theta, cka = json.loads(run(one, folder, "net-0", "net-3", *names).stdout)
    assert theta["value"] == pytest.approx(embedding.distances("theta").loc["net-0", "net-3"])
    population = embedding.population
    assert cka["value"] == pytest.approx(
        dp.metric("cka")(population.states("net-0"), population.states("net-3")), abs=1e-6
    )


def test_where_the_population_of_an_embedding_is(saved_embedding: Path, store: Path) -> None:
    folder = saved_embedding / "embedding"
    named = ("net-0", "net-1", "--population", store, "--metric", "functional")
    assert run(one, folder, *named).exit_code == 0
    assert isinstance(run(one, store, *named).exception, InvalidInput)
    assert isinstance(
        run(one, store, "net-0", "net-1", "--metric", "theta").exception, InvalidInput
    )


def test_sites_named_one_by_one(store: Path) -> None:
    options = ("net-0", "net-1", "--metric", "cka", "--site", "rnn", "--json")
    (found,) = json.loads(run(one, store, *options).stdout)
    assert found["settings"]["site"] == "rnn"
    twice = run(one, store, *options, "--site", "rnn")
    assert isinstance(twice.exception, DuplicateName)
