"""Captures in processes of their own, that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Captures:
    """Begins captures in processes of their own."""

    server: subprocess.Popen[str]
    folder: Path

    def ask(self, request: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def begin(self, store: Path | str, **options: Any) -> Running:
        report = self.folder / uuid.uuid4().hex
        pid = self.ask({"store": str(store), "report": str(report), **options})
        return Running(self, pid, report)

    def run(self, store: Path | str, **options: Any) -> str:
        """Capture to the end; return the error, empty if there was none."""
        return self.begin(store, **options).wait()


@dataclass
class Running:
    """A capture that runs."""

    captures: Captures
    pid: int
    report: Path

    def kill(self) -> bool:
        """Kill it outright; return whether it was still at work."""
        os.kill(self.pid, signal.SIGKILL)
        return self.captures.ask({"wait": self.pid}) == -signal.SIGKILL

    def wait(self) -> str:
        code = self.captures.ask({"wait": self.pid})
        assert code in (0, 1), f"ended with {code}"
        return self.report.read_text() if code else ""

    def is_zombie(self) -> bool:
        """Return whether it has ended and waits to be asked for."""
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z"


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captures]:
    """Begin captures of networks with random weights, always the same."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        yield Captures(server, tmp_path_factory.mktemp("reports"))
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(60) == 0


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads all files of a store but leases and leftovers."""

    def read(store: Path) -> dict[str, bytes]:
        files = {path.relative_to(store).as_posix(): path for path in store.rglob("*")}
        return {
            name: path.read_bytes()
            for name, path in sorted(files.items())
            if path.is_file() and not name.startswith("leases/") and path.suffix != ".partial"
        }

    return read


@pytest.fixture(scope="session")
def uninterrupted(
    captures: Captures,
    content: Callable[[Path], dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """Return all files of a capture that nothing interrupted."""
    store = tmp_path_factory.mktemp("uninterrupted") / "population.zarr"
    assert not captures.run(store)
    return content(store)
