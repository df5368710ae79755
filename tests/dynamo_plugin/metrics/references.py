"""The metrics once more, by the formulas of the papers: slow, in float64, sample by sample."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, spearmanr

Array: TypeAlias = NDArray[Any]


def hsic(k: Array, m: Array, estimator: str) -> float:
    n = len(k)
    if estimator == "unbiased":  # Song et al. 2012
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        return float(
            (
                np.trace(k @ m)
                + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
                - 2 / (n - 2) * (one @ k @ m @ one)
            )
            / (n * (n - 3))
        )
    centring = np.eye(n) - np.ones((n, n)) / n
    k, m = centring @ k @ centring, centring @ m @ centring
    if estimator == "debiased":
        below = np.tril_indices(n, -1)
        return float(2 / (n * (n - 3)) * (k[below] * m[below]).sum())
    return float(np.trace(k @ m) / (n - 1) ** 2)


def kernel(x: Array, name: str, bandwidth: float = 1.0) -> Array:
    if name == "linear":
        return x @ x.T
    distances = pdist(x)
    width = bandwidth * np.median(distances)
    return np.asarray(np.exp(-(squareform(distances) ** 2) / (2 * width**2)))


def cka(x: Array, y: Array, name: str = "linear", estimator: str = "biased") -> float:
    k, m = kernel(x, name), kernel(y, name)
    own = hsic(k, k, estimator) * hsic(m, m, estimator)
    return hsic(k, m, estimator) / float(np.sqrt(own))


def normalised(x: Array) -> Array:
    x = x - x.mean(0)
    return np.asarray(x / np.linalg.norm(x))


def procrustes(x: Array, y: Array, measure: str) -> float:
    """Rotate with scipy, after padding with units that are zero."""
    units = max(x.shape[1], y.shape[1])
    a, b = (np.pad(z, ((0, 0), (0, units - z.shape[1]))) for z in (normalised(x), normalised(y)))
    rotation, nuclear = scipy.linalg.orthogonal_procrustes(a, b)
    if measure == "angular":
        return float(np.arccos(np.clip(nuclear, -1, 1)))
    distance = float(np.linalg.norm(a @ rotation - b))
    return distance if measure == "euclidean" else distance**2


def whitened(x: Array, alpha: float) -> Array:
    x = x - x.mean(0)
    inverse_root = scipy.linalg.inv(scipy.linalg.sqrtm(x.T @ x).real)
    return x @ (alpha * np.eye(x.shape[1]) + (1 - alpha) * inverse_root)


def canonical(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return correlations, and weights of the units of each, from covariances (Hotelling)."""
    x, y = x - x.mean(0), y - y.mean(0)
    xx, yy, xy = x.T @ x, y.T @ y, x.T @ y
    root_x = scipy.linalg.inv(scipy.linalg.sqrtm(xx).real)
    root_y = scipy.linalg.inv(scipy.linalg.sqrtm(yy).real)
    left, rho, right = np.linalg.svd(root_x @ xy @ root_y, full_matrices=False)
    return rho, root_x @ left, root_y @ right.T


def leading(x: Array, directions: int) -> Array:
    left, scales, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return np.asarray(left[:, :directions] * scales[:directions])


def pwcca(x: Array, y: Array, weights: str) -> float:
    rho, maps, _ = canonical(x, y)
    deviations = x - x.mean(0)
    projected = (deviations @ maps).T @ deviations
    alpha = (np.abs(projected) if weights == "absolute" else projected**2).sum(1)
    return float((alpha * rho).sum() / alpha.sum())


def rsa(x: Array, y: Array, dissimilarity: Any, comparison: str) -> float:
    a, b = pdist(x, dissimilarity), pdist(y, dissimilarity)
    if comparison == "cosine":
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    if comparison == "pearson":
        return float(pearsonr(a, b).statistic)
    return float(spearmanr(a, b).statistic)
