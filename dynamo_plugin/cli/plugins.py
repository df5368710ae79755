"""`dynamo-plugin plugins`: what is installed, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from dynamo_plugin.errors import suggest
from dynamo_plugin.registry import KINDS, PluginListing, get_registry

__all__ = ["command"]

_COLUMNS = ("name", "kind", "distribution", "version", "plugin", "state", "reason")


def command(
    *,
    kind: Annotated[
        str | None,
        typer.Option(help=f"List only registrations of this kind: {', '.join(KINDS)}."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print an array of objects instead of a table."),
    ] = False,
) -> None:
    """List plugins and what they register.

    Nothing that they register is imported. A plugin that is faulty is disabled and says why; one
    that the choice of plugins leaves out is excluded.

    \b
    Examples:
      dynamo-plugin plugins --kind loss
      dynamo-plugin --plugins builtin plugins --json
    """
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(
            f"There is no kind {kind!r}. {suggest(kind, KINDS)}", param_hint="--kind"
        )
    records = [record for record in get_registry().listing() if kind is None or record.kind == kind]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
    else:
        typer.echo(_table(records))


def _table(records: Sequence[PluginListing]) -> str:
    """Return the records as aligned columns; what is empty is a dash, so that columns count."""
    rows = [[column.upper() for column in _COLUMNS]]
    for record in records:
        values = (getattr(record, column) for column in _COLUMNS)
        rows.append([" ".join(str(value or "-").split()) for value in values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
