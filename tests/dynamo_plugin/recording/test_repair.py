"""`repair=True` mends whatever was damaged, by recording just that again, to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput, StoreError, StoreExists, UnsupportedFormat
from dynamo_plugin.recording import capture
from dynamo_plugin.store import Population, verify_population
from dynamo_plugin.store._documents import canonical, crc32c

Content = Callable[[Path], dict[str, bytes]]

LENGTHS = [3, 1, 6, 6, 2, 4, 1, 5, 6, 3, 2, 2]
MODEL = "models/a"
STATES = f"{MODEL}/states/gru.layer0"
OUTPUTS = f"{MODEL}/outputs/output2"


class Net(nn.Module):
    calls = 0

    def __init__(self, units: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(units)
            self.gru = nn.GRU(2, units, num_layers=2, batch_first=True)
            self.readout = nn.Linear(units, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        Net.calls += 1
        logits: Tensor = self.readout(self.gru(x)[0][torch.arange(len(x)), lengths - 1])
        return logits


def run(store: Path, **options: Any) -> Population:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(length, 2, generator=generator) for length in LENGTHS]
    models = {"a": partial(Net, 3), "b": partial(Net, 4)}
    Net.calls = 0
    return capture(models, inputs, store, progress=False, batch_size=2, **options)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)
    monkeypatch.setattr("dynamo_plugin.recording.batching.WINDOW_BYTES", 400)


@pytest.fixture
def described(whole: Path, tmp_path: Path) -> int:
    """Return how often models are called where nothing is recorded, to describe them."""
    shutil.copytree(whole, tmp_path / "untouched")
    run(tmp_path / "untouched", resume=True)
    return Net.calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)
        patch.setattr("dynamo_plugin.recording.batching.WINDOW_BYTES", 400)
        store = tmp_path_factory.mktemp("whole") / "p"
        run(store)
    return store


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def copy_as(name: str) -> Callable[[Path], None]:
    def copy(path: Path) -> None:
        shutil.copy(path, path.parent / name)

    return copy


def forge(path: Path) -> None:
    """Move what follows the root's first mention of us, as no flipped bit does."""
    path.write_bytes(path.read_bytes().replace(b'"dynamo"', b'"dynamq"'))


MODEL_FILES = {f"{MODEL}/zarr.json"}
BLOCK = {f"{STATES}/c.1.0", f"{STATES}/commits/1.json"}
OUTPUT_BLOCK = {f"{OUTPUTS}/c.0.0", f"{OUTPUTS}/commits/0.json"}

DAMAGES: list[tuple[str, Callable[[Path], None], set[str]]] = [
    (f"{STATES}/c.1.0", flip, BLOCK | MODEL_FILES),
    (f"{STATES}/c.1.0", cut, BLOCK | MODEL_FILES),
    (f"{STATES}/c.1.0", delete, BLOCK | MODEL_FILES),
    (f"{STATES}/c.1.0", replace_by_link, BLOCK | MODEL_FILES),
    (f"{STATES}/commits/1.json", flip, BLOCK | MODEL_FILES),
    (f"{STATES}/commits/1.json", cut, BLOCK | MODEL_FILES),
    (f"{STATES}/commits/1.json", delete, BLOCK | MODEL_FILES),
    (f"{OUTPUTS}/c.0.0", flip, OUTPUT_BLOCK | MODEL_FILES),
    (f"{STATES}/zarr.json", delete, {f"{STATES}/zarr.json"}),
    (f"{STATES}/zarr.json", flip, {f"{STATES}/zarr.json"}),
    (f"{MODEL}/states/zarr.json", delete, {f"{MODEL}/states/zarr.json"}),
    (f"{MODEL}/zarr.json", flip, MODEL_FILES),
    (f"{MODEL}/zarr.json", delete, MODEL_FILES),
    ("models/zarr.json", delete, {"models/zarr.json"}),
    ("zarr.json", flip, {"zarr.json"}),
    ("zarr.json", forge, {"zarr.json"}),
    ("zarr.json", delete, {"zarr.json"}),
    (f"{STATES}/c.1.0", copy_as("c.99.0"), set()),
    (f"{STATES}/c.1.0", copy_as("c.99"), set()),
    (f"{STATES}/c.1.0", copy_as("notes.txt"), set()),
    (f"{STATES}/commits/1.json", copy_as("99.json"), set()),
    (f"{STATES}/commits/1.json", copy_as("\N{SUPERSCRIPT TWO}.json"), set()),
    (f"{STATES}/commits/1.json", copy_as("readme"), set()),
    ("inputs/offsets/c.0", copy_as("c.99"), set()),
]


