"""Every metric with the options that change what it is, and states to try them on."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import dynamo_plugin as dp
from dynamo_plugin.registry.interfaces import Metric

Configuration: TypeAlias = tuple[str, dict[str, Any]]

CONFIGURATIONS: list[Configuration] = [
    *(
        ("cka", {"kernel": kernel, "estimator": estimator})
        for kernel in ("linear", "rbf")
        for estimator in ("biased", "unbiased", "debiased")
    ),
    *(("procrustes", {"measure": measure}) for measure in ("angular", "euclidean", "squared")),
    *(("shape", {"alpha": alpha}) for alpha in (0, 0.5, 1)),
    ("shape", {"alpha": 0.5, "relative": True, "measure": "euclidean"}),
    ("cca", {}),
    ("cca_r2", {}),
    ("svcca", {"directions": 3}),
    ("svcca", {"variance": 0.9}),
    *(
        ("pwcca", {"weights": weights, "side": side})
        for weights in ("absolute", "variance")
        for side in ("mean", "first", "second")
    ),
    *(
        ("rsa", {"dissimilarity": dissimilarity, "comparison": comparison})
        for dissimilarity in ("correlation", "cosine", "euclidean", "sqeuclidean")
        for comparison in ("pearson", "spearman", "cosine")
    ),
    *(("predictivity", {"direction": direction}) for direction in ("both", "forward", "backward")),
    ("predictivity", {"seed": None, "folds": 3}),
    *(("neighbours", {"neighbours": 8, "nearness": near}) for near in ("euclidean", "cosine")),
    ("dsa", {"measure": "angular", "rank": 3, "delays": 2}),
    ("dsa", {"measure": "euclidean", "rank": 3}),
    ("dsa", {"measure": "wasserstein", "rank": 3}),
    ("disagreement", {}),
    *(("jensen_shannon", {"measure": measure}) for measure in ("distance", "divergence")),
    ("theta", {}),
    ("pullback", {}),
    ("functional", {}),
]


def label(configuration: Configuration) -> str:
    name, options = configuration
    return "-".join([name, *map(str, options.values())])


def make(configuration: Configuration) -> Metric[Any]:
    name, options = configuration
    return dp.metric(name, **options)


def networks(metric: Metric[Any], seed: int, *, count: int = 2) -> list[NDArray[np.float64]]:
    """Return what so many networks do on the same samples: alike, not equal, not isotropic."""
    rng = np.random.default_rng(seed)
    if metric.reads in ("theta", "pullback"):
        common = rng.normal(size=6)
        return [common + rng.normal(size=6) for _ in range(count)]
    if metric.reads == "outputs":
        common = rng.normal(size=(40, 3))
        return [common + rng.normal(size=(40, 3)) for _ in range(count)]
    if metric.reads == "trials":
        inputs = rng.normal(size=(6, 20, 2))
        return [_driven(rng, inputs) for _ in range(count)]
    common = rng.normal(size=(40, 6))
    found = []
    for _ in range(count):
        mixed = common @ rng.normal(size=(6, 6)) + 0.5 * rng.normal(size=(40, 6))
        found.append(mixed * np.array([3, 2, 1.5, 1, 0.7, 0.4]) + rng.normal(size=6))
    return found


def _driven(rng: np.random.Generator, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the states (trial, time, 4) of a random network of damped rotations."""
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    drive, state = rng.normal(size=(2, 4)), rng.normal(size=(len(inputs), 4))
    states = []
    for now in inputs.transpose(1, 0, 2):
        state = 0.9 * state @ turn + 0.3 * now @ drive
        states.append(state)
    return np.stack(states, 1)
