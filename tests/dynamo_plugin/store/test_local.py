"""How a folder on a local disk is used: in which order it is told to keep what is written."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.errors import CorruptBlock, StoreError
from dynamo_plugin.store import ArrayBlocks
from dynamo_plugin.store._array_reader import ArrayReader
from dynamo_plugin.store._blocks import Identity
from dynamo_plugin.store._documents import ArrayLayout
from dynamo_plugin.store._local import LocalLocation


class Watched:
    """Stands for `os`, and notes what is done to which file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, str] = {}
        self.done: list[tuple[str, str]] = []

    def _name(self, path: str) -> str:
        name = os.path.relpath(path, self.root)
        return "partial" if name.endswith(".partial") else name

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "close", "fsync", "writev", "replace", "link", "mkdir", "unlink"):
            return real

        def call(*arguments: Any) -> Any:
            result = real(*arguments)
            if name == "open":
                self.files[result] = self._name(arguments[0])
            elif name in ("fsync", "writev"):
                self.done.append((name, self.files[arguments[0]]))
            elif name == "unlink":
                if not arguments[0].endswith(".partial"):
                    self.done.append((name, self._name(arguments[0])))
            elif name in ("replace", "link", "mkdir"):
                self.done.append((name, self._name(arguments[-1 if name != "mkdir" else 0])))
            return result

        return call


def test_a_block_is_on_the_disk_before_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no power failure leaves a record without its data, or either without its folder."""
    root = tmp_path / "new" / "store"
    layout = ArrayLayout("states/s", (4, 2), "float32", ("row", "unit"))
    blocks = ArrayBlocks(LocalLocation(root), layout, 4, Identity("i"), "site 's'")
    watched = Watched(root)
    for module in ("_local", "_file_io"):
        monkeypatch.setattr(f"dynamo_plugin.store.{module}.os", watched)
    blocks.commit(blocks.write(0, [np.zeros((4, 2), dtype=np.float32)]))
    written = [("writev", "partial"), ("fsync", "partial")]
    assert watched.done == [
        *(("mkdir", ".."), ("fsync", "../..")),
        *(("mkdir", "."), ("fsync", "..")),
        *(("mkdir", "states"), ("fsync", ".")),
        *(("mkdir", "states/s"), ("fsync", "states")),
        *written,
        *(("replace", "states/s/c.0.0"), ("fsync", "states/s")),
        *(("mkdir", "states/s/commits"), ("fsync", "states/s")),
        *written,
        *(("replace", "states/s/commits/0.json"), ("fsync", "states/s/commits")),
    ]
    watched.done.clear()
    blocks.commit(blocks.write(0, [np.ones((4, 2), dtype=np.float32)]))
    assert watched.done == [
        *written,
        *(("replace", "states/s/c.0.0"), ("fsync", "states/s")),
        *written,
        *(("replace", "states/s/commits/0.json"), ("fsync", "states/s/commits")),
    ]


def test_what_is_taken_back_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no power failure brings a record back beside data that were written since."""
    location = LocalLocation(tmp_path)
    location.set("a/commits/0.json", b"x")
    watched = Watched(tmp_path)
    for module in ("_local", "_file_io"):
        monkeypatch.setattr(f"dynamo_plugin.store.{module}.os", watched)
    location.delete_key("a/commits/0.json")
    assert watched.done == [("unlink", "a/commits/0.json"), ("fsync", "a/commits")]
    watched.done.clear()
    location.delete_key("a/commits/0.json")
    location.delete_key("b/c")
    assert watched.done == []


def test_folders_that_somebody_else_made_are_flushed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    location = LocalLocation(tmp_path)
    watched = Watched(tmp_path)
    for module in ("_local", "_file_io"):
        monkeypatch.setattr(f"dynamo_plugin.store.{module}.os", watched)
    location.set("a/b/key", b"x")
    assert watched.done[:2] == [("fsync", "."), ("fsync", "a")]
    assert location.create("a/b/other", b"x")
    assert watched.done[-4:] == [
        *(("writev", "partial"), ("fsync", "partial")),
        *(("link", "a/b/other"), ("fsync", "a/b")),
    ]


