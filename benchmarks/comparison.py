"""DYNAMO beside pairwise metrics on one population whose groups are known, and what each costs.

    python benchmarks/comparison.py --data DIR --folder DIR [--population imdb_size] [--seeds 0]

For a population of benchmarks/separation_populations.py, one row per way to compare its networks,
no way left out:

- silhouette: of the true groups (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7);
- accuracy: leave-one-out, of the nearest other network (1-NN on the distances; of networks that
  are equally near, the first);
- ARI: adjusted Rand index (Hubert and Arabie 1985, doi:10.1007/BF01908075) of the true groups and
  clusters of average linkage, as many as there are groups;
- p: share of the relabellings whose silhouette is at least as large, over all there are up to
  --max-exact of them (184,756 for 10 + 10), else over 9,999 drawn ones;
- seconds: CPU time on one thread, reading included. Of theta and functional: the fit and the
  distances; the second number is that of the distances alone.

CKA, SVCCA, PWCCA and Procrustes see --rows states (steps) of every network, RSA --rsa-rows of them
(it compares all pairs of rows), DSA whole trials of --trials samples. All sites of a network are
joined. Metrics and fits have default settings. --steps is there for a trial run only.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import sklearn
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from separation_populations import POPULATIONS, open_or_make
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

import dynamo_plugin as dp
from dynamo_plugin.analyses._label_agreement import one_hot, silhouette
from dynamo_plugin.analyses._permutation import permutation_test

PERMUTATIONS = 9999


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with imdb.parquet and ag_news.parquet")
    parser.add_argument("--folder", type=Path, default=Path("separation"), help="of populations")
    parser.add_argument("--population", choices=POPULATIONS, default="imdb_size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="base populations")
    parser.add_argument("--fit-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rsa-rows", type=int, default=2000)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--max-exact", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of the fit, instead of the default")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    with threadpool_limits(limits=arguments.threads):
        for seed in arguments.seeds:
            population = open_or_make(arguments.population, seed, arguments.data, arguments.folder)
            rows += compare(population, seed, arguments)
    print(
        f"\n{arguments.population}: {platform.machine()}, {processor()}, {arguments.threads} "
        f"thread(s), Python {platform.python_version()}, torch {torch.__version__}, "
        f"NumPy {np.__version__}, SciPy {scipy.__version__}, scikit-learn {sklearn.__version__}\n"
    )
    print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def compare(
    population: dp.Population, seed: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one row per way to compare networks."""
    groups = population.metadata["group"].to_numpy()
    sites = {model: list(population.sites(model)) for model in population.ids}
    settings = {} if arguments.steps is None else {"steps": arguments.steps}
    started = time.process_time()
    embedding = dp.fit(
        population, seed=arguments.fit_seed, device="cpu", progress=False, **settings
    )
    fitted = time.process_time() - started
    steps = int(population.offsets[-1])
    states = f"{min(arguments.rows, steps):,} of {steps:,} steps"
    fewer = f"{min(arguments.rsa_rows, steps):,} of {steps:,} steps"
    samples = len(population.lengths)
    some = np.sort(
        np.random.default_rng(0).choice(samples, min(arguments.trials, samples), replace=False)
    )
    of_states = {"site": sites, "rows": arguments.rows}
    of_pairs = {"site": sites, "rows": arguments.rsa_rows}
    of_trials = {"site": sites, "samples": some}
    held_out = f"{len(embedding.held_out_samples):,} held-out samples"
    ways: list[tuple[str, str, str, dict[str, Any], float]] = [
        ("DYNAMO, theta", "theta", "fit on all", {}, fitted),
        ("DYNAMO, functional", "functional", held_out, {}, fitted),
        ("SVCCA", "svcca", states, of_states, 0.0),
        ("PWCCA", "pwcca", states, of_states, 0.0),
        ("CKA", "cka", states, of_states, 0.0),
        ("Procrustes", "procrustes", states, of_states, 0.0),
        ("RSA", "rsa", fewer, of_pairs, 0.0),
        ("DSA", "dsa", f"{len(some):,} of {samples:,} trials", of_trials, 0.0),
    ]
    found = []
    for name, metric, seen, options, before in ways:
        # Opened anew, so that nothing that an earlier row read is still in memory.
        networks = embedding if before else dp.open_population(population.location)
        started = time.process_time()
        result = dp.pairwise(networks, metric, progress=False, **options)
        alone = time.process_time() - started
        row = {"seed": seed, "way": name, "seen": seen, "settings": dict(result.settings)}
        row |= agreement_with(result.symmetric_distances(), groups, arguments.max_exact)
        row |= {"seconds": before + alone, "distances": alone}
        found.append(row)
        print(json.dumps({key: row[key] for key in row if key != "settings"}), flush=True)
    return found


def agreement_with(
    distances: NDArray[np.float64], groups: NDArray[Any], max_exact: int
) -> dict[str, Any]:
    """Return how well distances tell the groups apart."""
    names, codes = np.unique(groups, return_inverse=True)
    apart = distances + np.where(np.eye(len(codes), dtype=bool), np.inf, 0.0)
    tree = linkage(squareform(distances, checks=False), method="average")
    clusters = fcluster(tree, len(names), criterion="maxclust")
    test = permutation_test(
        silhouettes(distances, len(names)),
        codes.astype(np.int64),
        permutations=PERMUTATIONS,
        max_exact=max_exact,
        seed=0,
    )
    return {
        "silhouette": float(silhouette_score(distances, codes, metric="precomputed")),
        "accuracy": float((codes[apart.argmin(1)] == codes).mean()),
        "ARI": float(adjusted_rand_score(codes, clusters)),
        "p": float(test.p_values[0]),
        "labellings": test.labellings,
        "exact": test.exact,
    }


def silhouettes(
    distances: NDArray[np.float64], values: int
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Return the function from (labelling, point) codes to (1, labelling) silhouettes."""

    def statistics(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        return silhouette(distances, one_hot(codes, values))[None]

    return statistics


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        "| seed | distance | of | silhouette | accuracy | ARI | p | seconds (without the fit) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = f"{row['seconds']:.3g}"
        if row["seconds"] > row["distances"]:
            seconds += f" ({row['distances']:.2g})"
        lines.append(
            f"| {row['seed']} | {row['way']} | {row['seen']} | {row['silhouette']:.3f} | "
            f"{row['accuracy']:.2f} | {row['ARI']:.2f} | {row['p']:.2g} | {seconds} |"
        )
    kinds = pd.DataFrame(rows)[["labellings", "exact"]].drop_duplicates()
    notes = [
        f"p over {'all' if exact else 'the given and'} {count:,} "
        f"{'labellings' if exact else 'drawn labellings'}"
        for count, exact in kinds.itertuples(index=False)
    ]
    return "\n".join(lines) + "\n\n" + "; ".join(notes) + "."


def processor() -> str:
    """Return the name of the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "processor unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "processor unknown"


if __name__ == "__main__":
    main()
