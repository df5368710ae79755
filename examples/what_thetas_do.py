"""Is every theta a network? Averages, paths and planes of thetas, on networks that hold three bits.

Eight GRUs of 32 units learn the three-bit flip-flop task (Sussillo and Barak 2013,
doi:10.1162/NECO_a_00409) and are embedded. Then, on held-out sequences: the network at their mean
theta, beside the networks, their ensemble and the average of their weights; the way from one
network to another by theta and by weights; and the best point of a plane of thetas, chosen on half
of the sequences and scored on the rest. Scores are R2 of the three bits, with standard errors.

    python examples/what_thetas_do.py
    python examples/what_thetas_do.py --output figures

Half a minute on one core. `--output` also writes the figures, as pages that need no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import dynamo_plugin as dp
from dynamo_plugin.tasks import train_flip_flop_population


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the networks and of the fit")
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--network-steps", type=int, default=300, help="updates of the networks")
    parser.add_argument("--steps", type=int, default=400, help="updates of the meta-model")
    parser.add_argument("--output", type=Path, help="folder for figures")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trained = train_flip_flop_population(
        seed=arguments.seed,
        networks=arguments.networks,
        hidden_sizes=(32,),
        steps=arguments.network_steps,
    )
    population = dp.capture(
        trained.models,
        trained.inputs,
        {},
        metadata=trained.metadata,
        targets=trained.targets,
        progress=False,
    )
    embedding = dp.fit(
        population, steps=arguments.steps, batch_size=16, seed=arguments.seed, progress=False
    )
    first, second = embedding.ids[:2]
    results = {
        "fidelity": dp.analyse("fidelity", embedding),
        "average": dp.analyse("average", embedding, networks=trained.models),
        "interpolation": dp.analyse(
            "interpolation",
            embedding,
            first=first,
            second=second,
            models=trained.models,
            progress=False,
        ),
        "landscape": dp.analyse("landscape", embedding, progress=False),
    }
    columns = ["model", "hidden_r2", "hidden_r2_mean_theta", "hidden_r2_untrained"]
    show("How well networks are emulated", results["fidelity"].to_dataframe()[columns])
    averages = results["average"].to_dataframe().iloc[0]
    scores = ["members_mean", "members_emulated_mean", "centroid_score", "ensemble_score"]
    errors = ["centroid_error", "ensemble_error", "weights_error"]
    figures = averages[[*scores, "weights_score", *errors]]
    show("The network at the mean theta", figures.to_frame("R2").astype(float).reset_index())
    paths = results["interpolation"].paths  # type: ignore[attr-defined]
    columns = ["path", "length", "barrier", "barrier_se", "barrier_position"]
    show(f"From {first} to {second}", paths[columns])
    candidates = results["landscape"].candidates  # type: ignore[attr-defined]
    columns = ["candidate", "model", "held_out_score", "held_out_se", "difference", "difference_se"]
    show("A plane of thetas: the best point, less the others", candidates[columns])
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            result.plot().write_html(arguments.output / f"{name}.html", include_plotlyjs=True)
        print(f"\nFigures: {arguments.output}")


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table under its title."""
    shown = table.astype(object).map(lambda x: f"{x:.4f}" if isinstance(x, float) else x)
    print(f"\n{title}\n{shown.mask(table.isna(), '').to_string(index=False)}")


if __name__ == "__main__":
    main()
