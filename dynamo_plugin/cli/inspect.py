"""`dynamo-plugin inspect`: what a capture would record, weigh and take, without recording it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamo_plugin.cli._exit import ExitCode
from dynamo_plugin.cli._options import parse_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynamo_plugin.recording import InspectReport

__all__ = ["command", "show"]


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG.toml|PACKAGE.MODULE:FACTORY",
            help="File that describes a capture, or what makes one model.",
        ),
    ],
    *,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What a factory's model is shown: .npy, .safetensors."),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument of the factory; may be repeated."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Modules to record; may be repeated."),
    ] = None,
    adapter: Annotated[str | None, typer.Option(metavar="NAME", help="Adapter to use.")] = None,
    store: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where the population would be written.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most samples that a model is shown at once.")
    ] = None,
    every_model: Annotated[
        bool, typer.Option("--all", help="Look at every model, not at one of each kind.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False,
) -> None:
    """Say what a capture would record: adapters, sites, shapes, size on disk, time.

    Models are made and run on one batch, which runs their code; nothing is written. Of more than
    8 models one of each factory with its arguments is looked at, and the others are taken to be
    like it. Exits with 1 if a model cannot be recorded; its line says why.

    \b
    Examples:
      dynamo-plugin inspect population.toml
      dynamo-plugin inspect population.toml --all --json
      dynamo-plugin inspect my_lab.networks:make --arguments units=64 --inputs inputs.npy
    """
    if ":" in target and not target.endswith(".toml"):
        if inputs is None:
            raise typer.BadParameter(
                "A factory's model needs inputs to run on.", param_hint="--inputs"
            )
        if every_model:
            raise typer.BadParameter("A factory makes one model.", param_hint="--all")
        from dynamo_plugin.recording.configured_inspection import inspect_factory

        report = inspect_factory(
            target,
            inputs,
            arguments=parse_options(arguments or [], flag="--arguments"),
            layers=layers or None,
            adapter=adapter,
            store=store,
            batch_size=batch_size,
        )
    else:
        for flag, given in (
            ("--inputs", inputs),
            ("--arguments", arguments),
            ("--layers", layers),
            ("--adapter", adapter),
        ):
            if given:
                raise typer.BadParameter("The capture file says that.", param_hint=flag)
        from dynamo_plugin.recording.configured_inspection import inspect_from_config

        report = inspect_from_config(
            Path(target), store=store, batch_size=batch_size, every_model=every_model
        )
    show(report, as_json=as_json)


def show(report: InspectReport, *, as_json: bool) -> None:
    """Print a report, and exit with 1 if a model cannot be recorded."""
    typer.echo(json.dumps(report.summary(), indent=2) if as_json else _text(report))
    if not report.ok:
        raise typer.Exit(ExitCode.ERROR)


def _text(report: InspectReport) -> str:
    head = ("model", "adapter", "site", "shape", "dtype", "axis", "per sample")
    rows: list[tuple[str, ...]] = [head, *_rows(report)]
    widths = [max(len(row[column]) for row in rows if len(row) > 3) for column in range(7)]
    lines = []
    for row in rows:
        if len(row) > 3:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        else:
            cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2]]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "", *_totals(report)])


def _rows(report: InspectReport) -> Iterator[tuple[str, ...]]:
    """Yield cells of one line per array; of a model with an error, the error as the last cell."""
    for model in report.models:
        name, adapter = model.id, model.adapter or "-"
        if model.models > 1:
            name += f" (+{model.models - 1} alike)"
        if model.error is not None:
            yield name, adapter, f"error: {model.error}"
        for array in model.arrays:
            shape = _shape(array.shape)
            dtype = array.dtype
            if array.source_shape != array.shape:
                shape = f"{_shape(array.source_shape)} -> {shape}"
            if array.source_dtype != dtype:
                dtype = f"{array.source_dtype} -> {dtype}"
            axis = array.axis if array.every == 1 else f"{array.axis}, every {array.every}"
            site = array.name if array.kind == "site" else f"output: {array.name}"
            yield name, adapter, site, shape, dtype, axis, _size(array.bytes_per_sample)
            name = adapter = ""


def _totals(report: InspectReport) -> Iterator[str]:
    models = f"{report.model_count} model{'' if report.model_count == 1 else 's'}"
    steps = f", {report.steps} steps" if report.steps != report.samples else ""
    yield f"{models} on {report.samples} samples{steps}"
    weight, failed = report.weight, sum(model.models for model in report.models if model.error)
    without = f", without {failed} that cannot be recorded" if failed else ""
    yield (
        f"size: {_size(weight.bytes)} in {weight.files} files, at most {_size(weight.on_disk)} on "
        f"disk{without}"
    )
    if report.free_bytes is not None:
        verdict = "it fits" if report.fits else "IT DOES NOT FIT"
        yield f"room: {_size(report.free_bytes)} free at {report.location}; {verdict}"
    processes = "one process" if report.workers == 1 else f"{report.workers} processes"
    yield (
        f"time: roughly {_duration(report.seconds)} in {processes}; estimated from one batch per "
        "model that was looked at, without writing"
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "1"


def _size(size: float) -> str:
    """Return a size for people.

    >>> _size(12), _size(2048), _size(5 * 2**40)
    ('12 B', '2.0 KiB', '5.0 TiB')
    """
    unit = min(int(math.log2(max(size, 1)) // 10), 5)
    if unit == 0:
        return f"{size:.0f} B"
    return f"{size / 1024**unit:.1f} {'KMGTP'[unit - 1]}iB"


def _duration(seconds: float) -> str:
    """Return a duration for people.

    >>> _duration(0.25), _duration(75), _duration(7300)
    ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
