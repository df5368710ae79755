"""`dynamo-plugin pairwise`: every two models of a population or embedding, by one metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dynamo_plugin.cli._options import parse_options
from dynamo_plugin.cli._populations import opened_networks
from dynamo_plugin.errors import InvalidInput, StoreExists

__all__ = ["command"]

_SUFFIXES = (".json", ".csv")


def command(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            help="The population, a path or URL; or the folder of an embedding.",
            show_default=False,
        ),
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Where to write: .json, which PairwiseDistances.load reads, or a square .csv.",
            show_default=False,
        ),
    ],
    metric: Annotated[str, typer.Option(metavar="NAME", help="Metric.")] = "cka",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Option of the metric; the value is JSON, or else text."
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
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    executor: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="dask://host:port, instead of threads.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep what is finished here until all of it is."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what --checkpoints has.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a heat map as HTML; replaces the file."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object.")
    ] = False,
) -> None:
    """Compare every two models of a population, or of an embedding, and write the table.

    \b
    Examples:
      dynamo-plugin pairwise population.zarr --metric cka --output cka.json
      dynamo-plugin pairwise population.zarr --metric svcca --option directions=10 --output a.csv
      dynamo-plugin pairwise embedding --metric functional --output functional.json
      dynamo-plugin pairwise population.zarr --workers 8 --checkpoints tiles --output cka.json
    """
    options = parse_options(option or [], flag="--option")
    if output.suffix not in _SUFFIXES:
        raise InvalidInput(
            f"Expected a file that ends in {' or '.join(_SUFFIXES)}, got {output.name!r}."
        )
    for target in (output, plot):
        if target is not None and not target.absolute().parent.is_dir():
            raise InvalidInput(f"There is no folder {target.parent} to write {target.name} into.")
    if output.exists() and not overwrite:
        raise StoreExists(f"There is something at {output}. Replace it with --overwrite.")

    from dynamo_plugin.metrics import pairwise
    from dynamo_plugin.recording.executors import connected

    networks = opened_networks(store, population=population)
    sites = site[0] if site and len(site) == 1 else site or None
    with connected(executor) as pool:
        result = pairwise(
            networks,
            metric,
            site=sites,
            rows=rows,
            row_seed=row_seed,
            workers=workers,
            executor=pool,
            checkpoints=checkpoints,
            resume=resume,
            **options,
        )
    if output.suffix == ".csv":
        result.to_dataframe().to_csv(output)
    else:
        result.save(output, overwrite=overwrite)
    if plot is not None:
        # Plotly's own default offers to send the data to its cloud.
        config = {"displaylogo": False, "showSendToCloud": False}
        result.plot().write_html(plot, include_plotlyjs=True, config=config)
    summary = result.summary()
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        typer.echo(
            f"{summary['models']} models, {metric} ({result.kind}): mean {summary['mean']:.4g}, "
            f"from {summary['least']:.4g} to {summary['most']:.4g}: {output}"
        )
