"""What comparing two networks costs, beside plain code, other tools and the matrix products alone.

    python benchmarks/metrics.py [--models 20 50] [--rounds 3] [--only cka procrustes]

CPU milliseconds per pair on one core, of all pairs of so many networks of 128 units on 5,000
samples (DSA: 100 trials x 50 steps x 32 units, 3 delays, rank 24), preparation included. `plain`
is the formula for one pair in NumPy, everything computed for every pair; `cached` is the same with
what depends on one network computed beforehand. `floor` is the time of the products of states
alone, at the rate of a large matrix product of that dtype in the same run. `error` is the largest
difference from `plain`. rsatoolbox and dsa-metric are measured where they are installed; `worse`
are the pairs on which ours finds a larger distance than dsa-metric.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable
from itertools import combinations, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

import dynamo_plugin as dp

Array: TypeAlias = NDArray[Any]

SAMPLES, UNITS, DIRECTIONS = 5000, 128, 20
TRIALS, STEPS, DSA_UNITS = 100, 50, 32
DSA_OPTIONS = {"delays": 3, "rank": 24}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=4, help="pairs that peers are timed on")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, NumPy {np.__version__}, torch {torch.__version__}")
    rows = []
    with threadpool_limits(limits=1):
        for name in arguments.only:
            for models in arguments.models:
                rows.append(
                    measure(
                        name,
                        models,
                        rounds=arguments.rounds,
                        pairs=0 if arguments.no_peers else arguments.pairs,
                    )
                )
                shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}
                print(json.dumps(shown), flush=True)
    print(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="%.3g"))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def measure(name: str, models: int, *, rounds: int, pairs: int) -> dict[str, Any]:
    """Return milliseconds per pair, of us and of others."""
    metric_name, options, dtype, peers = CASES[name]
    metric = dp.metric(metric_name, **options)
    states = trials_of(models) if metric.reads == "trials" else states_of(models, dtype)
    count = models * (models - 1) // 2
    row: dict[str, Any] = {"case": name, "dtype": dtype, "models": models}
    found: list[float] = []
    values = np.empty(0)
    for _ in range(rounds):
        started = time.process_time()
        values = metric.compare_many([metric.prepare(x) for x in states])
        found.append((time.process_time() - started) / count * 1e3)
    row["ours"] = min(found)
    if metric.reads == "states":
        width = DIRECTIONS if metric_name == "svcca" else UNITS
        row["floor"] = 2 * width**2 * SAMPLES / product_rate(dtype) * 1e3
        row["over floor"] = row["ours"] / row["floor"]
    if not pairs:
        return row
    chosen = list(islice(combinations(range(models), 2), pairs))
    for way, peer in peers.items():
        results = []
        started = time.process_time()
        for i, j in chosen:
            results.append(peer(states[i], states[j]))
        row[way] = (time.process_time() - started) / len(chosen) * 1e3
        ours = np.array([values[pair] for pair in chosen])
        if way == "plain":
            row["error"] = float(np.abs(ours - results).max())
        if way == "dsa-metric":
            row["worse"] = int((ours > np.array(results) + 1e-6).sum())
    if metric_name == "svcca":
        row["cached"] = cached_svcca(states, chosen)
    return row


def states_of(models: int, dtype: str) -> list[Array]:
    """Return (sample, unit) states of networks that have something in common."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(SAMPLES, 40))
    scales = np.geomspace(1, 0.05, UNITS)
    found = []
    for _ in range(models):
        mixed = common @ rng.normal(size=(40, UNITS)) / 6 + rng.normal(size=(SAMPLES, UNITS))
        turn = np.linalg.qr(rng.normal(size=(UNITS, UNITS)))[0]
        found.append(np.tanh(mixed * scales @ turn).astype(dtype))
    return found


def trials_of(models: int) -> list[Array]:
    """Return (trial, time, unit) states of random recurrent networks on the same inputs."""
    inputs = np.random.default_rng(0).normal(size=(STEPS, TRIALS, 4))
    found = []
    for seed in range(models):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(DSA_UNITS, DSA_UNITS)) / DSA_UNITS**0.5 * rng.uniform(0.8, 1.5)
        drive, state = rng.normal(size=(4, DSA_UNITS)), np.zeros((TRIALS, DSA_UNITS))
        states = []
        for now in inputs:
            state = 0.5 * state + 0.5 * np.tanh(state @ weights + 0.5 * now @ drive)
            states.append(state)
        found.append(np.stack(states, 1))
    return found


