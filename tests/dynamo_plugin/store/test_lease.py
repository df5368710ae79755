"""Who may write: leases that are taken, renewed, lost, ended and expired."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.errors import InvalidInput, StoreError, StoreLocked
from dynamo_plugin.store import PopulationWriter, Share
from dynamo_plugin.store import _lease as leases
from dynamo_plugin.store import _processes as processes
from dynamo_plugin.store._lease import Lease
from dynamo_plugin.store._location import Location, locate


@pytest.fixture(params=["disk", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return locate(tmp_path if request.param == "disk" else {}, create=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_SETTLING", 0.01)


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have leases renewed every 20 ms."""
    monkeypatch.setattr(leases, "TIME_TO_LIVE", 0.12)


def stored(location: Location, name: str = "0-of-1") -> dict[str, Any]:
    data = location.get(f"leases/{name}.json")
    assert data is not None
    content: dict[str, Any] = json.loads(data.tobytes())
    return content


def put(location: Location, *, name: str = "0-of-1", **changes: Any) -> None:
    """Store a lease such as another writer takes."""
    content: dict[str, Any] = {
        "share": [0, 1],
        "nonce": "n",
        "renewed": time.time(),
        "host": "elsewhere/boot/namespace",
        "pid": 7,
        "started": "1",
    }
    location.set(f"leases/{name}.json", json.dumps(content | changes).encode())


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lease_is_there_while_it_is_held(location: Location) -> None:
    lease = Lease(location, Share())
    content = stored(location)
    assert (content["share"], content["pid"]) == ([0, 1], os.getpid())
    assert abs(content["renewed"] - time.time()) < 60
    lease.check()
    with pytest.raises(
        StoreLocked, match=rf"process {content['pid']} on .*last heard of at \d{{4}}-"
    ):
        Lease(location, Share())
    lease.release()
    assert location.children("") == []
    with pytest.raises(StoreLocked, match=r"lease .* was lost"):
        lease.check()
    lease.release()  # nothing happens
    Lease(location, Share()).release()


def test_a_lease_that_is_let_go_ends(location: Location) -> None:
    lease = Lease(location, Share())
    del lease
    gc.collect()
    eventually(lambda: location.children("") == [])


shares = st.integers(1, 5).flatmap(lambda n: st.builds(Share, st.integers(0, n - 1), st.just(n)))


@given(first=shares, second=shares)
def test_shares_that_overlap_exclude_each_other(first: Share, second: Share) -> None:
    def models(share: Share) -> set[int]:
        return set(range(60)[share.index :: share.count])

    location = locate({}, create=True)
    lease = Lease(location, first)
    apart = first.count == second.count and first.index != second.index
    assert not apart or not models(first) & models(second)
    try:
        if apart:
            Lease(location, second).release()
        else:
            with pytest.raises(StoreLocked):
                Lease(location, second)
        assert len(location.children("leases")) == 1
    finally:
        lease.release()


@pytest.mark.parametrize("share", [(0, 0), (-1, 2), (2, 2), (0, -1)])
def test_what_is_no_share(share: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match=f"got {share[0]} of {share[1]}"):
        Share(*share)


def test_the_right_to_begin_excludes_only_itself(location: Location) -> None:
    part = Lease(location, Share(0, 2))
    begin = Lease(location, None)
    with pytest.raises(StoreLocked):
        Lease(location, None)
    begin.release()
    part.check()
    Lease(location, None).release()
    part.release()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_on_this_machine(location: Location, sleeper: subprocess.Popen[bytes]) -> None:
    """It holds its lease as long as it runs, however long ago that was renewed."""
    mine: dict[str, Any] = {
        "host": processes.host(),
        "pid": sleeper.pid,
        "started": processes.started(sleeper.pid),
    }
    put(location, renewed=1.0, **mine)
    with pytest.raises(StoreLocked, match=f"process {sleeper.pid}"):
        Lease(location, Share())
    put(location, **mine | {"started": "12345"})  # the number was given to another process
    Lease(location, Share()).release()
    put(location, **mine)
    sleeper.kill()
    sleeper.wait()
    Lease(location, Share()).release()


def test_a_restarted_machine(location: Location) -> None:
    """The same number and the same time since boot, but another boot."""
    name, boot, namespace = processes.host().split("/", 2)
    before = f"{name}/{'0' * len(boot)}/{namespace}"
    put(location, host=before, pid=1, started=processes.started(1), renewed=time.time() - 300)
    Lease(location, Share()).release()


def test_a_process_on_another_machine(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    put(location)
    with pytest.raises(StoreLocked, match=r"process 7 on elsewhere, .*ends 120 seconds after"):
        Lease(location, Share())
    location.delete_key("leases/0-of-1.json")
    put(location, share=[1, 3], name="1-of-3")
    with pytest.raises(StoreLocked, match="share 1 of 3"):
        Lease(location, Share(0, 2))
    for seconds, locked in ((110, True), (130, False)):
        now = time.time()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda later=now + seconds: later)
            if locked:
                with pytest.raises(StoreLocked):
                    Lease(location, Share())
            else:
                Lease(location, Share()).release()


