"""`dynamo-plugin compare`: two models of a population or embedding, by some metrics."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dynamo_plugin.cli._options import parse_options
from dynamo_plugin.cli._populations import opened_networks
from dynamo_plugin.errors import InvalidInput

__all__ = ["command"]

_METRICS = ("cka", "procrustes", "svcca", "rsa")


def command(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            help="The population, a path or URL; or the folder of an embedding.",
            show_default=False,
        ),
    ],
    first: Annotated[str, typer.Argument(metavar="A", help="Id of a model.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Id of another.", show_default=False)],
    *,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=f"Metric; may be repeated. By default {', '.join(_METRICS)}."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Option of the one metric; the value is JSON, or else text."
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="Where states are compared, if there are several; repeated, the units of all.",
        ),
    ] = None,
    population: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="The population of the embedding, if no longer where it was."
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Compare at most so many rows (steps or samples), drawn at random."
        ),
    ] = None,
    row_seed: Annotated[int, typer.Option(help="Seed of the rows drawn.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an array of objects instead of a table.")
    ] = False,
) -> None:
    """Compare two models on the inputs that both were captured on.

    \b
    Examples:
      dynamo-plugin compare population.zarr gru-0 lstm-3
      dynamo-plugin compare population.zarr gru-0 lstm-3 --metric pwcca --metric dsa --json
      dynamo-plugin compare population.zarr a b --metric svcca --option variance=0.99 --site rnn
      dynamo-plugin compare embedding a b --metric theta --metric functional --metric cka
    """
    names = metric or list(_METRICS)
    options = parse_options(option or [], flag="--option")
    if options and len(names) > 1:
        raise InvalidInput("Options belong to one metric. Name one with --metric.")

    from dynamo_plugin.metrics import pairwise

    networks = opened_networks(store, population=population)
    sites = site[0] if site and len(site) == 1 else site or None
    found = []
    for name in names:
        result = pairwise(
            networks,
            name,
            models=(first, second),
            site=sites,
            rows=rows,
            row_seed=row_seed,
            progress=False,
            **options,
        )
        found.append(
            {
                "metric": name,
                "kind": result.kind,
                "value": result.value(first, second),
                "reverse": result.value(second, first),
                "distance": float(result.distances[0, 1]),
                "settings": dict(result.settings),
                "reference": result.reference,
            }
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    lines = [("METRIC", "KIND", "VALUE", "REFERENCE")]
    for one in found:
        value = f"{one['value']:.4g}"
        if one["value"] != one["reverse"]:
            value += f" (reverse: {one['reverse']:.4g})"
        lines.append((str(one["metric"]), str(one["kind"]), value, str(one["reference"])))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
