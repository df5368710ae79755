"""A second reader, made from docs/store-format.md alone, reads what the writer writes."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamo_plugin.store import PopulationInputs, PopulationWriter, open_population
from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec


def crc32c(data: bytes) -> str:
    """RFC 3720, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return f"{crc ^ 0xFFFFFFFF:08x}"


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def attributes(path: Path) -> dict[str, Any]:
    document = json.loads((path / "zarr.json").read_bytes())
    assert document.keys() == {"zarr_format", "node_type", "attributes"}
    assert (document["zarr_format"], document["node_type"]) == (3, "group")
    dynamo: dict[str, Any] = document["attributes"].get("dynamo", {})
    if dynamo:
        assert dynamo.pop("checksum") == crc32c(canonical(dynamo))
    return dynamo


def read_blocks(
    root: Path, path: str, model_hash: str | None, inputs_hash: str, config_hash: str | None = None
) -> Any:
    """Return the description of an array and its chunks, every one checked."""
    document = json.loads((root / path / "zarr.json").read_bytes())
    shape, data_type = document["shape"], document["data_type"]
    count = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    checked_elsewhere = {"shape", "data_type", "codecs", "dimension_names", "attributes"}
    assert {key: document[key] for key in document.keys() - checked_elsewhere} == {
        "zarr_format": 3,
        "node_type": "array",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [count, *shape[1:]]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": {"string": "", "int64": 0}.get(data_type, 0.0),
        "storage_transformers": [],
    }
    assert 1 <= count <= shape[0]
    chunks = []
    for block in range(-(-shape[0] // count)):
        rows = [block * count, min((block + 1) * count, shape[0])]
        name = ".".join(["c", str(block), *"0" * len(shape[1:])])
        chunk = (root / path / name).read_bytes()
        expected = {
            "array": path,
            "block": block,
            "rows": rows,
            "shape": [rows[1] - rows[0], *shape[1:]],
            "dtype": data_type,
            "bytes": len(chunk),
            "crc32c": crc32c(chunk),
            "model_hash": model_hash,
            "inputs_hash": inputs_hash,
            "config_hash": config_hash,
            "zero": data_type != "string" and not np.frombuffer(chunk, data_type).any(),
        }
        expected["record_crc32c"] = crc32c(canonical(expected))
        record = (root / path / "commits" / f"{block}.json").read_bytes()
        assert record == canonical(expected)
        chunks.append(chunk)
    assert len(list((root / path / "commits").iterdir())) == len(chunks)
    return document, count, chunks


def read_array(
    root: Path, path: str, model_hash: str | None, inputs_hash: str, config_hash: str | None = None
) -> NDArray[Any]:
    document, count, chunks = read_blocks(root, path, model_hash, inputs_hash, config_hash)
    assert document["codecs"] == [{"name": "bytes", "configuration": {"endian": "little"}}]
    shape = document["shape"]
    dtype = np.dtype(document["data_type"]).newbyteorder("<")
    values = np.frombuffer(b"".join(chunks), dtype=dtype).reshape(-1, *shape[1:])
    assert len(values) == count * len(chunks)
    assert not values[shape[0] :].any()  # the padding
    return values[: shape[0]]


def read_text(root: Path, path: str, inputs_hash: str) -> list[str]:
    document, count, chunks = read_blocks(root, path, None, inputs_hash)
    assert document["data_type"] == "string"
    assert document["codecs"] == [{"name": "vlen-utf8", "configuration": {}}]
    values = []
    for chunk in chunks:
        assert struct.unpack("<I", chunk[:4]) == (count,)
        rest = chunk[4:]
        while rest:
            (length,) = struct.unpack("<I", rest[:4])
            values.append(rest[4 : 4 + length].decode())
            rest = rest[4 + length :]
    assert not any(values[document["shape"][0] :])
    return values[: document["shape"][0]]


@pytest.mark.usefixtures("small_blocks")
def test_the_documentation_is_enough(
    tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.TEXT_BLOCK_ROWS", 3)
    example.write(tmp_path, models=list(example.specs))
    root = attributes(tmp_path)
    assert (root["format"], root["version"]) == ("dynamo-population", 2)
    assert root["models"] == list(example.specs)
    assert root["config"] == example.config
    inputs_hash = root["inputs_hash"]

    header = attributes(tmp_path / "inputs")
    values = read_array(tmp_path, "inputs/values", None, inputs_hash)
    offsets = read_array(tmp_path, "inputs/offsets", None, inputs_hash)
    targets = read_array(tmp_path, "inputs/targets", None, inputs_hash)
    sample_ids = read_text(tmp_path, "inputs/sample_ids", inputs_hash)
    np.testing.assert_array_equal(values, example.inputs.values)
    np.testing.assert_array_equal(offsets, example.inputs.offsets)
    assert sample_ids == list(example.inputs.sample_ids)
    arrays = [[a.dtype.name, *a.shape] for a in (values, offsets, targets)]
    facts = {"kind": "ids", "size": 11, "arrays": arrays, "targets_axis": "sample"}
    content = b"".join(
        [
            b"dynamo-population-inputs/1\n",
            canonical(facts) + b"\n",
            values.tobytes() + offsets.tobytes() + targets.tobytes(),
            *(f"{len(i.encode())}:{i}".encode() for i in sample_ids),
        ]
    )
    assert hashlib.sha256(content).hexdigest() == inputs_hash == header["hash"]

    found = {}
    for group in (tmp_path / "models").iterdir():
        if group.name == "zarr.json":
            continue
        model = attributes(group)
        found[model["index"]] = model["id"]
        assert model["complete"] is True
        assert model["metadata"] == example.metadata[model["id"]]
        path = f"models/{group.name}"
        config_hash = hashlib.sha256(canonical(root["config"])).hexdigest()
        arguments = (model["model_hash"], inputs_hash, config_hash)
        for site in model["spec"]["sites"]:
            name = site["name"]
            key = name if name.islower() else "rnn_layer0~" + sha256(name)[:16]
            rows = read_array(tmp_path, f"{path}/states/{key}", *arguments)
            np.testing.assert_array_equal(rows, example.states[model["id"]][name], strict=True)
        rows = read_array(tmp_path, f"{path}/outputs/output2", *arguments)
        np.testing.assert_array_equal(rows, example.outputs[model["id"]], strict=True)
    assert tuple(found[i] for i in sorted(found)) == open_population(tmp_path).ids
    assert (tmp_path / "models" / ("gru_3~" + sha256("GRU/3")[:16])).is_dir()


@pytest.mark.usefixtures("small_blocks")
def test_strides_reductions_and_single_arrays(tmp_path: Path) -> None:
    """What the first example has not: sites of some steps only, and inputs without time."""
    lengths = [5, 1, 4]
    inputs = PopulationInputs(
        np.arange(20, dtype=np.float64).reshape(10, 2),
        np.array([0, 5, 6, 10]),
        ("a", "b", "c"),
        InputSpec("features", 2),
    )
    sites = (
        SiteSpec("all", (2,), "float32"),
        SiteSpec("some", (3,), "float32", source_dtype="bfloat16", every=2),
        SiteSpec("less", (), "float16", "sample", reduction={"kind": "some kind", "x": 0.1}),
    )
    spec = TrajectorySpec("a", sites, OutputSpec("o", (2, 2), "float64", "time"))
    states: dict[str, NDArray[Any]] = {
        "all": np.full((10, 2), -0.0, dtype=np.float32),
        "some": np.arange(18, dtype=np.float32).reshape(6, 3),
        "less": np.arange(3).astype(np.float16),
    }
    outputs = np.arange(40.0).reshape(10, 2, 2)
    writer = PopulationWriter.create(tmp_path, inputs, config={"x": 1e-5})
    model = writer.begin("m", spec, metadata={}, model_hash="h", index=0)
    for site, rows in states.items():
        model.append_states(site, rows)
    model.append_outputs(outputs)
    model.finish()
    config_hash = hashlib.sha256(b'{"x":1e-05}').hexdigest()
    described = attributes(tmp_path / "models/m")["spec"]
    names = {"all": ["row", "unit of all"], "less": ["sample", "unit of less"]}
    names["some"] = ["every 2 rows", "unit of some"]
    steps = {"all": 10, "some": sum(-(-n // 2) for n in lengths), "less": 3}
    for site in described["sites"]:
        name = site["name"]
        path = f"models/m/states/{name}"
        rows = read_array(tmp_path, path, "h", inputs.hash, config_hash)
        np.testing.assert_array_equal(rows.view(np.uint8), states[name].view(np.uint8))
        document = json.loads((tmp_path / path / "zarr.json").read_bytes())
        assert document["shape"] == [steps[name], *site["shape"]]
        assert document["dimension_names"] == names[name][: len(document["shape"])]
        expected = {"site": name, "axis": site["axis"]} | ({"every": 2} if name == "some" else {})
        assert document["attributes"] == {"dynamo": expected}
    assert described["sites"][1]["source_dtype"] == "bfloat16"
    assert described["sites"][2]["reduction"] == {"kind": "some kind", "x": 0.1}
    rows = read_array(tmp_path, "models/m/outputs/o", "h", inputs.hash, config_hash)
    np.testing.assert_array_equal(rows, outputs, strict=True)
    document = json.loads((tmp_path / "models/m/outputs/o/zarr.json").read_bytes())
    assert document["dimension_names"] == ["row", "output_0", "output_1"]
    # what readers make of the strides: the steps 0, 2, 4 of the first sample, ...
    read = open_population(tmp_path).states("m", "some", samples=[2, 1])
    np.testing.assert_array_equal(read, states["some"][[4, 5, 3]])

    images = PopulationInputs(
        np.arange(18, dtype=np.float32).reshape(3, 2, 3),
        np.arange(4),
        ("a", "b", "c"),
        InputSpec("array", 6, (2, 3)),
    )
    PopulationWriter.create(tmp_path / "images", images, config={})
    header = attributes(tmp_path / "images/inputs")
    assert (header["kind"], header["size"], header["shape"]) == ("array", 6, [2, 3])
    assert header["rows"] == header["samples"] == 3
    values = read_array(tmp_path / "images", "inputs/values", None, images.hash)
    np.testing.assert_array_equal(values, images.values, strict=True)
    document = json.loads((tmp_path / "images/inputs/values/zarr.json").read_bytes())
    assert document["dimension_names"] == ["sample", "axis_0", "axis_1"]


def sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