def product_rate(dtype: str) -> float:
    """Return floating-point operations per second of a large matrix product."""
    matrix = np.random.default_rng(0).normal(size=(2048, 2048)).astype(dtype)
    found = []
    for _ in range(5):
        started = time.process_time()
        _ = matrix @ matrix
        found.append(2 * 2048**3 / (time.process_time() - started))
    return max(found)


def plain_cka(x: Array, y: Array) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))


def plain_procrustes(x: Array, y: Array) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.arccos(np.clip(np.linalg.norm(x.T @ y, "nuc"), -1, 1)))


def plain_svcca(x: Array, y: Array) -> float:
    a, b = (np.linalg.svd(z - z.mean(0), full_matrices=False)[0][:, :DIRECTIONS] for z in (x, y))
    return float(np.linalg.svd(a.T @ b, compute_uv=False).mean())


def cached_svcca(states: list[Array], pairs: list[tuple[int, int]]) -> float:
    """Return milliseconds per pair where singular vectors are known."""
    needed = sorted({place for pair in pairs for place in pair})
    bases = {
        place: np.linalg.svd(states[place] - states[place].mean(0), full_matrices=False)[0]
        for place in needed
    }
    started = time.process_time()
    for i, j in pairs:
        a, b = bases[i][:, :DIRECTIONS], bases[j][:, :DIRECTIONS]
        _ = np.linalg.svd(a.T @ b, compute_uv=False).mean()
    return (time.process_time() - started) / len(pairs) * 1e3


def plain_pwcca(x: Array, y: Array) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    (q, r), (p, s) = np.linalg.qr(x), np.linalg.qr(y)
    u, rho, v = np.linalg.svd(q.T @ p)
    alpha, beta = np.abs(u.T @ r).sum(1), np.abs(v @ s).sum(1)
    return float((alpha @ rho / alpha.sum() + beta @ rho / beta.sum()) / 2)


def plain_rsa(comparison: str) -> Callable[[Array, Array], float]:
    def run(x: Array, y: Array) -> float:
        a, b = (pdist(z, "correlation") for z in (x, y))
        if comparison == "spearman":
            a, b = rankdata(a), rankdata(b)
        return float(np.corrcoef(a, b)[0, 1])

    return run


def rsatoolbox(comparison: str) -> Callable[[Array, Array], float]:
    def run(x: Array, y: Array) -> float:
        from rsatoolbox.data import Dataset
        from rsatoolbox.rdm import calc_rdm, compare

        a, b = (calc_rdm(Dataset(z), method="correlation") for z in (x, y))
        return float(compare(a, b, method=comparison)[0, 0])

    return run


def dsa_metric(x: Array, y: Array) -> float:
    from DSA import SimilarityTransformDist

    a, b = (torch.from_numpy(dp.metric("dsa", **DSA_OPTIONS).prepare(z).operator) for z in (x, y))
    search = SimilarityTransformDist(iters=1500, lr=5e-3, score_method="angular")
    return float(search.fit_score(a.float().clone(), b.float().clone()))


def peers(plain: Callable[[Array, Array], float], **others: Any) -> dict[str, Any]:
    """Return the ways that are at hand."""
    installed = {name: way for name, way in others.items() if importlib.util.find_spec(name)}
    return {"plain": plain, **installed}


CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "svcca": ("svcca", {"directions": DIRECTIONS}, "float64", peers(plain_svcca)),
    "cka": ("cka", {}, "float32", peers(plain_cka)),
    "cka64": ("cka", {}, "float64", peers(plain_cka)),
    "procrustes": ("procrustes", {}, "float32", peers(plain_procrustes)),
    "procrustes64": ("procrustes", {}, "float64", peers(plain_procrustes)),
    "pwcca": ("pwcca", {}, "float64", peers(plain_pwcca)),
    "rsa": ("rsa", {}, "float32", peers(plain_rsa("pearson"), rsatoolbox=rsatoolbox("corr"))),
    "rsa-spearman": (
        "rsa",
        {"comparison": "spearman"},
        "float32",
        peers(plain_rsa("spearman"), rsatoolbox=rsatoolbox("spearman")),
    ),
    "dsa": (
        "dsa",
        DSA_OPTIONS,
        "float64",
        {"dsa-metric": dsa_metric} if importlib.util.find_spec("DSA") else {},
    ),
}


if __name__ == "__main__":
    main()
