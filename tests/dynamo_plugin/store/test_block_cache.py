"""Blocks that were checked are kept, up to a size, and only while their files stay the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamo_plugin.errors import CorruptBlock
from dynamo_plugin.store import _block_cache, open_population
from dynamo_plugin.store._block_cache import BlockCache


def data(size: int = 4) -> NDArray[np.uint8]:
    return np.zeros(size, dtype=np.uint8)


def test_a_block_is_known_while_its_stamp_stays_the_same() -> None:
    cache = BlockCache()
    block = data()
    assert not cache.knows(("a", 0), "stamp")
    cache.put(("a", 0), "stamp", block, mapped=True)
    assert cache.knows(("a", 0), "stamp")
    assert cache.get(("a", 0), "stamp") is block
    for key, stamp in ((("a", 0), "other"), (("a", 1), "stamp"), (("b", 0), "stamp")):
        assert not cache.knows(key, stamp)
        assert cache.get(key, stamp) is None
    cache.put(("a", 0), "other", data(), mapped=True)
    assert not cache.knows(("a", 0), "stamp")


def test_the_least_recently_used_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_block_cache, "_MOST_MAPS", 3)
    cache = BlockCache()
    for block in range(3):
        cache.put(("a", block), block, data(), mapped=True)
    assert cache.get(("a", 0), 0) is not None
    cache.put(("a", 3), 3, data(), mapped=True)
    assert [cache.get(("a", block), block) is not None for block in range(4)] == [
        *(True, False, True, True)
    ]
    assert cache.knows(("a", 1), 1)  # it was checked, and need not be again


def test_loaded_blocks_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_block_cache, "_LOADED_BYTES", 100)
    cache = BlockCache()
    for block in range(10):
        cache.put(("a", block), None, data(30), mapped=False)
        cache.put(("a", block), None, data(30), mapped=False)  # counted once
    kept = [block for block in range(10) if cache.get(("a", block), None) is not None]
    assert kept == [7, 8, 9]
    assert not cache.knows(("a", 0), None)  # nobody can say whether it changed since
    cache.put(("b", 0), None, data(1000), mapped=False)
    assert cache.get(("b", 0), None) is not None
    assert cache.get(("a", 9), None) is None


@pytest.mark.usefixtures("small_blocks")
def test_a_block_that_changed_is_read_and_checked_again(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path)
    population = open_population(tmp_path)
    path = tmp_path / "models/plain/states/rnn.layer0/c.1.0"
    before = population.states("plain", "rnn.layer0", samples=[2])
    whole = path.read_bytes()

    def rewrite(content: bytes) -> None:
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").replace(path)

    rewrite(bytes(len(whole)))
    with pytest.raises(CorruptBlock, match="CRC-32C"):
        population.states("plain", "rnn.layer0", samples=[2])
    rewrite(whole)
    np.testing.assert_array_equal(population.states("plain", "rnn.layer0", samples=[2]), before)
    with path.open("r+b") as file:  # in place; inode and size stay
        file.write(b"\xff\xff")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(CorruptBlock, match="CRC-32C"):
        population.states("plain", "rnn.layer0")


@pytest.mark.usefixtures("small_blocks")
def test_a_block_that_is_replaced_between_two_looks_is_checked(
    tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.write(tmp_path)
    population = open_population(tmp_path)
    population.states("plain", "rnn.layer0")
    cache = population._cache
    monkeypatch.setattr(type(cache), "_find", lambda *_: None)  # known, not at hand
    population.states("plain", "rnn.layer0")
    path = tmp_path / "models/plain/states/rnn.layer0/c.1.0"
    kind = type(population._location)
    real = kind.map

    def replaced(self: Any, key: str, size: int) -> Any:
        if key.endswith("rnn.layer0/c.1.0"):
            path.unlink()
            path.write_bytes(bytes(size))
        return real(self, key, size)

    monkeypatch.setattr(kind, "map", replaced)
    with pytest.raises(CorruptBlock, match="CRC-32C"):
        population.states("plain", "rnn.layer0")
