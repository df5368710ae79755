"""`dynamo-plugin analyse`: one analysis of an embedding, as a table, JSON, CSV or a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynamo_plugin.cli._options import parse_options
from dynamo_plugin.cli._populations import opened_population
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["command"]


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The analysis; `dynamo-plugin plugins` lists all, those of plugins too.",
            show_default=False,
        ),
    ],
    embedding: Annotated[
        Path,
        typer.Argument(metavar="EMBEDDING", help="Folder that `fit` wrote.", show_default=False),
    ],
    *,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Metadata column; the same as --option labels=COLUMN."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Option of the analysis; the value is JSON, or else text."
        ),
    ] = None,
    population: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="The population, if it is no longer where it was."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the result as one JSON object, with what it was computed from."
        ),
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the table; replaces the file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the plot as HTML; replaces the file."),
    ] = None,
) -> None:
    """Run an analysis of an embedding and print its table.

    \b
    Examples:
      dynamo-plugin analyse fidelity embedding
      dynamo-plugin analyse clusters embedding --labels architecture --json
      dynamo-plugin analyse clusters embedding --option clusters=4 --plot clusters.html
      dynamo-plugin analyse landscape embedding --plot landscape.html
      dynamo-plugin analyse interpolation embedding --option first=gru-0 --option second=gru-5
    """
    options = parse_options(option or [], flag="--option")
    if labels is not None:
        if "labels" in options:
            raise InvalidInput("Labels are given twice, by --labels and by --option. Give one.")
        options["labels"] = labels
    for target in (csv, plot):
        if target is not None and not target.absolute().parent.is_dir():
            raise InvalidInput(f"There is no folder {target.parent} to write {target.name} into.")

    from dynamo_plugin.analyses import TableResult, analyse
    from dynamo_plugin.embedding import load_embedding

    opened = None if population is None else opened_population(population, allow_incomplete=True)
    result = analyse(name, load_embedding(embedding, population=opened), **options)
    table = result.to_dataframe()
    if csv is not None:
        table.to_csv(csv, index=False)
    if plot is not None:
        # Plotly's own default offers to send the data to its cloud.
        config = {"displaylogo": False, "showSendToCloud": False}
        result.plot().write_html(plot, include_plotlyjs=True, config=config)
    if as_json:
        rows = json.loads(table.to_json(orient="records"))
        found = {"summary": result.summary(), "table": rows}
        typer.echo(
            json.dumps(result.to_json() if isinstance(result, TableResult) else found, indent=2)
        )
    else:
        typer.echo(_shown(table))


def _shown(table: pd.DataFrame) -> str:
    """Return aligned columns. Names may hold anything, but a terminal obeys control characters."""
    return table.astype(object).map(_cell).mask(table.isna(), "-").to_string(index=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "".join(character if character.isprintable() else "?" for character in str(value))
