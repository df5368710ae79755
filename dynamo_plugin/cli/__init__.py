"""The command-line program, one module per command."""

from __future__ import annotations

from dynamo_plugin.cli._app import main
from dynamo_plugin.cli._exit import ExitCode

__all__ = ["ExitCode", "main"]
