"""Processes that a capture starts end with it, also when it is killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def workers_of(pid: int) -> list[int]:
    """Return the processes that a process started to run tasks."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(folder.name))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_workers_end_with_a_capture_that_is_killed(captures: Any, tmp_path: Path) -> None:
    running = captures.begin(tmp_path / "p", workers=2, pause=0.2)
    eventually(lambda: any((tmp_path / "p").glob("models/*/*/*/c.*")))
    workers = workers_of(running.pid)
    assert len(workers) == 2
    assert running.kill()
    eventually(lambda: not any(map(lives, workers)))
