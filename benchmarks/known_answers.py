"""Does the embedding find what is known to be there, and nothing where there is nothing?

    python benchmarks/known_answers.py --seeds 0 1 2 [--only widths] [--json FILE]

- tasks: ten GRUs that hold three bits (flip-flop) and ten that integrate, of differing sizes, on
  the same inputs; and, beside ten of them, a twin whose hidden units are permuted. Do the thetas
  separate the tasks, and is a twin the nearest neighbour of its network?
- scaled: the same population with the states of every other network times ten.
- null: twelve GRUs of one width on one task that differ in their seed alone, against labels drawn
  at random twenty times. How often is p below 0.05?
- widths: six GRUs of 32 units and six of 64 on one task. The geometry of their states differs,
  which need not mean another solution; what comes out is reported, not judged.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import dynamo_plugin as dp
from dynamo_plugin.store import PopulationWriter
from dynamo_plugin.tasks import (
    TaskPopulation,
    merge,
    permuted_twin,
    train_flip_flop_population,
    train_integrator_population,
)
from dynamo_plugin.training import PRESETS

EXPERIMENTS = ("tasks", "scaled", "null", "widths")
TWINS_PER_TASK = 5
LABELLINGS = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--preset", choices=PRESETS, help="settings that go together")
    parser.add_argument("--steps", type=int, default=500, help="updates of the meta-model")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences per update")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.machine()}, {arguments.threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {arguments.steps} steps of {arguments.batch_size} sequences"
    )
    settings = {**(PRESETS[arguments.preset] if arguments.preset else {})}
    settings |= {"steps": arguments.steps, "batch_size": arguments.batch_size}
    rows = []
    for seed in arguments.seeds:
        for row in run(seed, arguments.only, settings):
            print(json.dumps(row), flush=True)
            rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print(
        pd.DataFrame(rows, columns=columns).to_string(index=False, na_rep="", float_format="%.3f")
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def run(
    seed: int, experiments: Sequence[str], settings: dict[str, Any]
) -> Iterator[dict[str, object]]:
    """Yield one row per experiment."""
    if "tasks" in experiments or "scaled" in experiments:
        population, twins = _tasks(seed)
        shown = {"tasks": population, "scaled": _scaled(population, 10.0)}
        for name in [name for name in shown if name in experiments]:
            row = _separation(shown[name], twins, seed, settings)
            yield {"seed": seed, "population": name, **row}
    if "null" in experiments:
        yield {"seed": seed, "population": "null", **_null(seed, settings)}
    if "widths" in experiments:
        yield {"seed": seed, "population": "widths", **_widths(seed, settings)}


def _tasks(seed: int) -> tuple[dp.Population, dict[str, str]]:
    """Networks on two tasks with some twins: the population, and each network's twin."""
    trained = merge(train_flip_flop_population(seed=seed), train_integrator_population(seed=seed))
    models, groups, twins = dict(trained.models), dict(trained.output_groups), {}
    generator = torch.Generator().manual_seed(seed)
    for task in sorted(set(groups.values())):
        for model in [m for m in trained.models if groups[m] == task][:TWINS_PER_TASK]:
            twins[model] = f"{model}-twin"
            models[twins[model]] = permuted_twin(trained.models[model], generator)
            groups[twins[model]] = task
    population = dp.capture(
        models, trained.inputs, {}, output_groups=groups, sample_ids=trained.sample_ids,
        progress=False,
    )  # fmt: skip
    return population, twins


def _separation(
    population: dp.Population, twins: dict[str, str], seed: int, settings: dict[str, Any]
) -> dict[str, object]:
    started = time.perf_counter()
    embedding = dp.fit(population, seed=seed, **settings, progress=False)
    seconds = time.perf_counter() - started
    distances = embedding.distances().to_numpy(copy=True)
    np.fill_diagonal(distances, np.inf)
    nearest = [embedding.ids[index] for index in distances.argmin(1)]
    found = [nearest[embedding.index(model)] == twin for model, twin in twins.items()]
    tasks = {model: population.output_group(model) for model in population.ids}
    clusters = dp.analyse("clusters", embedding, labels=tasks).summary()
    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    return {
        "rand_index": clusters["adjusted_rand"],
        "silhouette": clusters["label_silhouette"],
        "p": clusters["label_silhouette_p"],
        "hidden_r2": float(fidelity["hidden_r2"].mean()),
        "hidden_r2_worst": float(fidelity["hidden_r2"].min()),
        "output_agreement": float(fidelity["output_agreement"].mean()),
        "twins_found": sum(found),
        "twins": len(found),
        "fit_seconds": seconds,
    }


def _scaled(population: dp.Population, factor: float) -> dp.Population:
    """Return a copy in memory in which every other network's states are larger."""
    store: dict[str, object] = {}
    writer = PopulationWriter.create(
        store, population.inputs, models=population.ids, config=population.config
    )
    for index, model in enumerate(population.ids):
        spec = population.spec(model)
        block = writer.begin(
            model, spec, metadata={}, model_hash=population.model_hash(model), index=index
        )
        for site in population.sites(model):
            states = population.states(model, site)
            block.append_states(site, states * states.dtype.type(factor if index % 2 else 1))
        block.append_outputs(population.outputs(model))
        block.finish()
    return dp.open_population(store)


def _null(seed: int, settings: dict[str, Any]) -> dict[str, object]:
    trained: TaskPopulation = train_flip_flop_population(seed=seed, networks=12, hidden_sizes=(48,))
    population = dp.capture(trained.models, trained.inputs, {}, progress=False)
    embedding = dp.fit(population, seed=seed, **settings, progress=False)
    generator = np.random.default_rng(seed)
    significant = 0
    for _ in range(LABELLINGS):
        drawn = generator.permutation([0, 1] * (len(population.ids) // 2))
        labels = {model: str(label) for model, label in zip(population.ids, drawn, strict=True)}
        p = dp.analyse("clusters", embedding, labels=labels).summary()["label_silhouette_p"]
        assert isinstance(p, float)
        significant += p < 0.05
    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    return {
        "hidden_r2": float(fidelity["hidden_r2"].mean()),
        "significant": significant,
        "labellings": LABELLINGS,
    }


def _widths(seed: int, settings: dict[str, Any]) -> dict[str, object]:
    trained = train_flip_flop_population(seed=seed, networks=12, hidden_sizes=(32, 64))
    population = dp.capture(
        trained.models, trained.inputs, {}, metadata=trained.metadata, progress=False
    )
    embedding = dp.fit(population, seed=seed, **settings, progress=False)
    clusters = dp.analyse("clusters", embedding, labels="hidden_size").summary()
    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    return {
        "rand_index": clusters["adjusted_rand"],
        "silhouette": clusters["label_silhouette"],
        "p": clusters["label_silhouette_p"],
        "hidden_r2": float(fidelity["hidden_r2"].mean()),
        "output_agreement": float(fidelity["output_agreement"].mean()),
    }


if __name__ == "__main__":
    main()
