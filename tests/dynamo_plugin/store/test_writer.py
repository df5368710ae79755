from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    StoreNotFound,
    UnknownName,
)
from dynamo_plugin.store import PopulationWriter, open_population, verify_population
from dynamo_plugin.types import OutputSpec, SiteSpec


def test_nothing_is_overwritten_unless_told_to(tmp_path: Path, example: Any) -> None:
    store = tmp_path / "p"
    example.write(store)
    (store / "notes.txt").write_text("mine")
    with pytest.raises(StoreExists, match=r"a population lies at .*resume=True"):
        example.write(store)
    example.write(store, overwrite=True)
    assert open_population(store).ids == tuple(example.specs)
    assert (store / "notes.txt").read_text() == "mine"


def test_what_is_not_ours_is_never_deleted(tmp_path: Path, example: Any) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(StoreExists, match="not a population"):
            example.write(tmp_path, overwrite=overwrite)
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(StoreExists, match="not a population"):
        example.write(tmp_path, overwrite=True)
    with pytest.raises(StoreExists, match="is a file"):
        example.write(tmp_path / "thesis.txt", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "x"


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


def test_resuming_may_add_models(tmp_path: Path, example_of: Callable[..., Any]) -> None:
    example = example_of(ids=("a", "b"))
    writer = PopulationWriter.create(tmp_path, example.inputs, config={}, models=["b"])
    example.write_model(writer, "b")
    assert open_population(tmp_path).ids == ("b",)
    writer.close()
    writer = PopulationWriter.resume(tmp_path, example.inputs, config={}, models=["a", "b"])
    with pytest.raises(IncompleteCapture, match="'a'"):
        open_population(tmp_path)
    example.write_model(writer, "a")
    assert open_population(tmp_path).ids == ("a", "b")  # by index, not by time


def test_resuming_something_else_says_what_differs(
    tmp_path: Path, example: Any, example_of: Callable[..., Any]
) -> None:
    with pytest.raises(StoreNotFound):
        PopulationWriter.resume(tmp_path / "nothing", example.inputs, config={})
    example.write(tmp_path / "p")
    config = example.config | {"batch_size": 8}
    with pytest.raises(InvalidInput, match=r"'batch_size': 4.*'batch_size': 8"):
        PopulationWriter.resume(tmp_path / "p", example.inputs, config=config)
    for other, message in [
        (example_of(seed=1), "other values, sample ids or targets"),
        (example_of(lengths=(3, 1, 6, 2, 1)), "samples 4 -> 5, rows 12 -> 13"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            PopulationWriter.resume(tmp_path / "p", other.inputs, config=example.config)


@pytest.mark.parametrize(
    "lost", ["inputs/zarr.json", "inputs/values/c.0", "inputs/sample_ids/commits/0.json"]
)
def test_resuming_mends_the_inputs(tmp_path: Path, example: Any, lost: str) -> None:
    """So that a capture that was interrupted while it wrote them can go on."""
    example.write(tmp_path)
    (tmp_path / lost).unlink()
    assert not verify_population(tmp_path).ok
    PopulationWriter.resume(tmp_path, example.inputs, config=example.config)
    assert verify_population(tmp_path).ok
    assert open_population(tmp_path).inputs.hash == example.inputs.hash


def test_a_damaged_description_counts_as_never_begun(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path)
    (tmp_path / "models/plain/zarr.json").write_bytes(b"{")
    writer = PopulationWriter.resume(tmp_path, example.inputs, config=example.config)
    assert list(writer.models()) == ["GRU/3"]
    example.write_model(writer, "plain")
    assert verify_population(tmp_path).ok


def test_what_a_model_writer_refuses(tmp_path: Path, example: Any) -> None:
    writer = PopulationWriter.create(tmp_path, example.inputs, config={})
    spec = example.specs["plain"]
    model = writer.begin("plain", spec, metadata={}, model_hash="h", index=0)
    rows = np.zeros((3, 4), dtype=np.float32)
    refused: list[tuple[Any, str]] = [
        (rows[:, :3], r"shape \(rows, 4\).*\(3, 3\)"),
        (rows.astype(np.float64), "dtype float32 .*float64"),
        (np.float32(1), r"got \(\)"),
        (np.zeros((13, 4), dtype=np.float32), "Expected 12 rows .*at least 13"),
    ]
    for wrong, message in refused:
        with pytest.raises(InvalidInput, match=message):
            model.append_states("rnn.layer0", wrong)
    with pytest.raises(UnknownName, match=r"Did you mean 'rnn.layer0'"):
        model.append_states("rnn.layer", rows)
    with pytest.raises(InvalidInput, match="output 'output2' of model 'plain'"):
        model.append_outputs(np.zeros((4, 3), dtype=np.float32))
    with pytest.raises(IncompleteCapture, match=r"Expected 12 rows of site 'rnn.layer0'"):
        model.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": ()}, "at least one site"),
        ({"sites": (SiteSpec("a", (1,), "float32"),) * 2}, "every name once"),
        ({"sites": (SiteSpec("a", (0,), "float32"),)}, "positive lengths"),
        ({"sites": (SiteSpec("a", (1,), "int64"),)}, "float16"),
        ({"sites": (SiteSpec("a", (1,), "float32", axis="row"),)}, "axis"),  # type: ignore[arg-type]
        ({"output": OutputSpec("o", (2.0,), "float32", "sample")}, "positive"),  # type: ignore[arg-type]
        ({"options": {"f": object()}}, "JSON"),
    ],
)
def test_which_specs_are_refused(
    tmp_path: Path, example: Any, change: dict[str, Any], message: str
) -> None:
    writer = PopulationWriter.create(tmp_path, example.inputs, config={})
    with pytest.raises(InvalidInput, match=message):
        writer.begin(
            "m", replace(example.specs["plain"], **change), metadata={}, model_hash="h", index=0
        )


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
