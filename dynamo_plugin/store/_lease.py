"""A lease on the writing of a population, so that two writers never meet."""

from __future__ import annotations

import atexit
import os
import socket
import threading
import time
import uuid
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo_plugin.errors import CorruptBlock, InvalidInput, StoreError, StoreLocked
from dynamo_plugin.store._documents import canonical, parse_json
from dynamo_plugin.store._location import Location

__all__ = ["FOLDER", "Lease", "Share"]

FOLDER = "leases"
"""Where the leases of a population lie while it is written."""

TIME_TO_LIVE = 120.0
"""Seconds without renewal after which the lease of a writer on another machine has ended."""


_PATIENCE = 10.0  # seconds for the storage to take a lease back
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Share:
    """Which models of a population one writer records: every `count`-th, from the `index`-th on."""

    index: int = 0
    """Which share, from 0."""
    count: int = 1
    """How many shares there are."""

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise InvalidInput(
                f"Expected a share of the models from 0 to count - 1, got {self.index} of "
                f"{self.count}."
            )

    def overlaps(self, other: Share) -> bool:
        """Return whether some model may belong to both.

        >>> Share(0, 2).overlaps(Share(1, 2)), Share(0, 2).overlaps(Share(0, 1))
        (False, True)
        """
        return self.count != other.count or self.index == other.index


class Lease:
    """The right to write a share of a population, renewed while the writer lives.

    It ends when it is released, when its process ends (seen at once on the same machine), or when
    it was not renewed for two minutes (on others, whose clocks must agree to within that).

    Parameters
    ----------
    location
        Of the population.
    share
        Which models will be written; None for what all of them share, while it is begun.

    Raises
    ------
    StoreLocked
        Another writer holds a lease on some of it; the message says who, and since when.
    StoreError
        The lease cannot be written.
    """

    def __init__(self, location: Location, share: Share | None) -> None:
        self.share = share
        self._location = location
        name = "begin" if share is None else f"{share.index}-of-{share.count}"
        self._key = f"{FOLDER}/{name}.json"
        self._nonce = uuid.uuid4().hex
        with _LOCK:
            self._acquire()
        self._stop = threading.Event()
        self._lost = threading.Event()
        arguments = (location, self._key, share, self._nonce, self._stop, self._lost)
        self._thread = threading.Thread(
            target=_keep, args=arguments, name="dynamo-lease", daemon=True
        )
        self._thread.start()
        _LIVE[self._nonce] = self
        # without any input or output: it may run inside the storage's own event loop
        self._finalizer = weakref.finalize(self, self._stop.set)
        self._finalizer.atexit = False

    def _acquire(self) -> None:
        for _ in range(5):
            if self._location.create(self._key, _content(self.share, self._nonce)):
                break
            held = _read(self._location, self._key)
            if held is not None and _is_held(held):
                raise _locked(self._location, held)
            self._location.delete_key(self._key)
        else:
            raise StoreLocked(f"Several writers compete for {self._location}. Try again.")
        for name in self._location.children(FOLDER):
            key = f"{FOLDER}/{name}"
            if key == self._key or not name.endswith(".json"):
                continue
            held = _read(self._location, key)
            if held is None or not _is_held(held):
                self._location.delete_key(key)
            elif (other := _share(held)) and self.share and self.share.overlaps(other):
                self._location.delete_key(self._key)
                raise _locked(self._location, held)

    def check(self) -> None:
        """Raise `StoreLocked` if another writer took the lease over."""
        if self._lost.is_set() or self._stop.is_set():
            raise StoreLocked(
                f"The lease on {self._location} was lost: this process could not renew it in "
                "time, and another may write there now. Nothing more is written; go on with "
                "resume=True (--resume)."
            )

    def release(self) -> None:
        """End the lease; nothing happens if it has ended."""
        self._finalizer()
        self._thread.join(_PATIENCE)


_LIVE: weakref.WeakValueDictionary[str, Lease] = weakref.WeakValueDictionary()
"""The leases of this process, by nonce."""


def _content(share: Share | None, nonce: str) -> bytes:
    return canonical(
        {
            "share": None if share is None else [share.index, share.count],
            "nonce": nonce,
            "renewed": time.time(),
            "host": _host(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
    )


def _read(location: Location, key: str) -> dict[str, Any] | None:
    """Return a lease, None if it is gone or unreadable: leases are written in one piece."""
    data = location.get(key, limit=2**16)
    if data is None:
        return None
    try:
        found = parse_json(data, key)
        _share(found)
    except (CorruptBlock, InvalidInput, KeyError, TypeError):
        return None
    return found


def _share(held: dict[str, Any]) -> Share | None:
    share = held["share"]
    return None if share is None else Share(int(share[0]), int(share[1]))


def _is_held(held: dict[str, Any]) -> bool:
    if held.get("host") == _host():
        pid = held.get("pid")
        if pid == os.getpid() and held.get("started") == _started(os.getpid()):
            return held.get("nonce") in _LIVE
        return isinstance(pid, int) and _started(pid) == held.get("started") and _runs(pid)
    renewed = held.get("renewed")
    return isinstance(renewed, int | float) and time.time() - renewed < TIME_TO_LIVE


def _locked(location: Location, held: dict[str, Any]) -> StoreLocked:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(held.get("renewed", 0))))
    share = _share(held)
    part = f", share {share.index} of {share.count}" if share and share.count > 1 else ""
    return StoreLocked(
        f"Another writer is at work on {location}{part}: process {held.get('pid')} on "
        f"{str(held.get('host')).partition('/')[0]}, last heard of at {since}. Wait for it. If it "
        f"was stopped on another machine, its lease ends {TIME_TO_LIVE:.0f} seconds after that."
    )


def _host() -> str:
    """Return what tells this running machine (or container) from others and from a reboot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}/{boot.read_text().strip()}/{namespace.readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():012x}"


def _started(pid: int) -> str | None:
    """Return when a process began, so that a number that is used again is not mistaken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and belongs to somebody else
        return True
    return True


def _keep(
    location: Location,
    key: str,
    share: Share | None,
    nonce: str,
    stop: threading.Event,
    lost: threading.Event,
) -> None:
    """Renew a lease until it is to end, and end it."""
    renewed = time.monotonic()
    while not stop.wait(TIME_TO_LIVE / 6):
        try:
            held = _read(location, key)
            if held is None or held.get("nonce") != nonce:
                lost.set()
                return
            location.set(key, _content(share, nonce))
            renewed = time.monotonic()
        except StoreError:  # storage may come back before the lease has ended
            if time.monotonic() - renewed > TIME_TO_LIVE / 2:
                lost.set()
                return
    try:
        with _LOCK:  # nobody in this process takes it over between the two steps
            held = _read(location, key)
            if held is not None and held.get("nonce") == nonce:
                location.delete_key(key)
                location.prune(FOLDER)
    except StoreError:
        pass  # it ends by itself


def _release_all() -> None:
    for lease in list(_LIVE.values()):
        lease.release()


atexit.register(_release_all)
