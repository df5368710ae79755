"""Permutation tests on labels: exact where few labellings exist, otherwise by Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ROUNDING",
    "PermutationTest",
    "count_labellings",
    "holm",
    "permutation_test",
    "share_reaching",
]

BATCH_ENTRIES = 2_000_000
"""Labellings times points times values that are worked on at once."""

ROUNDING = 1e-9
"""Statistics closer than this, as a share of the largest, are equal: the order of a sum must not
decide a p-value."""


@dataclass(frozen=True, slots=True, eq=False)
class PermutationTest:
    """Statistics of the labels, against those of relabelled points."""

    observed: NDArray[np.float64]
    """(statistic,)."""
    p_values: NDArray[np.float64]
    """(statistic,): share of the labellings whose statistic is at least as large."""
    null: NDArray[np.float64]
    """(statistic, labelling): the statistics of the relabelled points."""
    exact: bool
    """Whether the labellings are all there are."""

    @property
    def labellings(self) -> int:
        """How many labellings were looked at."""
        return len(self.null[0])

    @property
    def null_means(self) -> NDArray[np.float64]:
        """(statistic,): mean over the labellings."""
        means: NDArray[np.float64] = self.null.mean(1)
        return means

    @property
    def null_stds(self) -> NDArray[np.float64]:
        """(statistic,): standard deviation over the labellings."""
        stds: NDArray[np.float64] = self.null.std(1)
        return stds

    @property
    def family_p_values(self) -> NDArray[np.float64]:
        """(statistic,): share of the labellings whose largest statistic is at least as large.

        For statistics on one scale these control the chance of a single false finding among them
        (Westfall and Young 1993, Resampling-based Multiple Testing, Wiley).
        """
        return share_reaching(self.observed, self.null.max(0, keepdims=True), exact=self.exact)


def count_labellings(counts: NDArray[np.int64]) -> int:
    """Return in how many ways points can be given labels with these counts.

    >>> count_labellings(np.array([4, 4]))
    70
    """
    ways = math.factorial(int(counts.sum()))
    for count in counts.tolist():
        ways //= math.factorial(count)
    return ways


def permutation_test(
    statistics: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    codes: NDArray[np.int64],
    *,
    permutations: int,
    max_exact: int,
    seed: int,
    width: int | None = None,
) -> PermutationTest:
    """Test whether statistics of labelled points are larger than chance (Fisher 1935; Phipson and
    Smyth 2010, doi:10.2202/1544-6115.1585, for the Monte Carlo p-value).

    If there are at most `max_exact` labellings, all are enumerated, the given one among them, and
    p is the share that are at least as large. Otherwise labels are shuffled `permutations` times
    and p is (1 + number at least as large) / (1 + permutations).

    Parameters
    ----------
    statistics
        (labelling, point) codes to (statistic, labelling) values.
    codes
        (point,) the labels, from 0.
    permutations
        Monte Carlo draws.
    max_exact
        Largest number of labellings that is enumerated.
    seed
        Of the draws.
    width
        Numbers per labelled point that the statistics work on; by default one per value.
    """
    counts = np.bincount(codes)
    batch = max(BATCH_ENTRIES // (len(codes) * (width or len(counts))), 1)
    exact = count_labellings(counts) <= max_exact
    draws = (
        _enumerate(counts, batch)
        if exact
        else _shuffle(codes, permutations, batch, np.random.default_rng(seed))
    )
    observed = statistics(codes[None])[:, 0]
    null = np.concatenate([statistics(labellings) for labellings in draws], axis=1)
    return PermutationTest(observed, share_reaching(observed, null, exact=exact), null, exact)


def share_reaching(
    observed: NDArray[np.float64], null: NDArray[np.float64], *, exact: bool
) -> NDArray[np.float64]:
    """Return p-values (statistic,): the share of (statistic, labelling) at least as large."""
    largest = np.maximum(np.abs(observed), np.abs(null).max(1))
    tolerance = ROUNDING * np.where(np.isfinite(largest), largest, 1.0)
    reached = (null >= (observed - tolerance)[:, None]).sum(1)
    # The given labelling is among all that there are, and counts beside those that are drawn.
    added = 0 if exact else 1
    shares: NDArray[np.float64] = (added + reached) / (added + null.shape[1])
    return shares


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values corrected for their number (Holm 1979, https://www.jstor.org/stable/4615733).

    >>> holm(np.array([0.25, 0.01, 0.03])).tolist()
    [0.25, 0.03, 0.06]
    """
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _shuffle(
    codes: NDArray[np.int64], permutations: int, batch: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    for start in range(0, permutations, batch):
        rows = min(batch, permutations - start)
        yield generator.permuted(np.tile(codes, (rows, 1)), axis=1)


def _enumerate(counts: NDArray[np.int64], batch: int) -> Iterator[NDArray[np.int64]]:
    """Yield every labelling with these counts once, in batches."""
    labellings = np.zeros((1, int(counts.sum())), dtype=np.int64)
    free = labellings.shape[1]
    # Value after value takes its places among those that are left; the first keeps the rest.
    for value in range(len(counts) - 1, 0, -1):
        chosen = np.array(list(combinations(range(free), int(counts[value]))), dtype=np.int64)
        places = np.nonzero(labellings == 0)[1].reshape(len(labellings), free)
        taken = places[:, chosen].reshape(-1, chosen.shape[1])
        labellings = np.repeat(labellings, len(chosen), axis=0)
        np.put_along_axis(labellings, taken, value, axis=1)
        free -= int(counts[value])
    for start in range(0, len(labellings), batch):
        yield labellings[start : start + batch]
