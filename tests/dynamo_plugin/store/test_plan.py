"""Which blocks a model has, and what its store says of it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import PopulationWriter, strided_rows
from dynamo_plugin.types import SiteSpec


@given(lengths=st.lists(st.integers(1, 50), min_size=1), every=st.integers(1, 60))
def test_strided_rows_are_those_of_slices(lengths: list[int], every: int) -> None:
    expected = [len(range(length)[::every]) for length in lengths]
    assert strided_rows(np.array(lengths), every).tolist() == expected


def begun(writer: PopulationWriter, example: Any, **changes: Any) -> Any:
    facts: dict[str, Any] = {
        "metadata": example.metadata["plain"],
        "model_hash": "hash of plain",
        "index": 1,
    }
    spec = changes.pop("spec", example.specs["plain"])
    return writer.plan.begun("plain", spec, **facts | changes)


def test_what_was_begun(example: Any) -> None:
    store: dict[str, Any] = {}
    writer = PopulationWriter.create(store, example.inputs, config=example.config)
    assert begun(writer, example) is None
    for model_id in example.specs:
        example.write_model(writer, model_id)
    header = begun(writer, example)
    assert header.complete
    assert header.spec == example.specs["plain"]
    spec = replace(example.specs["plain"], options={})
    changes: list[tuple[dict[str, Any], str]] = [
        ({"metadata": {}}, "metadata"),
        ({"model_hash": "x"}, "model hash"),
        ({"index": 0}, "place in the order"),
        ({"spec": spec}, "specification"),
    ]
    for change, name in changes:
        with pytest.raises(InvalidInput, match=f"with another {name}"):
            begun(writer, example, **change)
    del store["models/plain/zarr.json"]
    assert begun(writer, example, model_hash="x") is None


def test_blocks_follow_the_specification(example: Any) -> None:
    writer = PopulationWriter.create({}, example.inputs, config=example.config)
    spec = replace(
        example.specs["plain"],
        sites=(
            SiteSpec("every", (2,), "float32"),
            SiteSpec("third", (2,), "float32", every=3),
            SiteSpec("last", (2,), "float32", axis="sample"),
        ),
    )
    blocks = writer.plan.blocks("plain", spec, "h")
    rows = {name: array.layout.shape[0] for name, array in blocks.sites.items()}
    assert rows == {"every": 12, "third": 1 + 1 + 2 + 1, "last": 4}
    assert blocks.output.layout.shape == (4, 2)
    assert [array.layout.path for array in blocks.arrays] == [
        *(f"models/plain/states/{name}" for name in rows),
        "models/plain/outputs/output2",
    ]
    assert {array.identity.model_hash for array in blocks.arrays} == {"h"}


@pytest.mark.usefixtures("small_blocks")
def test_arrays_that_were_begun_keep_their_blocks(
    tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later release may cut new arrays otherwise."""
    writer = PopulationWriter.create(tmp_path, example.inputs, config=example.config)
    example.write_model(writer, "plain")
    spec = example.specs["plain"]
    before = [a.chunk_rows for a in writer.plan.blocks("plain", spec, "h").arrays]
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 2**20)
    plan = pickle.loads(pickle.dumps(writer.plan))
    assert [a.chunk_rows for a in plan.blocks("plain", spec, "h").arrays] == before
    assert [a.chunk_rows for a in plan.blocks("new", spec, "h").arrays] != before


@pytest.mark.usefixtures("small_blocks")
def test_damage_is_missing_where_data_are_checked(tmp_path: Path, example: Any) -> None:
    writer = PopulationWriter.create(tmp_path, example.inputs, config=example.config)
    example.write_model(writer, "plain")
    array = writer.plan.blocks("plain", example.specs["plain"], "hash of plain").output
    assert array.count > 0
    assert writer.plan.missing(array) == set()
    path = tmp_path / array.layout.path / "c.0.0"
    path.write_bytes(bytes(path.stat().st_size))
    assert writer.plan.missing(array) == set()
    assert replace(writer.plan, check_data=True).missing(array) == {0}
