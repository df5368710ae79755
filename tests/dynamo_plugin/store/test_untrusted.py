"""A store that somebody else made: reading it runs nothing, writes nothing and stays inside."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from dynamo_plugin.errors import CorruptBlock, InvalidInput, StoreError
from dynamo_plugin.store import (
    Population,
    PopulationWriter,
    StoredInputs,
    open_population,
    verify_population,
)
from dynamo_plugin.store._documents import canonical, crc32c
from dynamo_plugin.store._location import locate

STATES = "models/plain/states/rnn.layer0"


@pytest.fixture(scope="module")
def original(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store: Path = tmp_path_factory.mktemp("original") / "p"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)
        example.write(store, models=list(example.specs))
    return store


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    """Return a copy, beside a secret."""
    shutil.copytree(original, tmp_path / "p")
    (tmp_path / "secret").mkdir()
    for name in ("c.1.0", "zarr.json", "1.json"):
        (tmp_path / "secret" / name).write_bytes(b"secret")
    return tmp_path / "p"


def read_everything(population: Population) -> None:
    _ = population.inputs, population.metadata, population.config, population.sample_ids
    for model_id in population.ids:
        population.outputs(model_id)
        population.outputs(model_id, samples=[0])
        for site in population.sites(model_id):
            population.states(model_id, site)
            population.states(model_id, site, samples=[2, 0])


def tree(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    status = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}
    return {n: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_mode) for n, s in status.items()}


def link(path: Path, target: Path | str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("key", "target"),
    [
        (f"{STATES}/c.1.0", "../../../../../secret/c.1.0"),
        (f"{STATES}/commits/1.json", "../../../../../../secret/1.json"),
        (f"{STATES}/zarr.json", "../../../../../secret/zarr.json"),
        (f"{STATES}/commits", "../../../../../secret"),
        (STATES, "../../../../secret"),
        ("models/plain/states", "../../../secret"),
        ("models/plain", "../../secret"),
        ("models", "../secret"),
        ("inputs", "../secret"),
        ("inputs/values/c.0", "../../../secret/c.1.0"),
        ("zarr.json", "../secret/zarr.json"),
        (f"{STATES}/c.1.0", "/dev/zero"),
        (f"{STATES}/c.1.0", "/proc/self/environ"),
        ("zarr.json", "/dev/zero"),
    ],
)
def test_links_that_lead_out_are_refused(store: Path, key: str, target: str) -> None:
    link(store / key, target)
    with pytest.raises(CorruptBlock, match=r"leads out of the store.* Nothing outside"):
        read_everything(open_population(store))
    report = verify_population(store)
    assert any("leads out of the store" in problem.message for problem in report.problems)
    assert {problem.kind for problem in report.problems} <= {"damaged", "incomplete"}


def test_an_absolute_link_to_a_sibling_with_the_same_beginning(store: Path) -> None:
    """`/a/population` is not inside `/a/p`."""
    shutil.copytree(store, store.parent / "population")
    link(store / STATES, store.parent / "population" / STATES)
    with pytest.raises(CorruptBlock, match="leads out"):
        open_population(store).states("plain", "rnn.layer0")


def test_links_that_stay_inside_are_followed(store: Path, example: Any) -> None:
    shutil.move(store / STATES / "c.1.0", store / "kept elsewhere")
    link(store / STATES / "c.1.0", "../../../../kept elsewhere")
    shutil.move(store / "models/plain/outputs", store / "outputs of plain")
    link(store / "models/plain/outputs", store / "outputs of plain")
    link(store.parent / "by another name", store)
    for path in (store, store.parent / "by another name"):
        population = open_population(path)
        np.testing.assert_array_equal(
            population.states("plain", "rnn.layer0"), example.states["plain"]["rnn.layer0"]
        )
        np.testing.assert_array_equal(population.outputs("plain"), example.outputs["plain"])
        assert verify_population(path).ok


def test_links_in_a_circle(store: Path) -> None:
    link(store / STATES / "c.1.0", "c.1.0")
    link(store / "models/plain/outputs", "../plain/outputs")
    population = open_population(store)
    reads: list[Callable[[], Any]] = [
        lambda: population.states("plain", "rnn.layer0"),
        lambda: population.states("plain", "rnn.layer0", samples=[1, 2]),
        lambda: population.outputs("plain"),
    ]
    for read in reads:
        with pytest.raises(StoreError):
            read()
    assert not verify_population(store).ok


@pytest.mark.parametrize("key", ["models", "models/plain", STATES, f"{STATES}/commits", "leases"])
def test_nothing_is_written_through_links_that_lead_out(
    store: Path, example: Any, key: str
) -> None:
    outside = store.parent / "outside"
    outside.mkdir()
    link(store / key, outside)

    def write() -> None:
        writer = PopulationWriter.resume(
            store, example.inputs, config=example.config, models=list(example.specs), repair=True
        )
        example.write_model(writer, "plain")

    with pytest.raises(CorruptBlock, match="leads out of the store"):
        write()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize(
    "key",
    ["zarr.json", "inputs/offsets/c.0", f"{STATES}/c.1.0", f"{STATES}/commits/1.json", "models"],
)
def test_what_is_no_file_does_not_hang(store: Path, key: str, kind: str) -> None:
    if (store / key).is_dir():
        shutil.rmtree(store / key)
    else:
        (store / key).unlink()
    if kind == "pipe":
        os.mkfifo(store / key)
    else:
        (store / key).mkdir()
    came: list[Exception] = []

    def check() -> None:
        try:
            read_everything(open_population(store))
        except StoreError as error:
            came.append(error)
        assert not verify_population(store).ok

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert came


@pytest.fixture
def read_only(store: Path) -> Iterator[Path]:
    before = {path: path.stat().st_mode for path in (store, *store.rglob("*"))}
    for path in before:
        path.chmod(before[path] & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield store
    for path, mode in before.items():
        path.chmod(mode)


def test_reading_writes_nothing(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind the superuser, so that calls that write are watched, too."""
    before = tree(read_only.parent)
    written: list[Any] = []
    real = os.open

    def watched(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(path)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", watched)
    for name in ("mkdir", "replace", "rename", "unlink", "link", "rmdir", "symlink", "truncate"):
        monkeypatch.setattr(os, name, lambda *a, **k: written.append(a))
    read_everything(open_population(read_only))
    inputs = StoredInputs(locate(read_only, create=False))
    inputs.batch([0, 2])
    assert verify_population(read_only).ok
    monkeypatch.undo()
    assert written == []
    assert tree(read_only.parent) == before


def test_consolidated_metadata_is_not_believed(store: Path, example: Any) -> None:
    with pytest.warns(UserWarning, match="[Cc]onsolidated"):
        zarr.consolidate_metadata(store)
    path = store / "zarr.json"
    document = json.loads(path.read_bytes())
    copies = document["consolidated_metadata"]["metadata"]
    copies[STATES]["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    copies[STATES]["shape"] = [2**40, 4]
    copies["models/plain"]["attributes"]["dynamo"]["id"] = "changed"
    path.write_text(json.dumps(document))
    population = open_population(store)
    assert population.ids == tuple(example.specs)
    read_everything(population)
    assert verify_population(store).ok


def test_documents_have_a_largest_size(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sparse files, which cost their maker nothing."""
    for key in (f"{STATES}/commits/1.json", "models/plain/zarr.json", "zarr.json"):
        with (store / key).open("r+b") as file:
            file.truncate(2**33)
    with pytest.raises(CorruptBlock, match="at most 268435456 bytes"):
        open_population(store)
    assert not verify_population(store).ok


def as_store(files: dict[str, bytes]) -> MemoryStore:
    return MemoryStore({key: cpu.Buffer.from_bytes(data) for key, data in files.items()})


@pytest.fixture
def files(store: Path) -> dict[str, bytes]:
    found = {path.relative_to(store).as_posix(): path for path in store.rglob("*")}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def edited(files: dict[str, bytes], key: str, **changes: Any) -> dict[str, bytes]:
    """Change the attributes of a group; its checksum agrees."""
    document = json.loads(files[key])
    dynamo = document["attributes"]["dynamo"] | changes
    del dynamo["checksum"]
    document["attributes"]["dynamo"] = {**dynamo, "checksum": crc32c(canonical(dynamo))}
    return files | {key: json.dumps(document).encode()}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [61, 300, 900])
def test_levels_of_json_are_bounded(files: dict[str, bytes], levels: int) -> None:
    for store in (
        edited(files, "zarr.json", config={"x": nested(levels)}),
        edited(files, "models/plain/zarr.json", metadata={"x": nested(levels)}),
    ):
        if levels == 61:  # with those around it just too many
            with pytest.raises(CorruptBlock, match="64 levels"):
                open_population(as_store(store))
        with pytest.raises(CorruptBlock):
            open_population(as_store(store))
        assert not verify_population(as_store(store)).ok
    deepest = edited(files, "zarr.json", config={"x": nested(60)})
    assert open_population(as_store(deepest)).config == {"x": nested(60)}


@pytest.mark.parametrize("data", [b"[" * 10**6, b'{"a":' * 10**5, b"[" * 10**5 + b"]" * 10**5])
def test_endless_levels_of_json(files: dict[str, bytes], data: bytes) -> None:
    for key in ("zarr.json", "models/plain/zarr.json", f"{STATES}/zarr.json"):
        store = as_store(files | {key: data})
        with pytest.raises(CorruptBlock):
            read_everything(open_population(store))


def test_levels_that_would_not_be_read_are_not_written(example: Any) -> None:
    with pytest.raises(InvalidInput, match="at most 48 levels"):
        PopulationWriter.create({}, example.inputs, config={"x": nested(49)})
    store: dict[str, Any] = {}
    writer = PopulationWriter.create(store, example.inputs, config={"x": nested(47)})
    example.write_model(writer, "plain")
    assert open_population(store).config == {"x": nested(47)}


def of_site(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """Change what a model says of its first site, and the description of that array with it."""
    key = "models/plain/zarr.json"
    spec = json.loads(files[key])["attributes"]["dynamo"]["spec"]
    spec["sites"][0] |= changes
    return edited(files, key, spec=spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2**70]},
        {"shape": [2**40, 2**40]},
        {"shape": [1] * 100},
        {"shape": [2**62]},
        {"shape": "12"},
        {"every": 2**70},
        {"every": 0},
        {"every": True},
        {"every": 2, "axis": "sample"},
        {"reduction": "sum"},
        {"source_dtype": 3},
        {"dtype": "O"},
        {"dtype": "|V8"},
        {"dtype": {"kind": "f4"}},
        {"name": 3},
    ],
)
def test_impossible_sites(files: dict[str, bytes], changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptBlock):
        open_population(as_store(of_site(files, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 2**70},
        {"rows": 2**63},
        {"size": 2**70},
        {"kind": "array", "shape": [2**40, 2**40], "dtype": "float32", "rows": 4},
        {"kind": "array", "shape": [1] * 64, "dtype": "float32", "rows": 4},
        {"kind": "array", "shape": [2], "dtype": "float32"},
        {"shape": [3]},
        {"shape": None},
    ],
)
def test_impossible_inputs(files: dict[str, bytes], changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptBlock):
        open_population(as_store(edited(files, "inputs/zarr.json", **changes)))


def test_large_sizes_that_are_possible_ask_for_no_memory(files: dict[str, bytes]) -> None:
    changed = of_site(files, shape=[2**50], every=2**62)
    population = open_population(as_store(changed))
    with pytest.raises(StoreError):
        population.states("plain", "rnn.layer0")
    with pytest.raises(StoreError):
        population.states("plain", "rnn.layer0", samples=[])
    assert not verify_population(as_store(changed)).ok


NAMES = ["../../x", "..", "/etc/passwd", "CON", "nul.txt", "a/b\\c", "<script>alert(1)</script>"]
NAMES += ["\x00", "\n\x1b[31m", "\N{RIGHT-TO-LEFT OVERRIDE}txt", "x" * 5000, "%2e%2e", "~", " "]


def test_names_never_become_paths(tmp_path: Path, example_of: Callable[..., Any]) -> None:
    example = example_of(ids=tuple(NAMES))
    example.write(tmp_path / "deep" / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["inside"]
    for path in (tmp_path / "deep" / "inside").rglob("*"):
        assert path.name.encode().isascii()
        assert len(path.name) < 100
        assert not set(path.name) & set('<>:"/\\|?*\n\0 %')
    population = open_population(tmp_path / "deep" / "inside")
    assert population.ids == tuple(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(population.outputs(name), example.outputs[name])


def test_a_name_cannot_claim_another_key(files: dict[str, bytes]) -> None:
    for name in NAMES:
        with pytest.raises(CorruptBlock, match="belongs under"):
            open_population(as_store(edited(files, "models/plain/zarr.json", id=name)))


@pytest.mark.parametrize("name", ["\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT ONE}", "01", "1_0"])
def test_odd_numbers_of_blocks(store: Path, example: Any, name: str) -> None:
    shutil.copy(store / STATES / "commits/1.json", store / STATES / f"commits/{name}.json")
    (problem,) = verify_population(store).problems
    assert problem.kind == "unexpected"
    writer = PopulationWriter.resume(store, example.inputs, config=example.config)
    with pytest.raises(StoreError, match="is complete"):
        example.write_model(writer, "plain")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"])
def test_paths_that_cannot_be(path: str, example: Any) -> None:
    with pytest.raises(StoreError, match="Cannot look for a population"):
        open_population(path)
    with pytest.raises(StoreError, match="Cannot look for a population"):
        example.write(path)
