"""What a fit says of networks whose groups are known, and what pairwise comparison says."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

import dynamo_plugin as dp

__all__ = ["fitted_row", "pairwise_row", "read_settings", "shared_channels_r2", "show"]

ROWS = 5000
"""States per network and site that pairwise comparison sees."""


def read_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Return settings of `dp.fit` from texts name=value, where a value may be JSON."""
    settings = {}
    for assignment in assignments:
        name, found, value = assignment.partition("=")
        if not found:
            raise SystemExit(f"--set takes name=value, got {assignment!r}.")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="{:.3f}".format))


def fitted_row(
    population: dp.Population, folder: Path, *, overwrite: bool, **settings: Any
) -> tuple[dict[str, Any], dp.ModelEmbedding]:
    """Fit, save, report, and return the figures of one variant.

    Parameters
    ----------
    population
        Its metadata have the true groups in the column `group`.
    folder
        Where embedding and report go.
    overwrite
        Whether to replace earlier ones.
    **settings
        Of `dp.fit`.

    Returns
    -------
    tuple
        Seconds of the fit, of the clock and of the processor; hidden R2 on held-out inputs, of all
        networks, of every group (`r2 a`) and at the mean theta of the output group, which is what
        the state maps reach alone; output agreement; the silhouette of the groups (Rousseeuw 1987,
        doi:10.1016/0377-0427(87)90125-7) for every kind of distance; for thetas and for functional
        distances its p-value under permuted groups, and the share of networks that k-means puts
        into their group. And the embedding.
    """
    groups = population.metadata["group"].to_numpy()
    started, cpu = time.perf_counter(), time.process_time()
    embedding = dp.fit(population, progress=False, **settings)
    row: dict[str, Any] = {
        "fit_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
    }
    folder.mkdir(parents=True, exist_ok=True)
    embedding.save(folder / "embedding", overwrite=overwrite)
    dp.write_report(embedding, folder / "report.html", labels="group", overwrite=overwrite)
    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    row["r2"] = float(fidelity["hidden_r2"].mean())
    row["r2_mean_theta"] = float(fidelity["hidden_r2_mean_theta"].mean())
    for group, values in fidelity.groupby(groups)["hidden_r2"]:
        row[f"r2 {group}"] = float(values.mean())
    row["agree"] = float(fidelity["output_agreement"].mean())
    for kind in ("theta", "pullback", "functional"):
        row[kind] = _silhouette(embedding.distances(kind).to_numpy(), groups)
    for kind, end in (("theta", ""), ("functional", " functional")):
        clusters = dp.analyse("clusters", embedding, labels="group", distance=kind)
        row[f"p{end}"] = clusters.summary()["label_silhouette_p"]
        row[f"k-means{end}"] = _matched(clusters.assignments["cluster"].to_numpy(), groups)
    return row, embedding


def pairwise_row(population: dp.Population) -> dict[str, float]:
    """Return the silhouettes of the groups when networks are compared two by two.

    One minus linear CKA (Kornblith et al. 2019, arXiv:1905.00414) and the angle of orthogonal
    Procrustes analysis (Williams et al. 2021, arXiv:2110.14739), on the same random rows (steps, or
    positions of feature maps) of every network, averaged over sites.
    """
    groups = population.metadata["group"].to_numpy()
    names = population.ids
    sites = [[site.name for site in population.spec(model).sites] for model in names]
    totals = {name: np.zeros((len(names), len(names))) for name in ("cka", "procrustes")}
    for column in zip(*sites, strict=True):
        states = [_rows(population, *pair) for pair in zip(names, column, strict=True)]
        norms = [np.linalg.norm(x.T @ x) for x in states]
        for a, b in itertools.combinations(range(len(names)), 2):
            cross = states[a].T @ states[b]
            cka = np.linalg.norm(cross) ** 2 / (norms[a] * norms[b])
            nuclear = np.linalg.norm(cross, "nuc")
            cosine = nuclear / (np.linalg.norm(states[a]) * np.linalg.norm(states[b]))
            for name, value in (("cka", 1 - cka), ("procrustes", np.arccos(min(cosine, 1)))):
                totals[name][[a, b], [b, a]] += max(value, 0) / len(sites[0])
    return {name: _silhouette(total, groups) for name, total in totals.items()}


def shared_channels_r2(population: dp.Population, widths: Sequence[int]) -> float:
    """Return the hidden R2 that affine maps reach at most from channels that all networks share.

    The leading principal components of the states of all networks, side by side: as many as the
    meta-model has channels at a stage. Only a theta that changes the channels themselves, from one
    network to the next, can go beyond. Averaged over stages.

    Parameters
    ----------
    widths
        Channels of the meta-model, stage by stage.
    """
    shares = []
    for number, width in enumerate(widths):
        parts = []
        for model in population.ids:
            rows = _rows(population, model, population.spec(model).sites[number].name)
            parts.append(rows / np.sqrt(np.square(rows).sum()))
        strengths = np.linalg.svd(np.concatenate(parts, axis=1), compute_uv=False) ** 2
        shares.append(strengths[:width].sum() / strengths.sum())
    return float(np.mean(shares))


def _rows(population: dp.Population, model: str, site: str) -> NDArray[np.float64]:
    """Return (row, unit): the same rows of every network, centred."""
    states = population.states(model, site)
    if states.ndim > 2:
        states = np.moveaxis(states.reshape(*states.shape[:2], -1), 1, 2)
        states = states.reshape(-1, states.shape[2])
    count = len(states)
    chosen = np.sort(np.random.default_rng(0).choice(count, min(ROWS, count), replace=False))
    rows: NDArray[np.float64] = states[chosen].astype(np.float64)
    return rows - rows.mean(0)


def _silhouette(distances: NDArray[np.float64], groups: NDArray[Any]) -> float:
    return float(silhouette_score(distances, groups, metric="precomputed"))


def _matched(clusters: NDArray[Any], groups: NDArray[Any]) -> float:
    """Return the share of networks whose cluster is that of their group, at the best matching."""
    table = pd.crosstab(clusters, groups).to_numpy()
    columns = range(table.shape[1])
    best = max(
        sum(table[row, column] for row, column in enumerate(order))
        for order in itertools.permutations(columns, min(table.shape))
    )
    return float(best) / len(groups)
