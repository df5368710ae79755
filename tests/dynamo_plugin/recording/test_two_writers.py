"""Two captures into one store: one waits its turn, or both write shares that do not overlap."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynamo_plugin.errors import DynamoError, InvalidInput, StoreExists, StoreLocked
from dynamo_plugin.recording import capture
from dynamo_plugin.store import Population, open_population, verify_population

Content = Callable[[Path], dict[str, bytes]]


def wait_for(store: Path, pattern: str) -> None:
    while not any(store.glob(pattern)):
        time.sleep(0.002)


DATA = "models/*/states/*/commits/*.json"


def test_a_second_writer_is_told_who_is_at_work_until_that_is_killed(
    captures: Any, content: Content, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "population.zarr"
    first = captures.begin(store, pause=1.0)
    wait_for(store, "models/zarr.json")
    for options in ({"resume": True}, {"overwrite": True}, {"repair": True}, {"share": [0, 2]}):
        error = captures.run(store, **options)
        assert error.startswith("StoreLocked: Another writer is at work on")
        assert f"process {first.pid} on {socket.gethostname()}" in error
    assert captures.run(store).startswith("StoreExists")
    assert first.kill()
    assert list((store / "leases").glob("*.json"))
    began = time.monotonic()
    assert not captures.run(store, resume=True)
    assert time.monotonic() - began < 30  # not the time that a lease lives
    assert content(store) == uninterrupted
    assert not (store / "leases").exists()


def test_of_two_that_begin_at_once_one_goes_on(
    captures: Any, content: Content, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    for attempt in range(2):
        store = tmp_path / str(attempt)
        running = [captures.begin(store, resume=attempt == 1) for _ in range(3)]
        errors = [each.wait() for each in running]
        # one that comes when another has ended finds everything there
        assert "" in errors
        assert all(e.startswith(("", "StoreLocked", "StoreExists")) for e in errors)
        if attempt == 0:
            assert errors.count("") == 1
        assert content(store) == uninterrupted


def test_shares_written_at_once_are_a_serial_capture(
    captures: Any, content: Content, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "population.zarr"
    running = [captures.begin(store, share=[index, 2], pause=0.2) for index in range(2)]
    wait_for(store, DATA)
    assert captures.run(store, share=[0, 3]).startswith("StoreLocked: Another writer is at work")
    assert captures.run(store, resume=True).startswith("StoreLocked: Another writer is at work")
    assert [each.wait() for each in running] == ["", ""]
    assert content(store) == uninterrupted


def test_a_killed_share_goes_on_beside_the_other(
    captures: Any, content: Content, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "population.zarr"
    first = captures.begin(store, share=[0, 2], pause=0.02)
    wait_for(store, DATA)
    other = captures.begin(store, share=[1, 2], pause=0.02)
    assert first.kill()
    assert not captures.run(store, share=[0, 2])
    assert not other.wait()
    assert content(store) == uninterrupted


def models() -> dict[str, nn.GRU]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {f"m{n}": nn.GRU(2, 3, batch_first=True) for n in range(5)}


def run(store: Any, **options: Any) -> Population:
    return capture(models(), torch.ones(4, 3, 2), store, progress=False, **options)


def test_shares_one_after_the_other_in_any_order() -> None:
    store: dict[str, Any] = {}
    assert run(store, share=(1, 3)).ids == ("m1", "m4")
    assert run(store, share=(0, 3)).ids == ("m0", "m1", "m3", "m4")
    assert not verify_population(store).ok
    run(store, share=(2, 3))
    whole: dict[str, Any] = {}
    run(whole)
    assert {k: v.to_bytes() for k, v in store.items()} == {
        k: v.to_bytes() for k, v in whole.items()
    }


def test_what_shares_refuse() -> None:
    store: dict[str, Any] = {}
    with pytest.raises(InvalidInput, match="got 2 of 2"):
        run(store, share=(2, 2))
    for options in ({"overwrite": True}, {"repair": True}):
        with pytest.raises(InvalidInput, match="beside others"):
            run(store, share=(0, 2), **options)
    run(store, share=(0, 2))
    with pytest.raises(InvalidInput, match="batch_size"):
        run(store, share=(1, 2), batch_size=3)
    with pytest.raises(InvalidInput, match="inputs of hash"):
        capture(models(), np.ones((4, 2, 2)), store, share=(1, 2), progress=False)


def test_threads_of_one_process() -> None:
    store: dict[str, Any] = {}
    barrier = threading.Barrier(4)
    came: list[DynamoError | None] = []

    def begin() -> None:
        barrier.wait()
        try:
            run(store)
        except DynamoError as error:
            came.append(error)
        else:
            came.append(None)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert came.count(None) == 1
    assert all(isinstance(error, StoreLocked | StoreExists | None) for error in came)
    assert len(open_population(store)) == 5


def test_a_failed_capture_does_not_block_the_next() -> None:
    """Not even while its traceback keeps its writer alive, as in a notebook."""
    store: dict[str, Any] = {}

    def fail() -> nn.Module:
        raise MemoryError

    with pytest.raises(DynamoError) as kept:
        capture({**models(), "m3": fail}, torch.ones(4, 3, 2), store, progress=False)
    assert run(store, resume=True).ids == tuple(models())
    assert kept.tb is not None
