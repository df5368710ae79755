"""`dynamo-plugin report`: the report of an embedding, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dynamo_plugin.cli._options import parse_options
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
    analysis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A further analysis that gets a section; may be given repeatedly."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME.KEY=VALUE",
            help="Option KEY of the analysis NAME; the value is JSON, or else text.",
        ),
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
      dynamo-plugin report embedding --analysis null --option null.labels=architecture
    """
    wanted = _options_of(analysis or [], option or [])

    from dynamo_plugin.analyses import analyse
    from dynamo_plugin.embedding import load_embedding
    from dynamo_plugin.report import write_report

    opened = None if population is None else opened_population(population, allow_incomplete=True)
    loaded = load_embedding(embedding, population=opened)
    results = [analyse(name, loaded, **options) for name, options in wanted.items()]
    written = write_report(loaded, output, labels=labels, results=results, overwrite=overwrite)
    typer.echo(written)


def _options_of(analyses: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options of every analysis.

    >>> _options_of(["null"], ["null.labels=size", "null.seed=3"])
    {'null': {'labels': 'size', 'seed': 3}}
    """
    if len(set(analyses)) < len(analyses):
        raise typer.BadParameter("An analysis is named twice.", param_hint="--analysis")
    wanted: dict[str, dict[str, Any]] = {name: {} for name in analyses}
    for full, value in parse_options(given, flag="--option").items():
        owner = max((name for name in wanted if full.startswith(f"{name}.")), key=len, default="")
        key = full[len(owner) + 1 :]
        if not owner or not key:
            raise typer.BadParameter(
                f"Expected NAME.KEY=VALUE for an analysis that --analysis names, got {full!r}.",
                param_hint="--option",
            )
        wanted[owner][key] = value
    return wanted
