"""What systems and file systems take at a time, and how they are made to keep it."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

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


@settings(max_examples=50, deadline=None)
@given(pieces)
def test_whole_pages_go_past_the_cache(
    tmp_path_factory: pytest.TempPathFactory, parts: list[NDArray[np.uint8]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._file_io._DIRECT_BYTES", 8 * PAGE)
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
    monkeypatch.setattr("dynamo_plugin.store._file_io.os", system)
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

    monkeypatch.setattr("dynamo_plugin.store._file_io.fcntl.fcntl", refusing)
    data = in_pages(2**20)
    LocalLocation(tmp_path).set_parts("key", [data])
    assert (tmp_path / "key").read_bytes() == data.tobytes()
