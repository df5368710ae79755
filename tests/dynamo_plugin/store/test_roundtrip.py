"""Whatever is written comes back to the bit, through our reader, zarr and xarray."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from fsspec.mapping import FSMap  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.storage import FsspecStore, MemoryStore, StorePath, ZipStore

from dynamo_plugin.errors import InvalidInput, StoreError, UnknownName
from dynamo_plugin.store import (
    Population,
    PopulationInputs,
    PopulationWriter,
    open_population,
    verify_population,
)
from dynamo_plugin.types import InputSpec, OutputSpec, RowAxis, SiteSpec, TrajectorySpec

IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["..", ".", "a/b", "../../x", "con", "zarr.json", "🦊" * 90, "x" * 300, "GRU", "gru", "%2e"]
)


def assert_same(population: Population, example: Any) -> None:
    assert population.ids == tuple(example.specs)
    assert population.inputs.hash == example.inputs.hash
    assert population.sample_ids == example.inputs.sample_ids
    np.testing.assert_array_equal(population.offsets, example.inputs.offsets)
    np.testing.assert_array_equal(population.lengths, example.inputs.lengths)
    for model_id, spec in example.specs.items():
        assert population.spec(model_id) == spec
        assert population.model_hash(model_id) == f"hash of {model_id}"
        np.testing.assert_array_equal(
            population.outputs(model_id), example.outputs[model_id], strict=True
        )
        for site, rows in example.states[model_id].items():
            np.testing.assert_array_equal(population.states(model_id, site), rows, strict=True)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_population_comes_back(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    rows, samples = sum(lengths), len(lengths)
    targets_axis: RowAxis | None = data.draw(st.sampled_from([None, "sample", "time"]))
    features = data.draw(hnp.arrays(np.float32, (rows, 2), elements=st.floats(-9, 9, width=32)))
    inputs = PopulationInputs(
        values=features,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        sample_ids=tuple(data.draw(st.lists(IDS, min_size=samples, max_size=samples, unique=True))),
        spec=InputSpec("features", 2),
        targets=None
        if targets_axis is None
        else np.ones((samples if targets_axis == "sample" else rows, 3)),
        targets_axis=targets_axis,
    )
    ids = data.draw(st.lists(IDS, min_size=1, max_size=3, unique=True))
    store = MemoryStore()
    written: dict[str, tuple[Any, Any]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", data.draw(st.integers(1, 200)))
        patch.setattr("dynamo_plugin.store._blocking.TEXT_BLOCK_ROWS", 2)
        writer = PopulationWriter.create(store, inputs, config={}, models=ids)
        for index, model_id in enumerate(ids):
            dtype = data.draw(st.sampled_from(["float16", "float32", "float64"]))
            shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
            axis: RowAxis = data.draw(st.sampled_from(["sample", "time"]))
            count = rows if axis == "time" else samples
            site = data.draw(IDS)
            states = data.draw(hnp.arrays(dtype, (rows, *shape)))  # NaN too: bits are bits
            outputs = data.draw(hnp.arrays("float64", (count, 1)))
            spec = TrajectorySpec(
                "a", (SiteSpec(site, shape, dtype),), OutputSpec("o", (1,), "float64", axis)
            )
            model = writer.begin(model_id, spec, metadata={}, model_hash="h", index=index)
            cut = data.draw(st.integers(0, rows))
            model.append_states(site, states[:cut])
            model.append_states(site, states[cut:])
            model.append_outputs(outputs)
            model.finish()
            written[model_id] = (states, outputs)
    population = open_population(store)
    assert population.ids == tuple(ids)
    assert population.inputs.hash == inputs.hash
    assert population.inputs.targets_axis == targets_axis
    chosen = data.draw(st.lists(st.integers(0, samples - 1), max_size=6))
    parts = [slice(*inputs.offsets[i : i + 2]) for i in chosen]
    for model_id, (states, outputs) in written.items():
        np.testing.assert_array_equal(population.states(model_id), states, strict=True)
        np.testing.assert_array_equal(population.outputs(model_id), outputs, strict=True)
        expected = np.concatenate([states[:0], *(states[part] for part in parts)])
        np.testing.assert_array_equal(
            population.states(model_id, samples=chosen), expected, strict=True
        )
        per_sample = population.spec(model_id).output.axis == "sample"
        kept = [outputs[i : i + 1] for i in chosen] if per_sample else [outputs[p] for p in parts]
        np.testing.assert_array_equal(
            population.outputs(model_id, samples=chosen),
            np.concatenate([outputs[:0], *kept]),
            strict=True,
        )
    assert verify_population(store).ok


def stores(tmp_path: Path) -> dict[str, Any]:
    return {
        "path": tmp_path / "a" / "population.zarr",
        "text": str(tmp_path / "b"),
        "memory": MemoryStore(),
        "dictionary": {},
        "place in a store": StorePath(MemoryStore(), "deep/inside"),
        "url": f"memory://{tmp_path.name}/c",
        "file url": f"file://{tmp_path}/d",
        "fsspec store": FsspecStore.from_url(f"memory://{tmp_path.name}/e"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "path",
        "text",
        "memory",
        "dictionary",
        "place in a store",
        "url",
        "file url",
        "fsspec store",
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_every_kind_of_store(kind: str, tmp_path: Path, example: Any) -> None:
    store = stores(tmp_path)[kind]
    example.write(store, models=list(example.specs))
    assert_same(open_population(store), example)
    report = verify_population(store)
    assert report.ok
    assert report.models == 2
    PopulationWriter.resume(store, example.inputs, config=example.config)
    example.write(store, overwrite=True)
    assert_same(open_population(store), example)


@pytest.mark.usefixtures("small_blocks")
def test_fsspec_mapping(tmp_path: Path, example: Any) -> None:
    mapping = FSMap(f"/{tmp_path.name}/mapped", MemoryFileSystem())
    example.write(mapping)
    assert_same(open_population(mapping), example)


@pytest.mark.usefixtures("small_blocks")
def test_zipped_copy_can_be_read(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path / "population")
    shutil.make_archive(str(tmp_path / "copy"), "zip", tmp_path / "population")
    with ZipStore(tmp_path / "copy.zip", mode="r") as store:
        assert_same(open_population(store), example)
        assert verify_population(store).ok


@pytest.mark.usefixtures("small_blocks")
def test_zarr_and_xarray_read_the_same(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path / "p")
    root: Any = zarr.open_group(tmp_path / "p", mode="r")
    found = {}
    for _, group in root["models"].groups():
        model_id = group.attrs["dynamo"]["id"]
        found[model_id] = group
        for _, array in group["states"].arrays():
            site = array.attrs["dynamo"]["site"]
            np.testing.assert_array_equal(array[:], example.states[model_id][site], strict=True)
        ((_, output),) = group["outputs"].arrays()
        np.testing.assert_array_equal(output[:], example.outputs[model_id], strict=True)
        with xr.open_zarr(
            tmp_path / "p", group=f"{group.path}/states", consolidated=False
        ) as states:
            by_site = {array.attrs["dynamo"]["site"]: array for array in states.values()}
            assert by_site["rnn.layer0"].dims[0] == by_site["RNN.Layer0"].dims[0] == "row"
            assert by_site["summary"].dims[0] == "sample"
            for site, rows in example.states[model_id].items():
                np.testing.assert_array_equal(by_site[site].values, rows, strict=True)
    assert set(found) == set(example.specs)
    with xr.open_zarr(tmp_path / "p", group="inputs", consolidated=False) as inputs:
        assert inputs["sample_ids"].values.tolist() == list(example.inputs.sample_ids)
        assert inputs["values"].dims == ("row",)
        np.testing.assert_array_equal(inputs["values"], example.inputs.values)
        np.testing.assert_array_equal(inputs["offsets"], example.inputs.offsets)
        np.testing.assert_array_equal(inputs["targets"], example.inputs.targets)


def test_zero_blocks_are_stored_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 8)
    inputs = PopulationInputs(np.zeros(6, int), np.array([0, 6]), ("x",), InputSpec("ids", 1))
    writer = PopulationWriter.create(tmp_path, inputs, config={})
    spec = TrajectorySpec(
        "a", (SiteSpec("s", (2,), "float32"),), OutputSpec("o", (1,), "float32", "sample")
    )
    model = writer.begin("m", spec, metadata={}, model_hash="h", index=0)
    model.append_states("s", np.zeros((6, 2), dtype=np.float32))
    model.append_outputs(np.zeros((1, 1), dtype=np.float32))
    model.finish()
    chunks = sorted((tmp_path / "models/m/states/s").glob("c.*"))
    assert [chunk.read_bytes() for chunk in chunks] == [bytes(8)] * 6
    np.testing.assert_array_equal(open_population(tmp_path).states("m"), np.zeros((6, 2)))
    chunks[2].unlink()
    with pytest.raises(StoreError, match=r"Block 2 of site 's' of model 'm'.*missing"):
        open_population(tmp_path).states("m")


def test_one_sample_of_one_step(tmp_path: Path, example_of: Callable[..., Any]) -> None:
    example = example_of(ids=("only",), lengths=(1,))
    example.write(tmp_path)
    assert_same(open_population(tmp_path), example)


def test_other_tools_may_add_to_the_descriptions(tmp_path: Path, example: Any) -> None:
    """zarr rewrites documents in its own spelling, and may consolidate them."""
    example.write(tmp_path)
    root: Any = zarr.open_group(tmp_path, mode="r+")
    root.attrs["note"] = "mine"
    root["models/plain"].attrs["note"] = "mine"
    root["models/plain/outputs/output2"].attrs["note"] = "mine"
    root["inputs/sample_ids"].attrs["note"] = "mine"
    with pytest.warns(UserWarning, match="[Cc]onsolidated"):
        zarr.consolidate_metadata(tmp_path)
    (tmp_path / "models" / ".DS_Store").write_bytes(b"x")
    assert_same(open_population(tmp_path), example)
    assert verify_population(tmp_path).ok


def test_models_in_threads(tmp_path: Path, example_of: Callable[..., Any]) -> None:
    example = example_of(ids=tuple(f"model {i}" for i in range(8)), lengths=(5,) * 40)
    writer = PopulationWriter.create(tmp_path, example.inputs, config={})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model_id: example.write_model(writer, model_id), example.specs))
    assert_same(open_population(tmp_path), example)


def test_the_writer_travels_to_another_process(tmp_path: Path, example: Any) -> None:
    """Data are written there, records here; the plan says where they go."""
    writer = PopulationWriter.create(tmp_path, example.inputs, config=example.config)
    for index, (model_id, spec) in enumerate(example.specs.items()):
        plan = pickle.loads(pickle.dumps(writer.plan))
        elsewhere = plan.blocks(model_id, spec, f"hash of {model_id}")
        arrays = {**example.states[model_id], "": example.outputs[model_id]}
        written = [
            (array.layout.path, array.write(block, [arrays[name][slice(*array.bounds(block))]]))
            for name, array in {**elsewhere.sites, "": elsewhere.output}.items()
            for block in range(array.count)
        ]
        model = writer.begin(
            model_id,
            spec,
            metadata=example.metadata[model_id],
            model_hash=f"hash of {model_id}",
            index=index,
        )
        for path, record in pickle.loads(pickle.dumps(written)):
            model.commit(path, record)
        model.finish()
    assert_same(open_population(tmp_path), example)
    for store in (MemoryStore(), "memory://pickled"):
        in_memory = PopulationWriter.create(store, example.inputs, config={})
        with pytest.raises(InvalidInput, match="memory of this process"):
            pickle.dumps(in_memory.plan)


def test_the_parts_of_a_population(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path)
    population = open_population(tmp_path)
    assert len(population) == 2
    assert population.config == example.config
    assert population.location == str(tmp_path)
    assert repr(population) == f"Population({str(tmp_path)!r}: 2 models, 4 samples, 12 rows)"
    assert population.sites("plain") == ("rnn.layer0", "RNN.Layer0", "summary")
    assert population.output_group("plain") == "output2"
    assert population.nbytes("plain") == (
        sum(rows.nbytes for rows in example.states["plain"].values())
        + example.outputs["plain"].nbytes
    )
    expected = pd.DataFrame(
        {"architecture": ["gru", "gru"], "units": [3, 4]},
        index=pd.Index(["GRU/3", "plain"], name="model"),
    )
    pd.testing.assert_frame_equal(population.metadata, expected)
    spec = population.population_spec
    assert spec.inputs == InputSpec("ids", 11)
    assert spec.outputs == (OutputSpec("output2", (2,), "float32", "sample"),)
    inputs = population.inputs
    np.testing.assert_array_equal(inputs.values, example.inputs.values)
    assert population.inputs is inputs


def test_what_is_returned_is_the_callers_own(example: Any) -> None:
    store = MemoryStore()
    example.write(store)
    population = open_population(store)
    for samples in (None, [0, 1, 2, 3]):
        population.outputs("plain", samples=samples)[:] = 7
        np.testing.assert_array_equal(population.outputs("plain"), example.outputs["plain"])
    population.config["x"] = 2
    table = population.metadata
    table.loc["plain", "units"] = 9
    assert population.config == example.config
    assert population.metadata.loc["plain", "units"] == 4


def test_names_that_do_not_exist(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path)
    population = open_population(tmp_path)
    with pytest.raises(UnknownName, match="Did you mean 'plain'"):
        population.states("plane", "summary")
    with pytest.raises(UnknownName, match=r"Did you mean 'rnn.layer0'"):
        population.states("plain", "rnn.layer1")
    with pytest.raises(InvalidInput, match="name of one of the sites"):
        population.states("plain")
    with pytest.raises(InvalidInput, match="0 to 3"):
        population.states("plain", "summary", samples=[4])


def test_output_groups_must_agree(tmp_path: Path, example: Any) -> None:
    writer = PopulationWriter.create(tmp_path, example.inputs, config={})
    for index, (width, dtype) in enumerate([(2, "float16"), (2, "float32"), (3, "float32")]):
        spec = TrajectorySpec(
            "a",
            (SiteSpec("s", (1,), "float32", axis="sample"),),
            OutputSpec("o", (width,), dtype, "sample"),
        )
        model = writer.begin(f"m{index}", spec, metadata={}, model_hash="h", index=index)
        model.append_states("s", np.zeros((4, 1), dtype=np.float32))
        model.append_outputs(np.zeros((4, width), dtype=dtype))
        model.finish()
        if index == 1:
            (group,) = open_population(tmp_path).population_spec.outputs
            assert group.dtype == "float32"
    with pytest.raises(InvalidInput, match=r"'m0' returns .*'m2'"):
        _ = open_population(tmp_path).population_spec


def test_a_zip_file_cannot_be_written(tmp_path: Path, example: Any) -> None:
    """What it holds can be neither replaced nor deleted."""
    store = ZipStore(tmp_path / "p.zip", mode="w")
    with pytest.raises(InvalidInput, match=r"ZipStore, cannot do that\. Capture into a folder"):
        example.write(store)
    assert not (tmp_path / "p.zip").exists()
