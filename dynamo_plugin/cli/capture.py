"""`dynamo-plugin capture`: models and inputs named in a TOML file, to a population."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dynamo_plugin.cli._summary import capture_summary, summary_line
from dynamo_plugin.errors import InvalidInput

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
    executor: Annotated[
        str | None,
        typer.Option(metavar="dask://HOST:PORT", help="Dask scheduler whose workers record."),
    ] = None,
    task_index: Annotated[
        int | None, typer.Option(min=0, help="Which share of the models to record, from 0.")
    ] = None,
    task_count: Annotated[
        int | None, typer.Option(min=1, help="How many shares there are, as in a job array.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one operation.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Record the other models where one fails.")
    ] = False,
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
      dynamo-plugin capture population.toml --executor dask://10.0.0.1:8786
      dynamo-plugin capture population.toml --task-index $SLURM_ARRAY_TASK_ID --task-count 16
    """
    if (task_index is None) != (task_count is None):
        raise InvalidInput("Expected both --task-index and --task-count, or neither.")
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
        executor=executor,
        share=None if task_index is None or task_count is None else (task_index, task_count),
        threads=threads,
        keep_going=keep_going,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    summary = capture_summary(population, time.perf_counter() - started)
    typer.echo(json.dumps(summary, indent=2) if as_json else summary_line(summary))