def test_a_key_is_as_it_was_or_as_it_was_set(tmp_path: Path) -> None:
    location = LocalLocation(tmp_path)
    location.set("folder/key", b"before")
    assert not location.create("folder/key", b"other")
    assert (tmp_path / "folder/key").read_bytes() == b"before"
    location.set_parts("folder/key", [b"af", b"", np.frombuffer(b"ter", dtype=np.uint8)])
    assert (tmp_path / "folder/key").read_bytes() == b"after"
    assert os.listdir(tmp_path / "folder") == ["key"]  # noqa: PTH208
    location.set("empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    location = LocalLocation(tmp_path / "store")
    location.set("a/key", b"1")
    location.delete("a")
    location.set("a/key", b"2")
    other = LocalLocation(tmp_path / "store")
    other.delete("a")
    location.set("a/key", b"3")
    assert (tmp_path / "store/a/key").read_bytes() == b"3"
    location.delete_key("a/key")
    location.prune("a")
    assert location.children("") == []
    location.delete("a")  # nothing happens
    location.delete_key("a/key")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    location = LocalLocation(tmp_path)
    with pytest.raises(StoreError, match="Cannot write a/b/key"):
        location.set("a/b/key", b"x")
    assert location.get("a/b") is None
    assert location.children("a") == []
    assert list(location.sizes(["a", "a/b"])) == [1, None]


def test_it_goes_to_other_processes_as_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = LocalLocation(Path("store"))
    assert str(location) == "store"
    data = pickle.dumps(location)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for each in (location, pickle.loads(data)):
        each.set("key", b"x")
        assert (tmp_path / "store/key").read_bytes() == b"x"
        each.delete_key("key")
    assert str(pickle.loads(data)) == str(tmp_path / "store")


def array_of_blocks(root: Path, count: int) -> ArrayReader:
    """Return a reader of an array of as many blocks, of one row each: 0, 1, 2, ..."""
    location = LocalLocation(root)
    layout = ArrayLayout("a", (count, 1), "float32", ("row", "unit"))
    blocks = ArrayBlocks(location, layout, 1, Identity("i"), "array 'a'")
    blocks.describe()
    for block in range(count):
        blocks.commit(blocks.write(block, [np.full((1, 1), block, dtype=np.float32)]))
    return ArrayReader(location, layout, "array 'a'", Identity("i"))


@pytest.mark.parametrize("error", [OSError(errno.ENODEV, "x"), ValueError("it shrank")])
def test_files_that_cannot_be_mapped_are_loaded(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = array_of_blocks(tmp_path, 3)

    def refusing(*arguments: Any, **options: Any) -> mmap.mmap:
        raise error

    monkeypatch.setattr("dynamo_plugin.store._local.mmap.mmap", refusing)
    assert LocalLocation(tmp_path).map("a/c.0.0", 4) is None
    assert reader.read().ravel().tolist() == [0, 1, 2]
    LocalLocation(tmp_path).set("a/c.1.0", b"1234")
    with pytest.raises(CorruptBlock, match="Block 1 of array 'a'"):
        reader.read()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing says what is open here")
def test_blocks_do_not_use_up_the_files_that_may_be_open(tmp_path: Path) -> None:
    """Systems begin with 256 or 1,024 per process, and a population has thousands of blocks."""
    import resource

    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = opened()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 100, hard))
    try:
        reader = array_of_blocks(tmp_path, 200)
        assert reader.read().ravel().tolist() == list(range(200))
        assert opened() < before + 90
        assert reader.read_ranges(np.array([3, 190]), np.array([2, 1])).ravel().tolist() == [
            3,
            4,
            190,
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
