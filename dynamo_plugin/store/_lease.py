"""A lease on the writing of a population, so that two writers never meet."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import uuid
import weakref
from dataclasses import dataclass
from datetime import datetime

from dynamo_plugin.errors import CorruptBlock, InvalidInput, StoreError, StoreLocked
from dynamo_plugin.store import _processes
from dynamo_plugin.store._documents import canonical, parse_json
from dynamo_plugin.store._location import Location

__all__ = ["FOLDER", "Lease", "Share"]

FOLDER = "leases"
"""Where the leases of a population lie while it is written."""

TIME_TO_LIVE = 120.0
"""Seconds without renewal after which the lease of a writer on another machine has ended."""

_SETTLING = 0.5
"""Seconds after which a lease that took the place of an ended one is looked at again: a rival that
saw the same ended one may have deleted ours."""

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
        name = "begin" if share is None else f"{share.index}-of-{share.count}"
        self._hold = _Hold(location, f"{FOLDER}/{name}.json", share)
        with _LOCK:
            _LIVE[self._hold.nonce] = self  # first: others look there when they find the lease
            try:
                self._acquire()
            except BaseException:
                self._hold.stop.set()  # what it may have left in the storage is not held
                with contextlib.suppress(StoreError):
                    self._hold.clear()
                raise
        self._thread = threading.Thread(target=self._hold.keep, name="dynamo-lease", daemon=True)
        self._thread.start()
        # without any input or output: it may run inside the storage's own event loop
        self._finalizer = weakref.finalize(self, self._hold.stop.set)
        self._finalizer.atexit = False

    def _acquire(self) -> None:
        hold = self._hold
        location, took_over = hold.location, False
        for _ in range(5):
            if location.create(hold.key, hold.content()):
                break
            held = _read(location, hold.key)
            if held is None:  # gone; or being written, where storage shows that
                time.sleep(_SETTLING)
                held = _read(location, hold.key)
            if held is not None and _is_held(held):
                raise _locked(location, held)
            location.delete_key(hold.key)
            took_over = True
        else:
            raise StoreLocked(f"Several writers compete for {location}. Try again.")
        self._check_others()
        if took_over:
            time.sleep(_SETTLING)
            if not hold.is_ours():
                raise StoreLocked(f"Several writers compete for {location}. Try again.")

    def _check_others(self) -> None:
        """Refuse a share that overlaps one of another writer; clear away leases that ended."""
        hold = self._hold
        for name in hold.location.children(FOLDER):
            key = f"{FOLDER}/{name}"
            if key == hold.key or not name.endswith(".json"):
                continue
            held = _read(hold.location, key)
            if held is None or not _is_held(held):
                hold.location.delete_key(key)
            elif (other := held.share) and self.share and self.share.overlaps(other):
                raise _locked(hold.location, held)

    @property
    def holds(self) -> bool:
        """Whether the lease is neither lost nor ended."""
        return not self._hold.lost.is_set() and not self._hold.stop.is_set()

    def check(self) -> None:
        """Raise `StoreLocked` if another writer took the lease over.

        A process that slept, so that it did not renew in time, looks at the storage first.

        Raises
        ------
        StoreLocked, StoreError
            The lease was lost, or the storage cannot say.
        """
        if self.holds and abs(time.time() - self._hold.renewed) > TIME_TO_LIVE / 2:
            self._hold.renew()
        if not self.holds:
            raise StoreLocked(
                f"The lease on {self._hold.location} was lost: this process could not renew it in "
                "time, and another may write there now. Nothing more is written; go on with "
                "resume=True (--resume)."
            )

    def release(self) -> None:
        """End the lease; nothing happens if it has ended."""
        self._finalizer()
        self._thread.join(_PATIENCE)


class _Hold:
    """What a lease shares with the thread that renews it; it does not keep the lease alive."""

    __slots__ = ("_turn", "key", "location", "lost", "nonce", "renewed", "share", "stop")

    def __init__(self, location: Location, key: str, share: Share | None) -> None:
        self.location = location
        self.key = key
        self.share = share
        self.nonce = uuid.uuid4().hex
        self.renewed = time.time()
        self.stop = threading.Event()
        self.lost = threading.Event()
        self._turn = threading.Lock()

    def content(self) -> bytes:
        """Return the lease as it is stored."""
        self.renewed = time.time()
        return canonical(
            {
                "share": None if self.share is None else [self.share.index, self.share.count],
                "nonce": self.nonce,
                "renewed": self.renewed,
                "host": _processes.host(),
                "pid": os.getpid(),
                "started": _processes.started(os.getpid()),
            }
        )

    def is_ours(self) -> bool:
        """Return whether the stored lease is still this one."""
        held = _read(self.location, self.key)
        return held is not None and held.nonce == self.nonce

    def clear(self) -> None:
        """Delete the stored lease if it is still this one; raises `StoreError`."""
        if self.is_ours():
            self.location.delete_key(self.key)
            self.location.prune(FOLDER)

    def renew(self) -> None:
        """Write the lease anew, or note that it was lost; raises `StoreError`."""
        with self._turn:
            before = self.renewed
            try:
                if self.is_ours():
                    self.location.set(self.key, self.content())
                else:
                    self.lost.set()
            except BaseException:
                self.renewed = before
                raise

    def keep(self) -> None:
        """Renew the lease until it is to end, and end it."""
        while not self.stop.wait(TIME_TO_LIVE / 6):
            try:
                self.renew()
            except StoreError:  # storage may come back before the lease has ended
                if time.time() - self.renewed > TIME_TO_LIVE / 2:
                    self.lost.set()
            if self.lost.is_set():
                return
        with contextlib.suppress(StoreError), _LOCK:  # it ends by itself, if need be
            # nobody in this process takes it over between the two steps
            self.clear()


_LIVE: weakref.WeakValueDictionary[str, Lease] = weakref.WeakValueDictionary()
"""The leases of this process, by nonce."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What a stored lease says."""

    share: Share | None
    nonce: str
    renewed: float
    host: str
    pid: int
    started: str | None


