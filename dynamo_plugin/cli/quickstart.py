"""`dynamo-plugin quickstart`: the whole way on networks that read handwritten digits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynamo_plugin.errors import StoreExists

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["command"]


def command(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for population, embedding and report.")
    ] = Path("quickstart"),
    networks: Annotated[
        int, typer.Option(min=2, help="Networks per architecture and share of training data.")
    ] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of the meta-model.")] = 500,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bars.")] = False,
) -> None:
    """Train, capture, embed and report on a small population, in a few minutes.

    Networks of three architectures (GRU, LSTM, vanilla RNN) and two shares of training data learn
    to read handwritten digits row by row. Their hidden states on held-out images are captured and
    embedded; the report shows which of them found the same solution.

    \b
    Examples:
      dynamo-plugin quickstart
      dynamo-plugin quickstart --output /tmp/digits --seed 1
      dynamo-plugin quickstart --networks 8 --steps 2000 --json
    """
    paths = {
        "population": output / "population.zarr",
        "embedding": output / "embedding",
        "report": output / "report.html",
    }
    for path in paths.values():
        if path.exists() and not overwrite:
            raise StoreExists(
                f"{path} exists. Choose another folder with --output, or replace what is there "
                "with --overwrite."
            )
    from dynamo_plugin.analyses import analyse
    from dynamo_plugin.embedding import fit
    from dynamo_plugin.recording import capture
    from dynamo_plugin.report import write_report
    from dynamo_plugin.tasks import train_digits_population

    started = time.perf_counter()
    digits = train_digits_population(seed=seed, networks_per_group=networks, progress=not quiet)
    population = capture(
        digits.models,
        digits.inputs,
        str(paths["population"]),
        metadata=digits.metadata,
        sample_ids=digits.sample_ids,
        targets=digits.targets,
        output_groups=digits.output_groups,
        overwrite=overwrite,
        progress=not quiet,
    )
    embedding = fit(population, steps=steps, seed=seed, progress=not quiet)
    embedding.save(paths["embedding"], overwrite=overwrite)
    write_report(embedding, paths["report"], labels="architecture", overwrite=overwrite)

    fidelity = analyse("fidelity", embedding)
    clusters = {
        label: analyse("clusters", embedding, labels=label, seed=seed).summary()
        for label in ("architecture", "fraction")
    }
    groups = _groups(digits.metadata, fidelity.to_dataframe())
    if as_json:
        result = {
            "paths": {name: str(path) for name, path in paths.items()},
            "seed": seed,
            "groups": groups.to_dict(orient="records"),
            "clusters": clusters,
        }
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo(groups.to_string(index=False, float_format="{:.3f}".format))
    typer.echo("")
    for label, summary in clusters.items():
        typer.echo(_clusters_line(label, summary))
    typer.echo("")
    for name, path in paths.items():
        typer.echo(f"{name:12}{path}")
    typer.echo(f"{'seconds':12}{time.perf_counter() - started:.0f}")


def _groups(metadata: pd.DataFrame, fidelity: pd.DataFrame) -> pd.DataFrame:
    """One row per architecture and share of data: accuracy, and how well it is emulated."""
    table = metadata.join(fidelity.set_index("model")[["hidden_r2", "output_agreement"]])
    groups = table.groupby(["architecture", "fraction"], as_index=False).agg(
        networks=("score", "size"),
        accuracy=("score", "mean"),
        hidden_r2=("hidden_r2", "mean"),
        output_agreement=("output_agreement", "mean"),
    )
    return groups.rename(columns={"fraction": "data"})


def _clusters_line(label: str, summary: dict[str, Any]) -> str:
    return (
        f"{label:14}silhouette {summary['label_silhouette']:6.3f} "
        f"(p {summary['label_silhouette_p']:.3f})   nearest neighbour alike "
        f"{summary['neighbour_accuracy']:.3f} (p {summary['neighbour_accuracy_p']:.3f})"
    )
