"""Which process on which machine: what tells whether the writer of a lease is still there."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

__all__ = ["host", "runs", "started"]


def host() -> str:
    """Return what tells this running machine (or container) from others and from a reboot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}/{boot.read_text().strip()}/{namespace.readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():012x}"


def started(pid: int) -> str | None:
    """Return when a process began, so that a number that is used again is not mistaken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def runs(pid: int) -> bool:
    """Return whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and belongs to somebody else
        return True
    return True
