"""What systems and file systems take at a time, and how they are made to keep it."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynamo_plugin.errors import StoreError
from dynamo_plugin.store._local import LocalLocation


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


def place_on(disk: str, folder: Path) -> Path:
    """Return a new folder on a file system that keeps its files as `disk` says."""
    if disk == "temporary":
        return folder
    if not os.access(MEMORY, os.W_OK) or MEMORY.stat().st_dev == folder.stat().st_dev:
        pytest.skip(f"{MEMORY} is no file system of its own here")
    return Path(tempfile.mkdtemp(dir=MEMORY))


MEMORY = Path("/dev/shm")


@pytest.fixture(params=["temporary", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    place = place_on(request.param, tmp_path)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("disk", ["temporary", "memory"])
@settings(max_examples=50, deadline=None)
@given(parts=pieces)
def test_whole_pages_go_past_the_cache(
    tmp_path_factory: pytest.TempPathFactory, disk: str, parts: list[NDArray[np.uint8]]
) -> None:
    place = place_on(disk, tmp_path_factory.mktemp("direct"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._file_io._DIRECT_BYTES", 8 * PAGE)
        location = LocalLocation(place)
        location.set_parts("key", parts)
        found = location.get("key")
    shutil.rmtree(place)
    assert found is not None
    assert found.tobytes() == b"".join(part.tobytes() for part in parts)


class Picky:
    """Stands for `os` on a system that takes other portions, or whose disk refuses some.

    Parameters
    ----------
    portion
        Most bytes that are taken at a time.
    refuse_after
        How many direct writes are taken before others are refused.
    code
        The error of those that are refused, None for nothing written and no error.
    cached_code
        The error of all writes through the cache.
    """

    def __init__(
        self,
        portion: int | None = None,
        *,
        refuse_after: int | None = None,
        code: int | None = errno.EINVAL,
        cached_code: int | None = None,
    ) -> None:
        self.portion = portion
        self.refuse_after = refuse_after
        self.code = code
        self.cached_code = cached_code
        self.direct: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def writev(self, descriptor: int, given: list[memoryview]) -> int:
        import fcntl

        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        self.direct.append(direct)
        if not direct and self.cached_code is not None:
            raise OSError(self.cached_code, os.strerror(self.cached_code))
        if direct and self.refuse_after is not None and len(self.direct) > self.refuse_after:
            if self.code is None:
                return 0
            raise OSError(self.code, os.strerror(self.code))
        return os.writev(descriptor, [given[0][: self.portion]])


def goes_direct(folder: Path) -> bool:
    """Return whether files here can be written past the cache."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    finally:
        (folder / "probe").unlink()
    return True


@pytest.fixture
def direct_folder(folder: Path) -> Path:
    if not goes_direct(folder):
        pytest.skip("files are always written through a cache here")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"portion": 3 * PAGE},
        {"portion": 3 * PAGE + 100},
        *({"refuse_after": 0, "code": code} for code in (errno.EINVAL, errno.EOPNOTSUPP)),
        *({"refuse_after": 0, "code": code} for code in (errno.EFAULT, errno.ENOMEM, None)),
        {"portion": PAGE, "refuse_after": 2},
        {"portion": PAGE + 1, "refuse_after": 1, "code": errno.EIO},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "all",
)
def test_what_a_disk_does_not_take_goes_through_the_cache(
    options: dict[str, Any], direct_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = Picky(**options)
    monkeypatch.setattr("dynamo_plugin.store._file_io.os", system)
    parts = [in_pages(2**20, seed=1), in_pages(2**18, seed=2), in_pages(1000, seed=3)]
    location = LocalLocation(direct_folder)
    location.set_parts("key", parts)
    assert (direct_folder / "key").read_bytes() == b"".join(part.tobytes() for part in parts)
    assert system.direct[0]
    assert not system.direct[-1]  # of the tail, which is no whole page
    system.direct.clear()
    location.set("small", b"s" * 100)
    assert system.direct == [False]


@pytest.mark.parametrize("parts", [[in_pages(2**21)[1 : 2**20 + 1]], [b"head", in_pages(2**20)]])
def test_what_lies_across_pages_is_not_tried(
    parts: list[Any], direct_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = Picky()
    monkeypatch.setattr("dynamo_plugin.store._file_io.os", system)
    LocalLocation(direct_folder).set_parts("key", parts)
    assert not any(system.direct)
    assert (direct_folder / "key").read_bytes() == b"".join(map(bytes, parts))


@pytest.mark.parametrize("refuse_after", [0, 2])
def test_what_the_cache_does_not_take_either_is_an_error(
    refuse_after: int, direct_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = LocalLocation(direct_folder)
    location.set("key", b"before")
    system = Picky(PAGE, refuse_after=refuse_after, code=errno.ENOSPC, cached_code=errno.ENOSPC)
    monkeypatch.setattr("dynamo_plugin.store._file_io.os", system)
    with pytest.raises(StoreError, match=r"Cannot write key .*No space left"):
        location.set_parts("key", [in_pages(2**20)])
    assert system.direct == [*(True,) * (refuse_after + 1), False]
    assert [path.name for path in direct_folder.iterdir()] == ["key"]
    assert (direct_folder / "key").read_bytes() == b"before"


def test_a_file_system_that_takes_nothing_is_not_asked_forever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_plugin.store._file_io.os", Picky(0))
    with pytest.raises(StoreError, match="took none of the bytes"):
        LocalLocation(folder).set_parts("key", [in_pages(2**20), b"tail"])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("size", [2**20, 1000], ids=["past the cache", "through it"])
def test_an_interrupted_write_leaves_a_key_as_it_was(
    size: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Picky):
        def writev(self, descriptor: int, given: list[memoryview]) -> int:
            if len(self.direct) == 2:
                raise KeyboardInterrupt
            return super().writev(descriptor, given)

    location = LocalLocation(folder)
    location.set("key", b"before")
    with monkeypatch.context() as patch:
        patch.setattr("dynamo_plugin.store._file_io.os", Interrupted(size // 4))
        with pytest.raises(KeyboardInterrupt):
            location.set_parts("key", [in_pages(size)])
    assert [path.name for path in folder.iterdir()] == ["key"]
    assert (folder / "key").read_bytes() == b"before"
    location.set_parts("key", [in_pages(size)])
    assert (folder / "key").read_bytes() == in_pages(size).tobytes()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system always writes through a cache")
def test_a_file_system_that_cannot_go_past_its_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses the flag, as it would when a file is opened with it."""
    import fcntl

    real = fcntl.fcntl

    def refusing(descriptor: int, command: int, *arguments: int) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, command, *arguments)

    monkeypatch.setattr("dynamo_plugin.store._file_io.fcntl.fcntl", refusing)
    parts = [in_pages(2**20), in_pages(1001, seed=1)]
    LocalLocation(folder).set_parts("key", parts)
    assert (folder / "key").read_bytes() == b"".join(part.tobytes() for part in parts)


@pytest.mark.skipif(os.name != "posix", reason="this system flushes no folders")
def test_a_file_system_that_flushes_no_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unflushed(Picky):
        def fsync(self, descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(code, os.strerror(code))
            os.fsync(descriptor)

    monkeypatch.setattr("dynamo_plugin.store._file_io.os", Unflushed())
    location = LocalLocation(folder)
    code = errno.EINVAL
    location.set("a/key", b"x")
    assert location.create("a/other", b"y")
    assert (folder / "a/key").read_bytes() == b"x"
    code = errno.EIO  # it does, and failed to
    with pytest.raises(StoreError, match="Cannot write b/key"):
        location.set("b/key", b"x")