def _read(location: Location, key: str) -> _Held | None:
    """Return a stored lease, None if it is gone or is none: leases are written in one piece."""
    try:
        data = location.get(key, limit=2**16)
    except CorruptBlock:
        return None
    if data is None:
        return None
    try:
        match parse_json(data, key):
            case {
                "share": [int(), int()] | None as share,
                "nonce": str(nonce),
                "renewed": int() | float() as renewed,
                "host": str(host),
                "pid": int(pid),
                "started": str() | None as started,
            } if 0 <= renewed < 2**37 and 0 < pid < 2**31:
                part = None if share is None else Share(*share)
                return _Held(part, nonce, renewed, host, pid, started)
    except (CorruptBlock, InvalidInput):
        pass
    return None


def _is_held(held: _Held) -> bool:
    if held.host != _processes.host():
        return time.time() - held.renewed < TIME_TO_LIVE
    if held.pid == os.getpid() and held.started == _processes.started(held.pid):
        lease = _LIVE.get(held.nonce)
        return lease is not None and lease.holds
    return held.started == _processes.started(held.pid) and _processes.runs(held.pid)


def _locked(location: Location, held: _Held) -> StoreLocked:
    since = datetime.fromtimestamp(held.renewed).isoformat(" ", "seconds")
    share = held.share
    part = f", share {share.index} of {share.count}" if share and share.count > 1 else ""
    return StoreLocked(
        f"Another writer is at work on {location}{part}: process {held.pid} on "
        f"{held.host.partition('/')[0]}, last heard of at {since}. Wait for it. If it was stopped "
        f"on another machine, its lease ends {TIME_TO_LIVE:.0f} seconds after that."
    )


def _release_all() -> None:
    for lease in list(_LIVE.values()):
        lease.release()


atexit.register(_release_all)
