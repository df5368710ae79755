"""What all models share: begun where nothing lies, completed, mended, replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_plugin.errors import IncompleteCapture, StoreExists
from dynamo_plugin.store import PopulationWriter, open_population, verify_population


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