@pytest.mark.usefixtures("short_lived")
def test_a_lease_is_renewed(location: Location) -> None:
    lease = Lease(location, Share())
    before = stored(location)["renewed"]
    eventually(lambda: stored(location)["renewed"] > before + 0.05)
    lease.check()
    lease.release()


@pytest.mark.usefixtures("short_lived")
def test_a_writer_whose_lease_was_taken_over_stops(location: Location, example: Any) -> None:
    memory: dict[str, Any] = {}
    writer = PopulationWriter.create(memory, example.inputs, config=example.config)
    model = writer.begin(
        "plain", example.specs["plain"], metadata={}, model_hash="hash of plain", index=0
    )
    place = locate(memory, create=True)

    def lost() -> bool:
        put(place)  # again, should it have been about to be renewed
        try:
            model.append_outputs(example.outputs["plain"][:0])
            writer._lease.check()
        except StoreLocked:
            return True
        return False

    eventually(lost)
    with pytest.raises(StoreLocked, match=r"lease .* was lost.*resume=True"):
        model.append_outputs(example.outputs["plain"])
    writer.close()
    assert stored(place)["nonce"] == "n"  # that of the other is left alone


def test_a_writer_that_slept_looks_before_it_writes(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may not have had its turn yet when the machine wakes up."""
    lease = Lease(location, Share())
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 200)
        lease.check()
        assert stored(location)["renewed"] == now + 200
        put(location)
        lease.check()  # just renewed
        patch.setattr(time, "time", lambda: now + 400)
        with pytest.raises(StoreLocked, match="was lost"):
            lease.check()
    lease.release()
    assert stored(location)["nonce"] == "n"


@pytest.mark.usefixtures("short_lived")
def test_storage_that_comes_back_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    location = locate({}, create=True)
    lease = Lease(location, Share())
    kind = type(location)
    real, broken = kind.set, threading.Event()

    def sometimes(self: Any, key: str, data: Any) -> None:
        if not broken.is_set():
            broken.set()
            raise StoreError("away")
        real(self, key, data)

    monkeypatch.setattr(kind, "set", sometimes)
    before = stored(location)["renewed"]
    eventually(lambda: stored(location)["renewed"] > before)
    lease.check()
    assert broken.is_set()

    def never(self: Any, key: str, data: Any) -> None:
        raise StoreError("away")

    monkeypatch.setattr(kind, "set", never)
    eventually(lambda: not lease.holds)
    with pytest.raises(StoreLocked):
        lease.check()
    monkeypatch.setattr(kind, "set", real)
    Lease(location, Share()).release()  # a lost lease of this process does not count


@pytest.mark.parametrize(
    "change",
    [
        {"share": "ab"},
        {"share": []},
        {"share": [3, 2]},
        {"share": [0, "x"]},
        {"nonce": 1},
        {"renewed": 1e300},
        {"renewed": "now"},
        {"renewed": None},
        {"renewed": -1},
        {"host": None},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**70},
        {"pid": "7"},
        {"started": 3},
    ],
)
def test_what_is_no_lease_does_not_count(location: Location, change: dict[str, Any]) -> None:
    put(location, **change)
    put(location, name="0-of-2", **change)
    lease = Lease(location, Share())
    assert location.children("leases") == ["0-of-1.json"]
    lease.release()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 10000, b"x" * 2**17])
def test_nor_does_a_damaged_one(location: Location, data: bytes) -> None:
    location.set("leases/0-of-1.json", data)
    Lease(location, Share()).release()


def test_a_rival_that_takes_the_same_ended_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see it; the slower one deletes the lease of the faster one, who notices."""
    location = locate({}, create=True)
    put(location, renewed=1.0)
    real = time.sleep

    def rival(seconds: float) -> None:
        monkeypatch.setattr(time, "sleep", real)
        put(location, nonce="rival")

    monkeypatch.setattr(time, "sleep", rival)
    with pytest.raises(StoreLocked, match="compete"):
        Lease(location, Share())
    assert stored(location)["nonce"] == "rival"


def test_a_lease_that_cannot_be_taken_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    location = locate({}, create=True)

    def children(self: Any, folder: str) -> list[str]:
        raise StoreError("cannot list")

    with monkeypatch.context() as patch:
        patch.setattr(type(location), "children", children)
        with pytest.raises(StoreError, match="cannot list"):
            Lease(location, Share())
    assert location.children("") == []


def test_a_lease_is_held_from_the_moment_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the thread that renews it runs, when another thread of this process looks."""
    place = locate(tmp_path, create=True)
    tried: list[StoreLocked] = []
    start = threading.Thread.start

    def start_later(thread: threading.Thread) -> None:
        if not tried:
            with pytest.raises(StoreLocked) as caught:
                Lease(place, None)
            tried.append(caught.value)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    Lease(place, None).release()
    assert len(tried) == 1
