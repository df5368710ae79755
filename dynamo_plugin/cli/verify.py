"""`dynamo-plugin verify`: whether every byte of a population is the one that was captured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dynamo_plugin.cli._exit import ExitCode

if TYPE_CHECKING:
    from dynamo_plugin.store import VerifyReport

__all__ = ["command"]


def command(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Path or fsspec URL of the population.")
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")] = False,
) -> None:
    """Check a population: every description, every commit record, every byte.

    Nothing is written. Exits with 0 if all is well and with 3 if something is incomplete or
    damaged; then each problem is listed with what to do about it.

    \b
    Examples:
      dynamo-plugin verify population.zarr
      dynamo-plugin verify s3://bucket/population.zarr --quiet --json
    """
    from dynamo_plugin.store import verify_population

    report = verify_population(store, progress=not quiet)
    if as_json:
        typer.echo(json.dumps(report.summary(), indent=2))
    else:
        typer.echo(_text(report))
    if not report.ok:
        raise typer.Exit(ExitCode.DAMAGED)


def _text(report: VerifyReport) -> str:
    """Return the report as lines: one per problem, then the sum."""
    lines = [f"{problem.kind}: {problem.message}" for problem in report.problems]
    state = "ok" if report.ok else _counted(len(report.problems), "problem")
    lines.append(
        f"{report.location}: {state}; {_counted(report.models, 'model')}, "
        f"{_counted(report.blocks, 'whole block')}, {report.bytes} bytes"
    )
    return "\n".join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
