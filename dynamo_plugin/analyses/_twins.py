"""How far apart an embedding puts networks that are the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pandas as pd

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["STATISTICS", "TwinDistance", "TwinFigures", "twin_figures"]

TwinDistance: TypeAlias = Literal["theta", "pullback", "functional"]

STATISTICS = ("twin_found", "distance_ratio")

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the distances between twins."""


@dataclass(frozen=True, slots=True, eq=False)
class TwinFigures:
    """Of true twins, and of networks paired at random."""

    observed: NDArray[np.float64]
    """(statistic,): see `STATISTICS`."""
    null: NDArray[np.float64]
    """(statistic, pairing): the same if every network is given the twin of some network."""
    twins: pd.DataFrame
    """One row per refit and network."""
    noise_floor: pd.DataFrame
    """One row per quantile of the distances between twins."""


def twin_figures(
    refits: Iterable[ModelEmbedding], *, distance: TwinDistance, permutations: int, seed: int
) -> TwinFigures:
    """Compare distances between twins with those between different networks.

    `twin_found` is the share of networks whose nearest neighbour, among all other networks and all
    twins, is their twin. `distance_ratio` is the median distance of a network and its twin, by the
    median distance of two different networks. Both are means over the refits. Under the null the
    twin of a network is no nearer than the twin of any other: pairs are drawn at random, in every
    refit anew.

    Parameters
    ----------
    refits
        Embeddings of the networks followed by their twins, in the same order.
    distance
        Which distance of `ModelEmbedding.distances`.
    permutations
        Random pairings.
    seed
        Of them.

    Raises
    ------
    InvalidInput
        If all networks lie at one place.
    """
    generator = np.random.default_rng(seed)
    values, nulls, tables, ratios, exceeded = [], [], [], [], []
    for refit, embedding in enumerate(refits):
        distances = embedding.distances(distance).to_numpy()
        count = len(distances) // 2
        networks = np.arange(count)
        across = distances[:count, count:]
        between = distances[:count, :count][np.triu_indices(count, 1)]
        scale = float(np.median(between))
        if not scale > 0:
            raise InvalidInput(
                f"Distances between twins say nothing where networks have none; the thetas of "
                f"refit {refit} are equal. Fit longer, or with a smaller theta_decay."
            )
        others = distances[:count].copy()  # (network, network or twin)
        others[networks, networks] = np.inf
        nearest = others.argmin(1)
        pairings = np.concatenate(
            [networks[None], generator.permuted(np.tile(networks, (permutations, 1)), axis=1)]
        )
        found = (pairings + count == nearest).mean(1)
        ratio = np.median(across[networks, pairings], axis=1) / scale
        both = np.stack([found, ratio])
        values.append(both[:, 0])
        nulls.append(both[:, 1:])
        twin = np.diagonal(across)
        others[networks, networks + count] = np.inf
        tables.append(
            pd.DataFrame(
                {
                    "refit": refit,
                    "model": embedding.ids[:count],
                    "twin_distance": twin,
                    "nearest_distance": others.min(1),
                    "nearest": [embedding.ids[place] for place in others.argmin(1).tolist()],
                    "twin_found": nearest == networks + count,
                }
            )
        )
        ratios.append(twin / scale)
        exceeded.append((between[None] <= twin[:, None]).mean(1))
    floor = np.quantile(np.concatenate(ratios), QUANTILES)
    return TwinFigures(
        np.mean(values, axis=0),
        np.mean(nulls, axis=0),
        pd.concat(tables, ignore_index=True),
        pd.DataFrame(
            {
                "quantile": QUANTILES,
                "relative_distance": floor,
                "networks_nearer": np.quantile(np.concatenate(exceeded), QUANTILES),
            }
        ),
    )
