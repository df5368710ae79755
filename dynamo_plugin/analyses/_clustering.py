"""Partitions of points by the usual methods, and how many clusters there are."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pandas as pd
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dynamo_plugin.analyses._label_agreement import one_hot, silhouette
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CRITERIA", "METHODS", "Criterion", "Method", "Partition", "find_partition"]

Method: TypeAlias = Literal["kmeans", "gaussian_mixture", "hdbscan", "agglomerative"]
Criterion: TypeAlias = Literal["silhouette", "bic", "gap"]

CRITERIA: dict[str, tuple[str, ...]] = {
    "kmeans": ("silhouette", "gap"),
    "gaussian_mixture": ("bic", "silhouette", "gap"),
    "hdbscan": (),
    "agglomerative": ("silhouette", "gap"),
}
"""What may choose the number of clusters of a method; the first does by default."""

METHODS = tuple(CRITERIA)

MOST_CLUSTERS = 8
"""Largest number of clusters tried where none is given."""

STARTS = 10
"""k-means++ starts, of which the best is kept."""

REFERENCES, REFERENCE_STARTS = 20, 3
"""Reference sets of the gap statistic, and starts of k-means in them and in the points."""

POINTS_PER_DIMENSION = 8
"""Points for every principal component that a mixture is fitted on: its covariance needs them."""

MIXTURE_VARIANCE, MIXTURE_FLOOR = 0.95, 0.05
"""Share of the variance that is enough for a mixture, and least variance of a component as a share
of the whole, without which the likelihood grows as components shrink onto single points."""

HDBSCAN_SIZE = 5
"""Smallest cluster of HDBSCAN, where there are points enough for a few."""


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Points in clusters."""

    codes: NDArray[np.int64]
    """(point,): the cluster, numbered from 0 in the order of their first point; -1 for none."""
    chosen_by: Criterion | None
    """What chose the number of clusters; None if it was given or the method finds it."""
    selection: pd.DataFrame
    """One row per number of clusters tried: `clusters`, `score`, and `error` for the gap."""

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.codes.max()) + 1

    @property
    def members(self) -> NDArray[np.float64]:
        """(point, cluster) indicators, in which points without a cluster have one of their own."""
        codes, alone = self.codes.copy(), self.codes < 0
        codes[alone] = self.count + np.arange(int(alone.sum()))
        return one_hot(codes, int(codes.max()) + 1)


def find_partition(
    coordinates: NDArray[np.float64],
    distances: NDArray[np.float64],
    *,
    method: Method,
    clusters: int | None,
    choose_by: Criterion | None,
    seed: int,
) -> Partition:
    """Cluster points; see `dynamo_plugin.analyses.clusters` for the methods.

    Parameters
    ----------
    coordinates
        (point, dimension).
    distances
        (point, point), those of the coordinates.
    method, clusters, choose_by, seed
        As there; `choose_by` is used where `clusters` is None.

    Raises
    ------
    InvalidInput
        If there are fewer distinct points than there should be clusters.
    """
    points, distinct = len(coordinates), len(np.unique(coordinates, axis=0))
    most = min(points - 1, distinct)
    if most < 2:
        raise InvalidInput(
            f"Clusters need thetas that differ; all {points} are equal. Fit longer, or with a "
            "smaller theta_decay."
        )
    if clusters is not None and not 2 <= clusters <= most:
        raise InvalidInput(
            f"Expected from 2 to {most} clusters, for {points} models at {distinct} distinct "
            f"places; got {clusters}."
        )
    # One thread: on so few points, threads wait for each other far longer than they work.
    with threadpool_limits(limits=1, user_api="openmp"):
        if method == "hdbscan":
            return Partition(_in_order(_hdbscan(distances)), None, _selection([]))
        if clusters is not None:
            codes = _assign(method, coordinates, clusters, seed)
            return Partition(_in_order(codes), None, _selection([]))
        criterion: Criterion = choose_by or CRITERIA[method][0]  # type: ignore[assignment]
        largest = min(MOST_CLUSTERS, most)
        if criterion == "gap":
            rows, best = _gaps(method, coordinates, largest, seed)
            codes = _assign(method, coordinates, best, seed)
            return Partition(_in_order(codes), criterion, _selection(rows))
        if criterion == "bic":
            mixtures = [_mixture(coordinates, k, seed) for k in range(1, largest + 1)]
            rows = [{"clusters": k, "score": bic} for k, (_, bic) in enumerate(mixtures, start=1)]
            codes = mixtures[int(np.argmin([bic for _, bic in mixtures]))][0]
            return Partition(_in_order(codes), criterion, _selection(rows))
        found = [_assign(method, coordinates, k, seed) for k in range(2, largest + 1)]
        scores = [_mean_silhouette(distances, codes) for codes in found]
        rows = [{"clusters": k, "score": score} for k, score in enumerate(scores, start=2)]
        return Partition(_in_order(found[int(np.argmax(scores))]), criterion, _selection(rows))


