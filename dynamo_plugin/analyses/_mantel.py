"""Rank correlation of distances, against orders of the models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from dynamo_plugin.analyses._permutation import permutation_test, share_reaching
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["check_distances_vary", "mantel_spearman"]


def mantel_spearman(
    squares: NDArray[np.float64],
    other: NDArray[np.float64],
    strata: Sequence[NDArray[np.int64]],
    *,
    permutations: int,
    max_exact: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Spearman's correlation of distances, and its p-value (Mantel 1967, Cancer Research 27,
    209), one-sided.

    Of several strata, pairs of models of one stratum count, correlations are averaged with the
    numbers of pairs as weights, and models change places within strata only.

    Parameters
    ----------
    squares
        (kind, model, model): distances of several kinds, each compared with the other.
    other
        (model, model).
    strata
        Places of the models of each, at least four.
    permutations
        Random orders.
    max_exact
        Largest number of orders that is enumerated, of a single stratum.
    seed
        Of the orders.

    Returns
    -------
    tuple of ndarray
        (kind,) correlations and (kind,) p-values.
    """
    observed, nulls, weights, exact = [], [], [], False
    for number, members in enumerate(strata):
        upper = np.triu_indices(len(members), 1)
        inside = np.ix_(members, members)
        first = _standardised(np.stack([square[inside][upper] for square in squares]))
        second = np.zeros((len(members), len(members)))
        second[upper] = _standardised(other[inside][upper][None])[0]
        second += second.T

        def statistics(
            orders: NDArray[np.int64],
            first: NDArray[np.float64] = first,
            second: NDArray[np.float64] = second,
            upper: tuple[NDArray[np.int64], ...] = upper,
        ) -> NDArray[np.float64]:
            """(order, model) to (kind, order)."""
            found: NDArray[np.float64] = first @ second[orders[:, upper[0]], orders[:, upper[1]]].T
            return found

        test = permutation_test(
            statistics,
            np.arange(len(members)),
            permutations=permutations,
            max_exact=max_exact if len(strata) == 1 else 0,
            seed=seed + number,
        )
        observed.append(test.observed)
        nulls.append(test.null)
        weights.append(float(len(upper[0])))
        exact = test.exact
    mean, null = (np.average(np.stack(each), axis=0, weights=weights) for each in (observed, nulls))
    return mean, share_reaching(mean, null, exact=exact)


def check_distances_vary(name: str, square: NDArray[np.float64], where: str = "") -> None:
    """Raise `InvalidInput` if all distances are equal."""
    values = square[np.triu_indices(len(square), 1)]
    if not np.ptp(values) > 1e-12 * np.abs(values).max():
        raise InvalidInput(
            f"All distances {name!r}{where} are equal, so that they agree with nothing. Choose "
            "another metric."
        )


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks of each row with mean 0 and norm 1."""
    ranks = rankdata(values, axis=1)
    centred = ranks - ranks.mean(1, keepdims=True)
    unit: NDArray[np.float64] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit
