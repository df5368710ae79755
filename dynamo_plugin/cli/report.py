"""`dynamo-plugin report`: the report of an embedding, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynamo_plugin.cli._populations import opened_population

__all__ = ["command"]


def command(
    embedding: Annotated[
        Path,
        typer.Argument(metavar="EMBEDDING", help="Folder that `fit` wrote.", show_default=False),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "report.html"
    ),
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Metadata column to colour and average models by."),
    ] = None,
    population: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="The population, if it is no longer where it was."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if there is one.")
    ] = False,
) -> None:
    """Write the report of an embedding: one HTML file that works offline.

    Prints the path of the file.

    \b
    Examples:
      dynamo-plugin report embedding
      dynamo-plugin report embedding --labels architecture -o digits.html --overwrite
    """
    from dynamo_plugin.embedding import load_embedding
    from dynamo_plugin.report import write_report

    opened = None if population is None else opened_population(population, allow_incomplete=True)
    loaded = load_embedding(embedding, population=opened)
    typer.echo(write_report(loaded, output, labels=labels, overwrite=overwrite))