def stamps(store: Path) -> dict[str, tuple[int, int] | None]:
    """Return what changes when a file is written again, as files are replaced and never changed."""
    found = {path.relative_to(store).as_posix(): path for path in store.rglob("*")}
    return {
        name: (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None
        for name, path in found.items()
    }


@pytest.mark.parametrize(
    ("key", "damage", "rewritten"),
    DAMAGES,
    ids=[f"{number}-{damage.__name__}" for number, (_, damage, _) in enumerate(DAMAGES)],
)
def test_just_what_is_damaged_is_recorded_again(
    key: str,
    damage: Callable[[Path], None],
    rewritten: set[str],
    whole: Path,
    described: int,
    content: Content,
    tmp_path: Path,
) -> None:
    store = tmp_path / "p"
    shutil.copytree(whole, store)
    before = stamps(store)
    damage(store / key)
    assert key == "models/zarr.json" or not verified(store)
    run(store, repair=True)
    assert verified(store)
    assert content(store) == content(whole)
    after = stamps(store)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == rewritten
    assert (Net.calls > described) == any("/commits/" in name for name in rewritten)


def verified(store: Path) -> bool:
    try:
        return verify_population(store).ok
    except StoreError:
        return False


def test_only_windows_that_hold_damaged_blocks_are_run(
    whole: Path, described: int, tmp_path: Path
) -> None:
    run(tmp_path / "fresh")
    everything = Net.calls - described
    shutil.copytree(whole, tmp_path / "p")
    flip(tmp_path / "p" / STATES / "c.1.0")
    run(tmp_path / "p", repair=True)
    assert 0 < Net.calls - described < everything / 3


@pytest.mark.parametrize(
    "key", ["inputs/values/c.0.0", "inputs/zarr.json", "inputs/sample_ids/commits/0.json"]
)
def test_damaged_inputs_are_written_again(
    key: str, whole: Path, described: int, content: Content, tmp_path: Path
) -> None:
    store = tmp_path / "p"
    shutil.copytree(whole, store)
    flip(store / key)
    run(store, repair=True)
    assert Net.calls == described
    assert content(store) == content(whole)
    assert verified(store)


def test_everything_at_once(whole: Path, content: Content, tmp_path: Path) -> None:
    store = tmp_path / "p"
    shutil.copytree(whole, store)
    for path in sorted(store.rglob("*")):
        if path.is_file():
            flip(path)
    with pytest.raises(StoreError):
        run(store, repair=True)  # nothing shows any more whose population it is
    shutil.copy(whole / "inputs/zarr.json", store / "inputs/zarr.json")
    run(store, repair=True)
    assert content(store) == content(whole)
    assert verified(store)


def test_leftovers_are_cleared_away(whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "p"
    shutil.copytree(whole, store)
    for folder in (STATES, f"{STATES}/commits"):
        (store / folder / f"c.1.0.{'0' * 32}.partial").write_bytes(b"cut sho")
    assert verified(store)
    run(store, repair=True)
    assert not list(store.rglob("*.partial"))


def test_resume_mends_what_it_can_see_without_reading_the_data(
    whole: Path, content: Content, tmp_path: Path
) -> None:
    store = tmp_path / "p"
    shutil.copytree(whole, store)
    delete(store / STATES / "c.1.0")
    flip(store / STATES / "commits/2.json")
    flip(store / OUTPUTS / "c.0.0")
    run(store, resume=True)
    assert content(store).keys() == content(whole).keys()
    (problem,) = verify_population(store).problems
    assert (problem.array, problem.block) == (OUTPUTS, 0)


def test_what_is_not_this_population_is_not_repaired(whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "p"
    shutil.copytree(whole, store)
    document = json.loads((store / "zarr.json").read_bytes())
    dynamo = document["attributes"]["dynamo"]
    del dynamo["checksum"]
    dynamo["version"] = 3
    dynamo["checksum"] = crc32c(canonical(dynamo))
    (store / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedFormat, match="version 3"):
        run(store, repair=True)
    assert json.loads((store / "zarr.json").read_bytes()) == document
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(UnsupportedFormat, match="no population"):
        run(tmp_path / "mine", repair=True)
    (tmp_path / "mine" / "zarr.json").rename(tmp_path / "mine" / "models")
    with pytest.raises(StoreExists, match="not a population"):
        run(tmp_path / "mine", repair=True)
    assert os.listdir(tmp_path / "mine") == ["models"]  # noqa: PTH208
    shutil.copy(whole / "zarr.json", store / "zarr.json")
    with pytest.raises(InvalidInput, match="batch_size"):
        capture({"a": nn.GRU(2, 3)}, torch.ones(1, 1, 2), store, repair=True, progress=False)


@pytest.mark.slow
def test_repair_in_processes(captures: Any, content: Content, tmp_path: Path) -> None:
    """A worker replaces the data of a block whose record is whole; the coordinator commits it."""
    store = tmp_path / "p"
    assert not captures.run(store)
    before = content(store)
    for path in sorted(store.glob("models/*/*/*/c.*"))[::7]:
        flip(path)
    delete(next(store.glob("models/*/*/*/c.3.0")))
    assert not verified(store)
    assert not captures.run(store, repair=True, workers=2)
    assert verified(store)
    assert content(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_projections_are_fitted_again(
    captures: Any, content: Content, tmp_path: Path, workers: int
) -> None:
    """With the states that they made; the result is whole, if not always the same to the bit."""
    store = tmp_path / "p"
    options = {"reduce": {"gru.layer0": {"project": 2, "projection": "pca"}}}
    assert not captures.run(store, **options)
    before = content(store)
    flip(next(store.glob("models/*/reductions/gru.layer0/components/c.0.0")))
    assert not verified(store)
    assert not captures.run(store, repair=True, workers=workers, **options)
    assert verified(store)
    after = content(store)
    assert after.keys() == before.keys()
    changed = {key for key in after if after[key] != before[key]}
    assert all("gru.layer0" in key for key in changed)
