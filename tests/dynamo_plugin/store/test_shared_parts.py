"""What all models share: begun where nothing lies, completed, mended, replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_plugin.errors import (
    CorruptBlock,
    IncompleteCapture,
    InvalidInput,
    StoreExists,
    StoreLocked,
)
from dynamo_plugin.store import PopulationWriter, Share, open_population, verify_population
from dynamo_plugin.store._lease import Lease
from dynamo_plugin.store._location import locate


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


def test_writers_of_shares_begin_a_population_once(tmp_path: Path, example: Any) -> None:
    """Whoever comes later finds it, or writes what an interrupted one left out."""
    options: dict[str, Any] = {"config": example.config, "models": list(example.specs)}
    first = PopulationWriter.join(tmp_path, example.inputs, share=Share(0, 2), **options)
    root = (tmp_path / "zarr.json").read_bytes()
    values = tmp_path / "inputs/values/c.0"
    before = values.stat().st_ino
    second = PopulationWriter.join(tmp_path, example.inputs, share=Share(1, 2), **options)
    assert values.stat().st_ino == before
    assert sorted(path.name for path in (tmp_path / "leases").iterdir()) == [
        "0-of-2.json",
        "1-of-2.json",
    ]
    for writer, model_id in zip((first, second), example.specs, strict=True):
        example.write_model(writer, model_id)
        writer.close()
    assert open_population(tmp_path).ids == tuple(example.specs)
    values.unlink()
    PopulationWriter.join(tmp_path, example.inputs, share=Share(0, 2), **options).close()
    assert (tmp_path / "zarr.json").read_bytes() == root
    assert verify_population(tmp_path).ok


def test_a_writer_of_a_share_waits_for_the_one_that_begins(tmp_path: Path, example: Any) -> None:
    beginning = Lease(locate(tmp_path, create=True), None)
    options: dict[str, Any] = {"config": {}, "models": ["a"], "share": Share(0, 2)}
    with pytest.raises(StoreLocked, match=rf"process {os.getpid()} on"):
        PopulationWriter.join(tmp_path, example.inputs, patience=0.0, **options)
    assert [path.name for path in (tmp_path / "leases").iterdir()] == ["begin.json"]
    assert not (tmp_path / "zarr.json").exists()
    ending = threading.Timer(0.3, beginning.release)
    ending.start()
    PopulationWriter.join(tmp_path, example.inputs, **options).close()
    ending.join()
    assert (tmp_path / "inputs/zarr.json").exists()
    with pytest.raises(InvalidInput, match="configuration with which"):
        PopulationWriter.join(tmp_path, example.inputs, **options | {"config": {"x": 1}})
    assert not (tmp_path / "leases").exists()


def test_storage_that_does_not_keep_the_inputs_is_not_written_forever(
    tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def unreadable(location: Any, header: Any) -> None:
        begun.append(str(header))
        raise CorruptBlock("not what was written")

    monkeypatch.setattr("dynamo_plugin.store._shared_parts.read_inputs", unreadable)
    with pytest.raises(CorruptBlock, match="not what was written"):
        PopulationWriter.join(tmp_path, example.inputs, config={}, models=["a"], share=Share(0, 2))
    assert len(begun) == 1
    assert not (tmp_path / "leases").exists()
