"""Populations that are begun, interrupted and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import LocalStore

from dynamo_plugin.errors import (
    IncompleteCapture,
    InvalidInput,
    StoreExists,
    StoreLocked,
)
from dynamo_plugin.store import PopulationWriter, open_population, verify_population


def test_a_read_only_store_is_refused(tmp_path: Path, example: Any) -> None:
    with pytest.raises(InvalidInput, match="read-only"):
        example.write(LocalStore(tmp_path, read_only=True))


def test_an_interrupted_capture_goes_on(tmp_path: Path, example: Any) -> None:
    writer = PopulationWriter.create(
        tmp_path, example.inputs, config=example.config, models=list(example.specs)
    )
    with pytest.raises(IncompleteCapture, match="2 of 2 are not: 'GRU/3', 'plain'"):
        open_population(tmp_path)
    example.write_model(writer, "GRU/3")
    begun = {"metadata": example.metadata["plain"], "model_hash": "hash of plain", "index": 1}
    half = writer.begin("plain", example.specs["plain"], **begun)
    half.append_states("summary", example.states["plain"]["summary"])
    writer.close()
    with pytest.raises(StoreLocked, match=r"lease .* was lost"):
        half.append_states("rnn.layer0", example.states["plain"]["rnn.layer0"])
    assert {i: s.complete for i, s in writer.models().items()} == {"GRU/3": True, "plain": False}
    with pytest.raises(IncompleteCapture, match=r"1 of 2 are not: 'plain'.*resume=True"):
        open_population(tmp_path)
    assert open_population(tmp_path, allow_incomplete=True).ids == ("GRU/3",)

    again = PopulationWriter.resume(tmp_path, example.inputs, config=example.config)
    status = again.models()["GRU/3"]
    assert status.complete
    assert status.model_hash == "hash of GRU/3"
    assert status.spec == example.specs["GRU/3"]
    assert status.metadata == example.metadata["GRU/3"]
    with pytest.raises(StoreExists, match="is complete"):
        example.write_model(again, "GRU/3")
    changes: list[dict[str, Any]] = [{"metadata": {}}, {"model_hash": "old"}, {"index": 2}]
    for change in changes:
        with pytest.raises(InvalidInput, match=r"was begun in .* with another"):
            again.begin("plain", example.specs["plain"], **begun | change)
    model = again.begin("plain", example.specs["plain"], **begun)
    assert [len(blocks) for blocks in model.missing.values()] == [1, 1, 0, 1]  # summary is there
    example.write_model(again, "plain")
    np.testing.assert_array_equal(
        open_population(tmp_path).states("plain", "summary"), example.states["plain"]["summary"]
    )
    assert verify_population(tmp_path).ok


def test_without_a_list_of_models_those_begun_are_expected(tmp_path: Path, example: Any) -> None:
    writer = PopulationWriter.create(tmp_path, example.inputs, config={})
    for options in ({}, {"allow_incomplete": True}):
        with pytest.raises(IncompleteCapture, match="no complete model"):
            open_population(tmp_path, **options)
    example.write_model(writer, "plain")
    assert open_population(tmp_path).ids == ("plain",)
    writer.begin("GRU/3", example.specs["GRU/3"], metadata={}, model_hash="h", index=0)
    with pytest.raises(IncompleteCapture, match="'GRU/3'"):
        open_population(tmp_path)


def test_a_lost_model_is_missed(tmp_path: Path, example: Any) -> None:
    import shutil

    example.write(tmp_path, models=list(example.specs))
    shutil.rmtree(tmp_path / "models" / "plain")
    with pytest.raises(IncompleteCapture, match="'plain'"):
        open_population(tmp_path)
    (problem,) = verify_population(tmp_path).problems
    assert (problem.model, problem.kind) == ("plain", "incomplete")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"x", "\ud800"])
def test_only_json_is_stored(tmp_path: Path, example: Any, value: Any) -> None:
    with pytest.raises(InvalidInput, match="config must hold only what JSON can hold"):
        PopulationWriter.create(tmp_path / "p", example.inputs, config={"x": value})
    assert not (tmp_path / "p").exists()
    writer = PopulationWriter.create(tmp_path / "p", example.inputs, config={})
    with pytest.raises(InvalidInput, match="metadata of model 'm'"):
        writer.begin("m", example.specs["plain"], metadata={"x": value}, model_hash="h", index=0)
    with pytest.raises(InvalidInput, match="index"):
        writer.begin("m", example.specs["plain"], metadata={}, model_hash="h", index=-1)
    with pytest.raises(InvalidInput, match="every model id once"):
        PopulationWriter.create(tmp_path / "q", example.inputs, config={}, models=["a", "a"])


def test_a_relative_path_is_one_of_the_folder_where_the_capture_began(
    tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    writer = PopulationWriter.create("new/population.zarr", example.inputs, config=example.config)
    population_id, *others = example.specs
    example.write_model(writer, population_id)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for model_id in others:
        example.write_model(writer, model_id)
    writer.close()
    monkeypatch.chdir(tmp_path)
    population = open_population("new/population.zarr")
    assert population.location == "new/population.zarr"
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(population.outputs("plain"), example.outputs["plain"])
    assert not list((tmp_path / "elsewhere").iterdir())
