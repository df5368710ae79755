"""A capture that is killed at any moment loses nothing, and goes on to the same bytes."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from dynamo_plugin.errors import IncompleteCapture
from dynamo_plugin.store import open_population, verify_population

Content = Callable[[Path], dict[str, bytes]]


def committed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return every commit record and the data that it vouches for, which must be whole."""
    found: dict[str, bytes] = {}
    for key, data in files.items():
        array, is_record, _ = key.rpartition("/commits/")
        if not is_record:
            continue
        record = json.loads(data)
        name = ".".join(["c", str(record["block"]), *"0" * (len(record["shape"]) - 1)])
        chunk = files[f"{array}/{name}"]
        assert len(chunk) == record["bytes"]
        assert f"{google_crc32c.value(chunk):08x}" == record["crc32c"]
        found |= {key: data, f"{array}/{name}": chunk}
    return found


def records(store: Path) -> int:
    """Count the records of a store that is being written."""
    return sum(
        name.endswith(".json")
        for folder, _, names in os.walk(store)
        if folder.endswith("commits")
        for name in names
    )


def kill_and_resume(
    captures: Any, content: Content, store: Path, kills: int, seed: int, **options: Any
) -> list[int]:
    """Kill a capture at random moments; return how many records there were at each kill."""
    generator = random.Random(seed)
    counts: list[int] = []
    safe: dict[str, bytes] = {}
    while len(counts) < kills:
        running = captures.begin(store, resume=True, pause=0.002, **options)
        more = records(store) + generator.randrange(25)
        while records(store) < more and not running.is_zombie():
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.004))
        if not running.kill():
            break
        now = committed(content(store)) if store.exists() else {}
        assert safe.items() <= now.items(), "a committed block was lost"
        safe = now
        counts.append(len(safe) // 2)
    assert not captures.run(store, resume=True, **options)
    return counts


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_captures_end_with_the_same_bytes(
    captures: Any, content: Content, uninterrupted: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    store = tmp_path / "population.zarr"
    total = len(committed(uninterrupted)) // 2
    counts = kill_and_resume(captures, content, store, 6 if seed == 0 else 60, seed)
    assert any(0 < count < total for count in counts)
    assert content(store) == uninterrupted
    assert verify_population(store).ok


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"equal": True}, {"workers": 2}, {"threads": 2}])
def test_so_do_other_kinds_of_captures(
    captures: Any, content: Content, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert not captures.run(tmp_path / "whole", **options)
    counts = kill_and_resume(captures, content, tmp_path / "killed", 8, 2, **options)
    assert counts
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_what_was_killed_is_known_as_incomplete(
    captures: Any, content: Content, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """Whatever moment it was: the population is refused, or it is whole."""
    store = tmp_path / "population.zarr"
    running = captures.begin(store, pause=0.01)
    while not list(store.glob("models/*/states/*/commits/*.json")):
        time.sleep(0.001)
    assert running.kill()
    with pytest.raises(IncompleteCapture, match="resume=True"):
        open_population(store)
    assert {problem.kind for problem in verify_population(store).problems} == {"incomplete"}
    assert not captures.run(store, resume=True)
    assert content(store) == uninterrupted


def test_an_overwritten_population_that_was_killed(
    captures: Any, content: Content, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "population.zarr"
    for seconds in (0.01, 0.03, 0.06):
        assert not captures.run(store, overwrite=True, models=1)
        running = captures.begin(store, overwrite=True)
        time.sleep(seconds)
        running.kill()
    assert not captures.run(store, overwrite=True)
    assert content(store) == uninterrupted
