"""Writing beside computing: in order, all of it, with bounded memory, and errors come back."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.recording import pump as pumps
from dynamo_plugin.recording.pump import Pump

ARRAY: Any = object()


def pieces(size: int) -> list[Any]:
    return [np.zeros(size // 2, dtype=np.uint8), np.zeros(size - size // 2, dtype=np.uint8)]


def test_everything_is_written_in_order_by_one_thread() -> None:
    came: list[tuple[int, str, int]] = []

    def work(array: Any, block: int, data: Any) -> None:
        assert array is ARRAY
        came.append((block, threading.current_thread().name, sum(map(len, data))))

    with Pump(work) as pump:
        for block in range(100):
            pump.put(ARRAY, block, pieces(block))
    assert came == [(block, "dynamo-writer", block) for block in range(100)]
    assert not pump._thread.is_alive()


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "LEAST_WAITING_BYTES", 0)
    most, written = [0], [0]
    gate = threading.Semaphore(0)

    def work(array: Any, block: int, data: Any) -> None:
        gate.acquire(timeout=5)
        written[0] += 1

    def feed() -> None:
        for block in range(20):
            pump.put(ARRAY, block, pieces(30))
            most[0] = block + 1

    with Pump(work, batch_bytes=100) as pump:
        feeder = threading.Thread(target=feed)
        feeder.start()
        for done in range(17):
            deadline = time.monotonic() + 10
            while most[0] < done + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.002)
            assert most[0] == done + 3  # 90 bytes wait or are written
            gate.release()
            while written[0] == done:
                time.sleep(0.001)
        for _ in range(3):
            gate.release()
        feeder.join()
    assert written[0] == 20


@pytest.mark.parametrize(
    ("batch_bytes", "blocks"), [(1, 16), (20 * 2**20, 20), (2**40, 64)], ids=["few", "some", "many"]
)
def test_a_batch_may_wait_within_bounds(batch_bytes: int, blocks: int) -> None:
    gate, fed = threading.Event(), [0]

    def feed() -> None:
        for block in range(100):
            pump.put(ARRAY, block, [np.empty(2**20, dtype=np.uint8)])
            fed[0] += 1

    with Pump(lambda array, block, data: gate.wait(10), batch_bytes=batch_bytes) as pump:
        feeder = threading.Thread(target=feed)
        feeder.start()
        deadline = time.monotonic() + 10
        while fed[0] < blocks and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert fed[0] == blocks
        gate.set()
        feeder.join()


def test_one_block_that_is_larger_than_what_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "LEAST_WAITING_BYTES", 0)
    came = []
    with Pump(lambda array, block, data: came.append(block), batch_bytes=10) as pump:
        for block in range(5):
            pump.put(ARRAY, block, pieces(50))
    assert came == [0, 1, 2, 3, 4]


class Broken(Exception):
    pass


def test_the_first_error_is_raised_and_nothing_more_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pumps, "LEAST_WAITING_BYTES", 0)
    came: list[int] = []

    def work(array: Any, block: int, data: Any) -> None:
        came.append(block)
        if block >= 2:
            raise Broken(block)

    def feed(pump: Pump) -> None:
        for block in range(1000):
            pump.put(ARRAY, block, pieces(8))

    with pytest.raises(Broken, match=r"^2$"), Pump(work, batch_bytes=10) as pump:
        feed(pump)  # would wait for ever if the thread did not go on taking
    assert came == [0, 1, 2]


def test_an_error_in_the_last_block_is_not_lost() -> None:
    def work(array: Any, block: int, data: Any) -> None:
        time.sleep(0.01)
        raise Broken

    with pytest.raises(Broken), Pump(work) as pump:
        pump.put(ARRAY, 0, pieces(8))


def test_an_exception_in_the_block_drops_what_waits() -> None:
    began, go = threading.Event(), threading.Event()
    came: list[int] = []

    def work(array: Any, block: int, data: Any) -> None:
        came.append(block)
        began.set()
        go.wait(10)

    def interrupted() -> None:
        with Pump(work) as pump:
            for block in range(50):
                pump.put(ARRAY, block, pieces(8))
            began.wait(10)
            threading.Timer(0.02, go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert came == [0]  # the one that was being written is finished


def test_what_was_written_is_let_go() -> None:
    import weakref

    seen: list[weakref.ref[Any]] = []
    with Pump(lambda array, block, data: None) as pump:
        for block in range(3):
            data = np.zeros(8)
            seen.append(weakref.ref(data))
            pump.put(ARRAY, block, [data])
            del data
        deadline = time.monotonic() + 10
        while any(each() is not None for each in seen) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert [each() for each in seen] == [None] * 3