def _selection(rows: list[dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["clusters", "score", "error"]).astype(
        {"clusters": "int64", "score": "Float64", "error": "Float64"}
    )


def _in_order(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return codes numbered from 0 in the order of their first point; -1 stays."""
    values, first = np.unique(codes, return_index=True)
    first = first[values >= 0]
    ordered = np.full(len(codes), -1, dtype=np.int64)
    for code, start in enumerate(np.sort(first).tolist()):
        ordered[codes == codes[start]] = code
    return ordered


def _mean_silhouette(distances: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    in_order = _in_order(codes)
    if in_order.max() < 1:
        return -1.0
    return float(silhouette(distances, one_hot(in_order[None], int(in_order.max()) + 1))[0])


def _assign(
    method: Method,
    coordinates: NDArray[np.float64],
    clusters: int,
    seed: int,
    *,
    starts: int = STARTS,
) -> NDArray[np.int64]:
    if clusters == 1:
        return np.zeros(len(coordinates), dtype=np.int64)
    if method == "gaussian_mixture":
        return _mixture(coordinates, clusters, seed, starts=starts)[0]
    if method == "agglomerative":
        model = AgglomerativeClustering(clusters, linkage="ward")
    else:
        model = KMeans(clusters, n_init=starts, random_state=seed)
    return np.asarray(model.fit_predict(coordinates), dtype=np.int64)


def _mixture(
    coordinates: NDArray[np.float64], clusters: int, seed: int, *, starts: int = STARTS
) -> tuple[NDArray[np.int64], float]:
    """Return the components of a mixture with one covariance for all, and its BIC."""
    pca = PCA().fit(coordinates)
    explained = np.cumsum(pca.explained_variance_ratio_)
    enough = int(np.argmax(explained >= MIXTURE_VARIANCE)) + 1
    kept = min(enough, max(len(coordinates) // POINTS_PER_DIMENSION, 1))
    reduced = pca.transform(coordinates)[:, :kept]
    reduced /= np.sqrt(reduced.var(0).mean())
    mixture = GaussianMixture(
        clusters,
        covariance_type="tied",
        reg_covar=MIXTURE_FLOOR,
        n_init=starts,
        max_iter=1000,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Places that differ may fall together in few components; some clusters are then empty.
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        codes = np.asarray(mixture.fit_predict(reduced), dtype=np.int64)
    return codes, float(mixture.bic(reduced))


def _hdbscan(distances: NDArray[np.float64]) -> NDArray[np.int64]:
    size = max(2, min(HDBSCAN_SIZE, len(distances) // 4))
    model = HDBSCAN(min_cluster_size=size, metric="precomputed", copy=True)
    return np.asarray(model.fit_predict(distances), dtype=np.int64)


def _gaps(
    method: Method, coordinates: NDArray[np.float64], largest: int, seed: int
) -> tuple[list[dict[str, float]], int]:
    """Return the gap of every number of clusters, and the smallest that the next does not beat.

    References are uniform over the box of the principal components (Tibshirani et al. 2001,
    doi:10.1111/1467-9868.00293, choice b).
    """
    placed = PCA().fit_transform(coordinates)
    low, high = placed.min(0), placed.max(0)
    uniform = np.random.default_rng(seed).uniform(size=(REFERENCES, *placed.shape))
    counts = range(1, largest + 1)
    # A partition into as many clusters as places has no dispersion; its logarithm must exist.
    floor = 1e-12 * _dispersion(placed, np.zeros(len(placed), dtype=np.int64))

    def logs(points: NDArray[np.float64]) -> list[float]:
        found = (_assign(method, points, k, seed, starts=REFERENCE_STARTS) for k in counts)
        return [float(np.log(max(_dispersion(points, codes), floor))) for codes in found]

    expected = np.array([logs(reference) for reference in low + (high - low) * uniform])
    gaps = expected.mean(0) - np.array(logs(placed))
    errors = expected.std(0) * np.sqrt(1 + 1 / REFERENCES)
    holds = gaps[:-1] >= gaps[1:] - errors[1:]
    best = int(np.argmax(holds)) + 1 if holds.any() else largest
    rows = [
        {"clusters": k, "score": gap, "error": error}
        for k, gap, error in zip(counts, gaps.tolist(), errors.tolist(), strict=True)
    ]
    return rows, best


def _dispersion(points: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Sum of the squared distances to the centroids of the clusters."""
    members = one_hot(codes, int(codes.max()) + 1)
    members = members[:, members.any(0)]
    centroids = members.T @ points / members.sum(0)[:, None]
    return float(((points - members @ centroids) ** 2).sum())
