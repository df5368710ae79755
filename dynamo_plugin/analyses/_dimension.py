"""How many dimensions points fill: the participation ratio, and estimates from near neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import chi2, t

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEWEST", "Estimate", "neighbour_dimensions", "participation_ratio"]

FEWEST = 10
"""Distinct points below which neither neighbours nor a jackknife say anything of use."""

CONFIDENCE = 0.95

MOST_NEIGHBOURS = 10
"""Neighbours that the maximum likelihood estimate looks at, where there are enough points."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of dimensions with its 95 % confidence interval; None is explained by the note."""

    value: float | None
    low: float | None
    high: float | None
    points: int
    """How many points it rests on."""
    note: str = ""
    """Why something is absent, or what to know of it."""


def participation_ratio(points: NDArray[np.float64]) -> Estimate:
    """Number of dimensions that variance is spread over (Gao et al. 2017, doi:10.1101/214262).

    (sum of the eigenvalues of the covariance)^2 / sum of their squares: k where k dimensions share
    the variance equally. The interval is for the population that the points come from: a jackknife
    (Quenouille 1956, doi:10.1093/biomet/43.3-4.353) of the inverse ratio, whose bias in 1 / points
    it removes. Few points give too low a value, which may then lie below the interval.

    Parameters
    ----------
    points
        (point, dimension).
    """
    count, dims = points.shape
    centred = points - points.mean(0)
    covariance = centred.T @ centred
    total, squares = float(np.trace(covariance)), float((covariance**2).sum())
    if not total > 0:
        return Estimate(None, None, None, count, "nothing varies in these dimensions")
    value = total**2 / squares
    if count < FEWEST:
        note = f"no interval: it needs at least {FEWEST} networks, these are {count}"
        return Estimate(value, None, None, count, note)
    # The scatter without point i is that of all, less c x x' with c = count / (count - 1).
    c, norms = count / (count - 1), (centred**2).sum(1)
    along = ((centred @ covariance) * centred).sum(1)
    totals = total - c * norms
    if not (totals > 1e-9 * total).all():
        note = "no interval: one network carries all the variance"
        return Estimate(value, None, None, count, note)
    inverses = (squares - 2 * c * along + c**2 * norms**2) / totals**2
    centre = count / value - (count - 1) * inverses.mean()
    spread = np.sqrt((count - 1) * inverses.var()) * t.ppf((1 + CONFIDENCE) / 2, count - 1)
    high, low = 1 / np.clip([centre - spread, centre + spread], 1 / dims, 1.0)
    outside = not low <= value <= high
    note = "few networks: the population's ratio is likely another" if outside else ""
    return Estimate(value, float(low), float(high), count, note)


def neighbour_dimensions(points: NDArray[np.float64]) -> dict[str, Estimate]:
    """Intrinsic dimension of points, whatever the shape of what they lie on.

    On a manifold of d dimensions with locally even density, the logarithm of the ratio of the
    distances to the k-th and to a nearer neighbour is exponential with rate d.

    `two_nn` (Facco et al. 2017, doi:10.1038/s41598-017-11873-y) uses the first two neighbours:
    (n - 1) / sum log(r2 / r1), the unbiased maximum likelihood estimate under their law; their fit
    of the distribution function is biased upwards with few points.

    `mle` (Levina and Bickel 2004, Advances in Neural Information Processing Systems 17) uses k
    neighbours; as MacKay and Ghahramani (2005, inference.org.uk/mackay/dimension) have it, inverse
    estimates are averaged over points: n (k - 1) / sum_i sum_j log(r_k / r_j).

    Neighbourhoods overlap, so that intervals count n / k of them as independent (Levina and
    Bickel), which makes them rather too wide; they do not cover the bias of borders, which pulls
    high dimensions down. Repeated points, which have no nearest distance, are counted once.

    Parameters
    ----------
    points
        (point, dimension).

    Returns
    -------
    dict
        `two_nn` and `mle`.
    """
    distinct = np.unique(points, axis=0)
    count, repeated = len(distinct), len(points) - len(distinct)
    note = f"{repeated} repeated thetas left out" if repeated else ""
    if count < FEWEST:
        why = f"it needs at least {FEWEST} networks at distinct places, these are {count}"
        absent = Estimate(None, None, None, count, why)
        return {"two_nn": absent, "mle": absent}
    neighbours = min(MOST_NEIGHBOURS, max(count // 4, 3))
    distances = squareform(pdist(distinct))
    nearest = np.partition(distances, range(1, neighbours + 1), axis=1)[:, 1 : neighbours + 1]
    if not (nearest[:, 0] > 0).all():
        why = "networks lie closer together than numbers can tell"
        absent = Estimate(None, None, None, count, why)
        return {"two_nn": absent, "mle": absent}
    logs = np.log(nearest)
    first = logs[:, 1] - logs[:, 0]
    ratios = logs[:, -1:] - logs[:, :-1]
    return {
        "two_nn": _from_ratios(first.sum(), count - 1, count, 2, note),
        "mle": _from_ratios(ratios.sum(), ratios.size, count, neighbours, note),
    }


def _from_ratios(
    total: np.float64, shape: int, points: int, neighbours: int, note: str
) -> Estimate:
    """Return the estimate from a sum of log ratios of distances."""
    if not total > 1e-9 * shape:
        why = "every network is as far from its next neighbours as from the nearest"
        return Estimate(None, None, None, points, why)
    value = float(shape / total)
    freedom = 2 * points * (neighbours - 1) / neighbours
    low, high = (
        value * float(chi2.ppf(level, freedom)) / freedom
        for level in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    )
    return Estimate(value, low, high, points, note)
