"""In which order a local disk is told to keep what is written."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynamo_plugin.errors import StoreError
from dynamo_plugin.store import ArrayBlocks
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
        if name not in ("open", "close", "fsync", "writev", "replace", "link", "mkdir"):
            return real

        def call(*arguments: Any) -> Any:
            result = real(*arguments)
            if name == "open":
                self.files[result] = self._name(arguments[0])
            elif name in ("fsync", "writev"):
                self.done.append((name, self.files[arguments[0]]))
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
    monkeypatch.setattr("dynamo_plugin.store._local.os", watched)
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


def test_folders_that_somebody_else_made_are_flushed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    location = LocalLocation(tmp_path)
    watched = Watched(tmp_path)
    monkeypatch.setattr("dynamo_plugin.store._local.os", watched)
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


def in_pages(size: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return bytes that begin at a page of the memory."""
    room = np.frombuffer(mmap.mmap(-1, size + 1), dtype=np.uint8)[:size]
    room[:] = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return room


PAGE = mmap.PAGESIZE
pieces = st.lists(
    st.one_of(
        st.integers(1, 40).map(lambda pages: in_pages(pages * PAGE, seed=pages)),
        st.integers(1, 3 * PAGE).map(lambda size: in_pages(size, seed=size)),
        st.integers(1, 3 * PAGE).map(lambda size: in_pages(size + 1, seed=size)[1:]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(pieces)
def test_whole_pages_go_past_the_cache(
    tmp_path_factory: pytest.TempPathFactory, parts: list[NDArray[np.uint8]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._local._DIRECT_BYTES", 8 * PAGE)
        location = LocalLocation(tmp_path_factory.mktemp("direct"))
        location.set_parts("key", parts)
        found = location.get("key")
        assert found is not None
        assert found.tobytes() == b"".join(part.tobytes() for part in parts)


class Picky:
    """Stands for `os` on a system that takes other portions, or whose disk wants larger pages."""

    def __init__(self, portion: int | None = None, *, refuse_after: int | None = None) -> None:
        self.portion = portion
        self.refuse_after = refuse_after
        self.direct: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def writev(self, descriptor: int, given: list[memoryview]) -> int:
        import fcntl

        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        self.direct.append(direct)
        if direct and self.refuse_after is not None and len(self.direct) > self.refuse_after:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.writev(descriptor, [given[0][: self.portion]])


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system always writes through a cache")
@pytest.mark.parametrize(
    "system",
    [
        Picky(),
        Picky(3 * PAGE),
        Picky(3 * PAGE + 100),
        Picky(refuse_after=0),
        Picky(PAGE, refuse_after=2),
    ],
    ids=["takes all", "takes pages", "takes less", "takes none", "stops taking"],
)
def test_what_a_disk_does_not_take_goes_through_the_cache(
    system: Picky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_plugin.store._local.os", system)
    parts = [in_pages(2**20, seed=1), in_pages(2**18, seed=2), in_pages(1000, seed=3)]
    location = LocalLocation(tmp_path)
    location.set_parts("key", parts)
    assert (tmp_path / "key").read_bytes() == b"".join(part.tobytes() for part in parts)
    assert system.direct[0]
    assert not system.direct[-1]  # of the tail, which is no whole page
    system.direct.clear()
    location.set("small", b"s" * 100)
    assert system.direct == [False]


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system always writes through a cache")
def test_a_file_system_that_cannot_go_past_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real = fcntl.fcntl

    def refusing(descriptor: int, command: int, *arguments: int) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, command, *arguments)

    monkeypatch.setattr("dynamo_plugin.store._local.fcntl.fcntl", refusing)
    data = in_pages(2**20)
    LocalLocation(tmp_path).set_parts("key", [data])
    assert (tmp_path / "key").read_bytes() == data.tobytes()
