"""`dynamo-plugin repair`: record again what is damaged in a population, and only that."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dynamo_plugin.cli._summary import capture_summary, summary_line

__all__ = ["command"]


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="File of the capture.")],
    *,
    store: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The population, instead of what the file says."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that check and record at the same time.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as a JSON object.")
    ] = False,
) -> None:
    """Check every byte of a population, and record again what is missing or damaged.

    The models, the inputs and the settings must be those of the capture; what is whole is kept.
    `dynamo-plugin verify` says what is wrong without mending it.

    \b
    Examples:
      dynamo-plugin repair population.toml
      dynamo-plugin repair population.toml --store copy.zarr --workers 2
    """
    from dynamo_plugin.recording.configured import capture_from_config

    started = time.perf_counter()
    population = capture_from_config(
        config, store=store, workers=workers, repair=True, progress=not quiet
    )
    summary = capture_summary(population, time.perf_counter() - started)
    typer.echo(json.dumps(summary, indent=2) if as_json else summary_line(summary))
