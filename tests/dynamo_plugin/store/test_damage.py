"""Whatever is missing, changed or made up is noticed: nothing wrong is ever read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.buffer import cpu
from zarr.storage import LocalStore, MemoryStore

from dynamo_plugin.errors import (
    CorruptBlock,
    IncompleteCapture,
    InvalidInput,
    StoreError,
    StoreNotFound,
    UnsupportedFormat,
)
from dynamo_plugin.store import PopulationWriter, open_population, verify_population
from dynamo_plugin.store._documents import canonical, crc32c


def read_everything(store: Any) -> list[Any]:
    population = open_population(store)
    inputs = population.inputs
    everything: list[Any] = [
        population.ids,
        population.config,
        population.metadata.to_json(),
        population.sample_ids,
        population.offsets.tobytes(),
        inputs.hash,
        inputs.targets,
    ]
    for model_id in population.ids:
        everything += [population.spec(model_id), population.model_hash(model_id)]
        everything.append(population.outputs(model_id).tobytes())
        for site in population.sites(model_id):
            everything.append(population.states(model_id, site).tobytes())
    return everything


def snapshot(example: Any) -> dict[str, bytes]:
    files: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)
        example.write(MemoryStore(files), models=list(example.specs))
    return {key: buffer.to_bytes() for key, buffer in files.items()}


@pytest.fixture(scope="module")
def files(example: Any) -> dict[str, bytes]:
    return snapshot(example)


def as_store(files: dict[str, bytes]) -> MemoryStore:
    return MemoryStore({key: cpu.Buffer.from_bytes(data) for key, data in files.items()})


def attempt(check: Callable[[], Any]) -> Any:
    try:
        return check()
    except StoreError as error:
        return error


def assert_noticed(files: dict[str, bytes], key: str, reference: list[Any]) -> None:
    """Reading gives an error or what was written, and `verify` reports the damage."""
    read = attempt(lambda: read_everything(as_store(files)))
    if not isinstance(read, StoreError):
        assert str(read) == str(reference), f"wrong values were read after damage to {key}"
        # these two hold nothing that our reader needs: other readers do
        assert key.endswith(("models/zarr.json", "states/zarr.json", "outputs/zarr.json"))
    report = attempt(lambda: verify_population(as_store(files)))
    assert isinstance(report, StoreError) or not report.ok, f"damage to {key} went unnoticed"


def damages(data: bytes) -> Iterator[bytes | None]:
    yield None
    yield b""
    yield data[:-1]
    yield data + b"x"
    middle = len(data) // 2
    yield data[:middle]
    yield data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_every_file_deleted_cut_or_changed(files: dict[str, bytes]) -> None:
    reference = read_everything(as_store(files))
    for key, data in files.items():
        for damaged in damages(data):
            changed = dict(files)
            if damaged is None:
                del changed[key]
            else:
                changed[key] = damaged
            assert_noticed(changed, key, reference)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_flipped_bit(files: dict[str, bytes], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(files)))
    position = data.draw(st.integers(0, len(files[key]) - 1))
    changed = bytearray(files[key])
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    store = files | {key: bytes(changed)}
    read = attempt(lambda: read_everything(as_store(store)))
    if not isinstance(read, StoreError):
        assert str(read) == str(read_everything(as_store(files)))


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_file_cut_at_any_byte(files: dict[str, bytes], data: st.DataObject) -> None:
    """Commit records above all: they are what says that a block is there."""
    records = sorted(key for key in files if "/commits/" in key)
    key = data.draw(st.sampled_from(records) | st.sampled_from(sorted(files)))
    length = data.draw(st.integers(0, len(files[key]) - 1))
    cut = files | {key: files[key][:length]}
    report = attempt(lambda: verify_population(as_store(cut)))
    assert isinstance(report, StoreError) or not report.ok
    read = attempt(lambda: read_everything(as_store(cut)))
    if not isinstance(read, StoreError):  # a group that our reader does not need
        assert str(read) == str(read_everything(as_store(files)))
        assert key.endswith(("models/zarr.json", "states/zarr.json", "outputs/zarr.json"))


STATES = "models/plain/states/rnn.layer0"
MODEL = "model 'plain'"


@pytest.mark.parametrize(
    ("key", "damage", "error", "message"),
    [
        (f"{STATES}/commits/1.json", None, IncompleteCapture, "never committed.*resume=True"),
        (f"{STATES}/c.1.0", None, CorruptBlock, "is missing.*dynamo-plugin repair"),
        (f"{STATES}/c.1.0", b"short", CorruptBlock, "with 48 bytes but has 5 bytes"),
        (f"{STATES}/c.1.0", bytes(48), CorruptBlock, "CRC-32C"),
        (f"{STATES}/commits/1.json", b'{"block":1}', CorruptBlock, "changed or cut short"),
        (f"{STATES}/commits/1.json", b"\xff", CorruptBlock, "Expected JSON"),
        (f"{STATES}/commits/1.json", b"[" * 10**4, CorruptBlock, "Expected JSON"),
        (f"{STATES}/commits/1.json", b"[]", CorruptBlock, "JSON object"),
        (f"{STATES}/zarr.json", None, CorruptBlock, "description .* is missing"),
    ],
)
def test_messages_name_model_site_and_block(
    files: dict[str, bytes],
    key: str,
    damage: bytes | None,
    error: type[StoreError],
    message: str,
) -> None:
    changed = files | {key: damage} if damage is not None else dict(files)
    if damage is None:
        del changed[key]
    population = open_population(as_store(changed))
    with pytest.raises(error, match=message) as caught:
        population.states("plain", "rnn.layer0")
    if key.endswith("zarr.json"):
        assert "site 'rnn.layer0' of model 'plain'" in str(caught.value)
    else:
        assert "lock 1 of site 'rnn.layer0' of model 'plain'" in str(caught.value)
    # blocks that are whole can still be read by sample, and other models too
    if not key.endswith("zarr.json"):
        assert population.states("plain", "rnn.layer0", samples=[0]).shape == (3, 4)
    assert population.states("GRU/3", "rnn.layer0").shape == (12, 3)


def test_blocks_cannot_be_swapped(files: dict[str, bytes], example_of: Any) -> None:
    """Each is valid in itself; only the commit record ties it to its place."""

    def moved(old: str, new: str) -> dict[str, bytes]:
        return files | {
            new + key.removeprefix(old): data for key, data in files.items() if key.startswith(old)
        }

    with pytest.raises(CorruptBlock, match="commit record says block = 0"):
        read_everything(
            as_store(
                moved(f"{STATES}/c.0.", f"{STATES}/c.1.")
                | {f"{STATES}/commits/1.json": files[f"{STATES}/commits/0.json"]}
            )
        )
    renamed = moved("models/plain/", "models/copy/")
    with pytest.raises(CorruptBlock, match="cannot be renamed or copied"):
        open_population(as_store(renamed))
    other = snapshot(example_of(seed=1))
    mixed = files | {k: data for k, data in other.items() if k.startswith("models/plain/")}
    with pytest.raises(CorruptBlock, match="inputs_hash"):
        read_everything(as_store(mixed))
    mixed = files | {k: data for k, data in other.items() if k.startswith("inputs/")}
    with pytest.raises(CorruptBlock, match="another population"):
        open_population(as_store(mixed))


def edited(files: dict[str, bytes], key: str, change: Callable[[dict[str, Any]], None]) -> Any:
    """Return a store whose maker wrote something else, with valid checksums."""
    document = json.loads(files[key])
    change(document)
    dynamo = document["attributes"].get("dynamo", {})
    if dynamo.pop("checksum", None):
        dynamo["checksum"] = crc32c(canonical(dynamo))
    return as_store(files | {key: json.dumps(document).encode()})


def test_other_versions_are_named(files: dict[str, bytes]) -> None:
    def newer(document: dict[str, Any]) -> None:
        document["attributes"]["dynamo"]["version"] = 3
        document["attributes"]["dynamo"]["models"] = {"new": "layout"}

    store = edited(files, "zarr.json", newer)
    for function in (open_population, verify_population):
        with pytest.raises(UnsupportedFormat, match=r"version 3; .* versions 1 to 2. Upgrade"):
            function(store)


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]},
        {"storage_transformers": [{"name": "evil"}]},
        {"chunk_key_encoding": {"name": "v2"}},
        {"must_run": "code"},
        {"zarr_format": 2},
    ],
)
def test_no_codec_is_ever_looked_up(files: dict[str, bytes], change: dict[str, Any]) -> None:
    store = edited(files, f"{STATES}/zarr.json", lambda document: document.update(change))
    with pytest.raises(UnsupportedFormat, match=next(iter(change))):
        open_population(store).states("plain", "rnn.layer0")
    assert [problem.kind for problem in verify_population(store).problems] == ["format"]


@pytest.mark.parametrize(
    "change",
    [
        {"data_type": "float64"},
        {"data_type": {"name": "struct"}},
        {"shape": [12, 5]},
        {"shape": "12"},
        {"fill_value": 1.0},
        {"dimension_names": ["unit", "row"]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 4]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [13, 4]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [True, 4]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4]}}},
        {"chunk_grid": None},
        {"attributes": {"dynamo": {"site": "other"}}},
        {"attributes": []},
    ],
)
def test_descriptions_must_fit_the_spec(files: dict[str, bytes], change: dict[str, Any]) -> None:
    document = json.loads(files[f"{STATES}/zarr.json"]) | change
    store = as_store(files | {f"{STATES}/zarr.json": json.dumps(document).encode()})
    with pytest.raises(CorruptBlock, match=r"site 'rnn.layer0' of model 'plain'"):
        open_population(store).states("plain", "rnn.layer0")


def test_declared_sizes_ask_for_no_memory(files: dict[str, bytes]) -> None:
    """All descriptions agree on 2**50 rows; only the bytes are not there."""
    rows = 2**50
    changed = dict(files)
    for key, data in files.items():
        document = json.loads(data) if key.endswith("zarr.json") else {}
        if document.get("dimension_names", [""])[0] == "row":
            document["shape"][0] = rows
        elif key == "inputs/zarr.json":
            document["attributes"]["dynamo"]["rows"] = rows
        else:
            continue
        changed[key] = json.dumps(document).encode()
    store = edited(changed, "inputs/zarr.json", lambda document: None)
    population = open_population(store)
    with pytest.raises((IncompleteCapture, CorruptBlock)):
        population.states("plain", "rnn.layer0")
    with pytest.raises((IncompleteCapture, CorruptBlock)):
        _ = population.inputs
    with pytest.raises(CorruptBlock, match="do not cut"):
        population.states("plain", "rnn.layer0", samples=[0])
    report = verify_population(store)
    assert any("more blocks" in problem.message for problem in report.problems)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("zarr.json", {"config": []}),
        ("zarr.json", {"models": [1]}),
        ("zarr.json", {"inputs_hash": None}),
        ("inputs/zarr.json", {"kind": "words"}),
        ("inputs/zarr.json", {"rows": -1}),
        ("inputs/zarr.json", {"rows": 2.5}),
        ("inputs/zarr.json", {"samples": True}),
        ("inputs/zarr.json", {"dtype": "object"}),
        ("inputs/zarr.json", {"targets": {"axis": "sample"}}),
        ("inputs/zarr.json", {"targets": {"axis": "x", "dtype": "int64", "shape": []}}),
        ("inputs/zarr.json", {"targets": "none"}),
        ("models/plain/zarr.json", {"spec": None}),
        ("models/plain/zarr.json", {"spec": {"adapter": "a"}}),
        ("models/plain/zarr.json", {"complete": 1}),
        ("models/plain/zarr.json", {"index": "0"}),
        ("models/plain/zarr.json", {"metadata": []}),
        ("models/plain/zarr.json", {"id": "other"}),
        ("models/plain/zarr.json", {"id": 3}),
    ],
)
def test_malformed_attributes(files: dict[str, bytes], key: str, change: dict[str, Any]) -> None:
    store = edited(files, key, lambda doc: doc["attributes"]["dynamo"].update(change))
    with pytest.raises(CorruptBlock):
        open_population(store)
    assert not verify_population(store).ok


def test_what_is_no_population(tmp_path: Path) -> None:
    import zarr

    with pytest.raises(StoreNotFound, match="does not exist"):
        open_population(tmp_path / "nothing")
    with pytest.raises(StoreNotFound, match=r"no zarr\.json"):
        open_population(tmp_path)
    with pytest.raises(StoreNotFound, match=r"no zarr\.json"):
        open_population(MemoryStore())
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreNotFound, match="is a file"):
        verify_population(tmp_path / "file")
    zarr.create_group(tmp_path / "group", attributes={"mine": 1})
    with pytest.raises(UnsupportedFormat, match="no population"):
        open_population(tmp_path / "group")
    zarr.create_array(tmp_path / "array", shape=(2,), dtype="f4")
    with pytest.raises(UnsupportedFormat, match="no population"):
        verify_population(tmp_path / "array")
    with pytest.raises(StoreNotFound, match="does not exist"):
        open_population(LocalStore(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(InvalidInput, match="fsspec URL"):
        open_population("nosuchprotocol://x")
    with pytest.raises(InvalidInput, match="got int"):
        open_population(3)


def test_verify_names_what_is_wrong(tmp_path: Path, example: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)
        example.write(tmp_path / "p", models=["GRU/3", "plain", "never begun"])
        with PopulationWriter.resume(
            tmp_path / "p", example.inputs, config=example.config
        ) as writer:
            writer.begin("begun", example.specs["plain"], metadata={}, model_hash="h", index=3)
    states = tmp_path / "p" / STATES
    (states / "commits/2.json").unlink()
    (states / "c.0.0").write_bytes(bytes(48))
    shutil.copy(states / "commits/1.json", states / "commits/7.json")
    (states / f"c.0.0.{'a' * 32}.partial").write_bytes(b"")
    report = verify_population(tmp_path / "p")
    found = [(p.model, p.array, p.block, p.kind) for p in report.problems]
    assert found == [
        ("never begun", None, None, "incomplete"),
        ("begun", None, None, "incomplete"),
        ("plain", STATES, 0, "damaged"),
        ("plain", STATES, 2, "incomplete"),
        ("plain", STATES, None, "unexpected"),
    ]
    assert not report.ok
    assert report.models == 3
    frame = report.to_dataframe()
    assert frame["kind"].tolist() == [kind for *_, kind in found]
    assert frame["block"].tolist()[2:4] == [0, 2]
    summary = json.loads(json.dumps(report.summary()))
    assert summary["problems"][2]["block"] == 0
    assert "CRC-32C" in summary["problems"][2]["message"]


def test_verify_counts_every_byte(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path / "p")
    report = verify_population(tmp_path / "p")
    chunks = [p for p in (tmp_path / "p").rglob("c.*") if p.is_file()]
    assert report.ok
    assert report.problems == ()
    assert (report.models, report.blocks) == (2, len(chunks))
    assert report.bytes == sum(chunk.stat().st_size for chunk in chunks)
    assert report.to_dataframe().empty


def test_unreadable_storage_is_reported(
    tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.write(tmp_path / "p")
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777) -> int:
        if Path(path).match("models/plain/outputs/*/c.0.0"):
            raise OSError(5, "Input/output error")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(StoreError, match="Cannot read models/plain/outputs"):
        open_population(tmp_path / "p").outputs("plain")
    assert [p.kind for p in verify_population(tmp_path / "p").problems] == ["unreadable"]


def rewritten(files: dict[str, bytes], array: str, values: list[int]) -> MemoryStore:
    """Return a store in which one array of the inputs was replaced, with valid checksums."""
    data = np.array(values, dtype="<i8").tobytes()
    record = json.loads(files[f"{array}/commits/0.json"])
    record.pop("record_crc32c")
    record["crc32c"] = crc32c(data)
    record["record_crc32c"] = crc32c(canonical(record))
    return as_store(files | {f"{array}/c.0": data, f"{array}/commits/0.json": canonical(record)})


def test_inputs_that_contradict_themselves(files: dict[str, bytes], example: Any) -> None:
    store = rewritten(files, "inputs/offsets", [0, 5, 4, 10, 12])
    population = open_population(store)
    with pytest.raises(CorruptBlock, match="do not cut 12 rows"):
        _ = population.lengths
    with pytest.raises(CorruptBlock, match="contradict themselves"):
        _ = population.inputs
    assert any("contradict" in p.message for p in verify_population(store).problems)
    PopulationWriter.resume(store, example.inputs, config=example.config)
    assert verify_population(store).ok


def test_inputs_must_have_their_hash(files: dict[str, bytes]) -> None:
    """Everything is plausible and every checksum valid, but a target was exchanged."""
    store = rewritten(files, "inputs/targets", [7, 7, 7, 7])
    with pytest.raises(CorruptBlock, match="have hash"):
        _ = open_population(store).inputs
    (problem,) = verify_population(store).problems
    assert "have hash" in problem.message


def every_second_step(example: Any) -> Any:
    """Return the example with only every second step of its first site."""
    steps = np.concatenate([np.arange(length) for length in example.inputs.lengths])
    specs, states = {}, {}
    for model_id, spec in example.specs.items():
        first, *others = spec.sites
        specs[model_id] = replace(spec, sites=(replace(first, every=2), *others))
        rows = example.states[model_id]
        states[model_id] = rows | {first.name: rows[first.name][steps % 2 == 0]}
    return replace(example, specs=specs, states=states)


def test_what_the_number_of_rows_hangs_on(example: Any) -> None:
    """Where only some steps are stored, the offsets say how many; `verify` lives without them."""
    files = snapshot(every_second_step(example))
    assert verify_population(as_store(files)).ok
    reference = read_everything(as_store(files))
    for key in [key for key in files if key.startswith("inputs/offsets/")]:
        for damaged in (None, b"", files[key][:-1] + bytes([files[key][-1] ^ 1])):
            changed = {name: data for name, data in files.items() if name != key}
            if damaged is not None:
                changed[key] = damaged
            assert_noticed(changed, key, reference)
            report = verify_population(as_store(changed))
            named = {problem.model for problem in report.problems}
            assert named == {None, *example.specs}  # these cannot be judged
            arrays = {problem.array for problem in report.problems}
            assert arrays == {None, "inputs/offsets"}
            assert report.blocks > 0  # the other inputs
