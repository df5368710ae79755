"""The command-line program: its commands, global options and exit codes.

Nothing imported here may import torch: commands import what they need when they run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from dynamo_plugin.cli import (
    analyse,
    capture,
    compare,
    fit,
    inspect,
    pairwise,
    plugins,
    quickstart,
    repair,
    report,
    verify,
)
from dynamo_plugin.cli._exit import ExitCode
from dynamo_plugin.errors import DynamoError

__all__ = ["app", "main"]

_COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "quickstart": quickstart.command,
    "inspect": inspect.command,
    "capture": capture.command,
    "verify": verify.command,
    "repair": repair.command,
    "fit": fit.command,
    "analyse": analyse.command,
    "compare": compare.command,
    "pairwise": pairwise.command,
    "report": report.command,
    "plugins": plugins.command,
}

_EPILOG: Final = f"""\b
Exit codes:
  {ExitCode.OK:<4} success
  {ExitCode.ERROR:<4} failure; stderr says why
  {ExitCode.USAGE:<4} the command line was not understood
  {ExitCode.DAMAGED:<4} verify found damage
  {ExitCode.INTERRUPTED:<4} interrupted"""


class _Group(TyperGroup):
    """Turns what a command raises on purpose into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DynamoError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(ExitCode.ERROR) from error
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None


app = typer.Typer(
    name="dynamo-plugin",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:  # noqa: FBT001 - the signature that typer calls
    if value:
        from importlib.metadata import version

        typer.echo(f"dynamo-plugin {version('dynamo-plugin')}")
        raise typer.Exit(ExitCode.OK)


@app.callback(epilog=_EPILOG)
def _global_options(
    *,
    plugins: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Plugins to load, by entry-point name, separated by commas; with a leading '-', "
            "those to leave out. The environment variable DYNAMO_PLUGINS does the same.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Embed a population of networks: one meta-model, and one small vector per network.

    \b
    Examples:
      dynamo-plugin quickstart --output quickstart
      dynamo-plugin capture population.toml
      dynamo-plugin fit population.zarr
    """
    if plugins is not None:
        from dynamo_plugin.registry import select_plugins

        select_plugins(plugins)


for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Run the program on `sys.argv` and exit."""
    if not sys.stderr.isatty():
        # A terminal redraws its progress bar; a log gets a line of it now and then.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    app(prog_name="dynamo-plugin")
