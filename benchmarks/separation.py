"""Does theta tell networks apart that differ, and leave alone those that do not?

    python benchmarks/separation.py --data DIR --folder DIR [--only imdb_size]

For every population of benchmarks/separation_populations.py: the silhouette (Rousseeuw 1987,
doi:10.1016/0377-0427(87)90125-7) of the true groups under the distances of a fit with default
settings (or those of --preset), and beside them under those that pairwise comparison gives, all on
the same states. Networks are trained and captured once, under --folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from separation_populations import POPULATIONS, open_or_make
from sklearn.metrics import silhouette_score

import dynamo_plugin as dp
from dynamo_plugin.training import PRESETS, Targets
from dynamo_plugin.training.alignment import align_states

ROWS = 5000
"""States per network that pairwise comparisons see."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with imdb.parquet and ag_news.parquet")
    parser.add_argument("--folder", type=Path, default=Path("separation"))
    parser.add_argument("--only", nargs="+", choices=POPULATIONS, default=list(POPULATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="base populations")
    parser.add_argument("--fit-seeds", type=int, nargs="+", default=[0, 1], help="fits of each")
    parser.add_argument("--set", nargs="*", default=[], help="settings of fit, name=value (JSON)")
    parser.add_argument("--preset", choices=PRESETS, help="settings that go together")
    parser.add_argument("--no-peers", action="store_true", help="leave pairwise comparison out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where to fit")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = dict(PRESETS[arguments.preset]) if arguments.preset else {}
    for assignment in arguments.set:
        name, value = assignment.split("=", 1)
        settings[name] = json.loads(value)
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, {settings}"
    )
    rows = []
    for name in arguments.only:
        for seed in arguments.seeds:
            population = open_or_make(name, seed, arguments.data, arguments.folder)
            groups = population.metadata["group"].to_numpy()
            peers = {} if arguments.no_peers else peer_silhouettes(population, groups)
            for fit_seed in arguments.fit_seeds:
                row = {"population": name, "seed": seed, "fit": fit_seed}
                row |= fitted_row(
                    population, groups, {**settings, "seed": fit_seed, "device": arguments.device}
                )
                row |= peers
                rows.append(row)
                shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                print(json.dumps(shown), flush=True)
    print(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="%.2f"))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def fitted_row(
    population: dp.Population, groups: NDArray[Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return what a fit finds."""
    started, cpu = time.perf_counter(), time.process_time()
    embedding = dp.fit(population, **settings, progress=False)
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
    }
    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    row["leading"] = embedding.config.leading_dim
    row["r2"] = float(fidelity["hidden_r2"].mean())
    row["agree"] = float(fidelity["output_agreement"].mean())
    row["own"] = float(fidelity["own_readout_agreement"].mean())
    for kind in ("theta", "pullback", "functional"):
        row[kind] = silhouette(embedding.distances(kind).to_numpy(), groups)
    return row


def silhouette(distances: NDArray[np.float64], groups: NDArray[Any]) -> float:
    """Return the mean silhouette of groups under distances."""
    return float(silhouette_score(distances, groups, metric="precomputed"))


def peer_silhouettes(population: dp.Population, groups: NDArray[Any]) -> dict[str, float]:
    """Return the silhouettes of the groups under pairwise comparison of states."""
    states = sampled_states(population)
    count = len(states)
    distances = {name: np.zeros((count, count)) for name in ("cka", "procrustes", "svcca")}
    centred = [x - x.mean(0) for x in states]
    bases = [np.linalg.svd(x, full_matrices=False)[0][:, :20] for x in centred]
    norms = [np.linalg.norm(x.T @ x) for x in centred]
    sizes = [np.linalg.norm(x) for x in centred]
    for a in range(count):
        for b in range(a):
            cross = centred[a].T @ centred[b]
            cka = np.linalg.norm(cross) ** 2 / (norms[a] * norms[b])
            nuclear = np.linalg.norm(cross, "nuc") / (sizes[a] * sizes[b])
            canonical = np.linalg.svd(bases[a].T @ bases[b], compute_uv=False)
            for name, value in (
                ("cka", 1 - cka),
                ("procrustes", np.arccos(np.clip(nuclear, -1, 1))),
                ("svcca", 1 - canonical.mean()),
            ):
                distances[name][a, b] = distances[name][b, a] = max(value, 0)
    row = {}
    for name, square in distances.items():
        row[name] = silhouette(square, groups)
        row[f"{name}-mds4"] = silhouette(squareform(pdist(classical_mds(square, 4))), groups)
    targets = Targets(population, sites=None, device=torch.device("cpu"))
    samples = torch.arange(len(population.sample_ids))
    mean, scale = targets.state_statistics(samples, "hidden")
    generator = torch.Generator().manual_seed(0)
    alignment = align_states(targets, samples, mean, scale, stage="hidden", generator=generator)
    gram = alignment.deviations.numpy()
    norm = np.diag(gram)
    aligned = np.sqrt(np.clip(norm[:, None] + norm[None] - 2 * gram, 0, None))
    row["gpa"] = silhouette(aligned, groups)
    for dims in (1, 2, 4):
        placed = classical_mds(aligned, dims)
        row[f"gpa-pca{dims}"] = silhouette(squareform(pdist(placed)), groups)
    return row


def sampled_states(population: dp.Population) -> list[NDArray[np.float64]]:
    """Return the same rows of every network's states, (row, unit)."""
    rows = int(population.offsets[-1])
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(ROWS, rows), replace=False))
    found = []
    for model in population.ids:
        sites = [site.name for site in population.spec(model).sites]
        parts = [population.states(model, site)[chosen] for site in sites]
        found.append(np.concatenate(parts, axis=1).astype(np.float64))
    return found


def classical_mds(distances: NDArray[np.float64], dims: int) -> NDArray[np.float64]:
    """Return coordinates for distances (Torgerson 1952, doi:10.1007/BF02288916)."""
    centring = np.eye(len(distances)) - 1 / len(distances)
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    largest = values.argsort()[::-1][:dims]
    coordinates: NDArray[np.float64] = vectors[:, largest] * np.sqrt(values[largest].clip(min=0))
    return coordinates


if __name__ == "__main__":
    main()
