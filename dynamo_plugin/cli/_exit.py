"""The exit codes of the command line: stable, for scripts."""

from __future__ import annotations

import enum

__all__ = ["ExitCode"]


class ExitCode(enum.IntEnum):
    """What the exit code of `dynamo-plugin` means.

    >>> int(ExitCode.DAMAGED)
    3
    """

    OK = 0
    """The command did what it was asked."""
    ERROR = 1
    """The command failed; one line on stderr says why."""
    USAGE = 2
    """The command line was not understood."""
    DAMAGED = 3
    """`verify` found damage."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C."""
