"""`dynamo-plugin fit`: from a population to its embedding."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynamo_plugin.cli._exit import ExitCode
from dynamo_plugin.cli._options import parse_options
from dynamo_plugin.cli._populations import opened_population
from dynamo_plugin.errors import UnknownName, suggest

if TYPE_CHECKING:
    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["command"]


def command(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            help="Path or fsspec URL of the population, or a TOML file that describes one: then "
            "nothing is stored, and networks are run when their states are needed.",
        ),
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the embedding to.")
    ] = Path("embedding"),
    family: Annotated[str, typer.Option(help="Meta-model family.")] = "gru",
    preset: Annotated[
        str | None,
        typer.Option(help="Settings that go together: paper; others come on top."),
    ] = None,
    embedding_dim: Annotated[
        str | None, typer.Option(help="Length of theta, or auto. [default: 16]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. [default: 500]")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = 32,
    hidden_loss: Annotated[str, typer.Option(help="Distance between hidden states.")] = "l2",
    output_loss: Annotated[
        str | None,
        typer.Option(help="Divergence between outputs. [default: kl for logits, mse elsewhere]"),
    ] = None,
    output_weight: Annotated[float, typer.Option(help="Weight of the output loss.")] = 1.0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of a fit, its value as JSON; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides split, initial values and batches.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many fits, from --seed on, each in a folder seed-K of OUTPUT."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to train. [default: an accelerator, if any]")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the unfinished fit, for --resume. "
            "[default: OUTPUT.checkpoints, removed in the end]"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished fit, if there is one.")
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder to log the losses to, for TensorBoard.")
    ] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Leave out models whose capture stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an embedding that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")] = False,
) -> None:
    """Fit a meta-model and one theta per network to a population.

    \b
    Examples:
      dynamo-plugin fit population.zarr --output embedding
      dynamo-plugin fit population.zarr --steps 2000 --seed 1 --json
      dynamo-plugin fit population.zarr --set family_options='{"units": 256}' --set held_out=0.1
      dynamo-plugin fit population.zarr --preset paper
      dynamo-plugin fit population.zarr --seeds 5 --output embeddings
      dynamo-plugin fit population.zarr --resume
      dynamo-plugin fit population.toml
      torchrun --nproc-per-node 4 -m dynamo_plugin fit population.zarr

    Ctrl-C ends a fit after the step in hand and writes what it found; --resume --overwrite then
    makes the steps that are left.
    """
    from dynamo_plugin.training.config import PRESETS

    if preset is not None and preset not in PRESETS:
        raise UnknownName(f"There is no preset {preset!r}. {suggest(preset, PRESETS)}")
    chosen = {"embedding_dim": _dimension(embedding_dim), "steps": steps}
    settings: dict[str, Any] = {
        **(PRESETS[preset] if preset is not None else {}),
        **{name: value for name, value in chosen.items() if value is not None},
        "family": family,
        "batch_size": batch_size,
        "hidden_loss": hidden_loss,
        "output_loss": output_loss,
        "output_weight": output_weight,
        "seed": seed,
        **parse_options(option or [], flag="--set"),
    }

    from dynamo_plugin.embedding import ModelEmbedding, fit
    from dynamo_plugin.embedding.saving import require_writable
    from dynamo_plugin.training import TensorBoardLogger

    places = [output] if seeds is None else [output / f"seed-{seed + k}" for k in range(seeds)]
    for place in places:
        require_writable(place, overwrite=overwrite)  # before the work, not after it
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    kept = checkpoints or output.with_name(f"{output.name}.checkpoints")
    population = opened_population(store, allow_incomplete=allow_incomplete)
    found = fit(
        population,
        seeds=seeds,
        device=device,
        progress=not quiet,
        checkpoints=kept,
        resume=resume,
        callbacks=[TensorBoardLogger(tensorboard)] if tensorboard is not None and first else [],
        **settings,
    )
    if not first:
        return
    embeddings = (found,) if isinstance(found, ModelEmbedding) else found
    folders = [
        embedding.save(place, overwrite=overwrite)
        for embedding, place in zip(embeddings, places, strict=False)  # fewer if interrupted
    ]
    if embeddings[-1].stopped == "interrupted":
        typer.echo(
            f"interrupted: {folders[-1]} holds what was found, --resume --overwrite goes on",
            err=True,
        )
        raise typer.Exit(ExitCode.INTERRUPTED)
    if checkpoints is None:
        shutil.rmtree(kept)
    summaries = [
        _summary(embedding, folder) for embedding, folder in zip(embeddings, folders, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps(summaries[0] if seeds is None else summaries, indent=2))
    else:
        lines = ["\n".join(f"{name:26}{value}" for name, value in one.items()) for one in summaries]
        typer.echo("\n\n".join(lines))


def _summary(embedding: ModelEmbedding, folder: Path) -> dict[str, Any]:
    """Return what is printed of an embedding."""
    from dynamo_plugin.analyses import analyse

    fidelity = analyse("fidelity", embedding).to_dataframe()
    return {
        "embedding": str(folder),
        "models": len(embedding),
        "embedding_dim": int(embedding.thetas.shape[1]),
        "steps": embedding.config.steps,
        "held_out_hidden_r2": float(fidelity["hidden_r2"].mean()),
        "held_out_output_agreement": float(fidelity["output_agreement"].mean()),
    }


def _dimension(given: str | None) -> int | str | None:
    return int(given) if given is not None and given.isdecimal() else given
