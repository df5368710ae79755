"""`dynamo-plugin capture`: models and inputs named in a TOML file, to a population."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="File that describes the capture.")
    ],
    *,
    store: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where to write, instead of what the file says."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted capture.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the population that lies there first.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most samples that a model is shown at once.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that record models at the same time.")
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be recorded, as inspect does."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as a JSON object.")
    ] = False,
) -> None:
    """Record the hidden states of a population of networks.

    The file names functions as package.module:function, and naming one runs its code: read a
    file that is not yours before you run it. Modules beside the file can be named; paths are
    relative to it. State dicts are loaded without unpickling anything but tensors.

    \b
    Example of a file:
      store = "population.zarr"
      [inputs]
      file = "inputs.npy"
      [metadata]
      file = "runs.csv"
      [[models]]
      factory = "networks:make"
      arguments = { units = 64 }
      state_dict = "checkpoints/*.pt"

    \b
    Examples:
      dynamo-plugin capture population.toml --dry-run
      dynamo-plugin capture population.toml --resume --workers 4
      dynamo-plugin capture population.toml --store other.zarr --json
    """
    if dry_run:
        from dynamo_plugin.cli.inspect import show
        from dynamo_plugin.recording.configured_inspection import inspect_from_config

        show(
            inspect_from_config(config, store=store, batch_size=batch_size, workers=workers),
            as_json=as_json,
        )
        return

    from dynamo_plugin.recording.configured import capture_from_config

    started = time.perf_counter()
    population = capture_from_config(
        config,
        store=store,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    summary = {
        "store": population.location,
        "models": len(population),
        "samples": len(population.sample_ids),
        "rows": int(population.offsets[-1]),
        "bytes": sum(population.nbytes(model_id) for model_id in population.ids),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    typer.echo(
        "{models} models, {samples} samples, {rows} steps, {bytes} bytes in {seconds} s: "
        "{store}".format(**summary)
    )
