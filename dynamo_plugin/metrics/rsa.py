"""Representational similarity analysis: whether distances between samples agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from scipy.stats import rankdata

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._axes import reduced
from dynamo_plugin.metrics._checks import check_choice
from dynamo_plugin.metrics._distances import check_square_fits, condensed, squared_distances
from dynamo_plugin.metrics._products import dot_products, pair_products
from dynamo_plugin.metrics._states import as_samples, centred, check_same_samples
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["RSA", "PreparedRSA"]

_DISSIMILARITIES: Final = ("correlation", "cosine", "euclidean", "sqeuclidean")
_COMPARISONS: Final = ("pearson", "spearman", "cosine")


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRSA:
    """One network; made by `RSA.prepare`."""

    samples: int
    vector: Floats
    """(pair of samples,) dissimilarities, made ready for an inner product; empty where features
    say the same."""
    features: NDArray[np.float64]
    """(unit, sample) centred patterns: dissimilarities of i and j are 2 (c - gᵢ - gⱼ - uᵢ·uⱼ), or
    half of that."""
    marginals: NDArray[np.float64]
    """(sample,): g, centred."""
    squares: NDArray[np.float64]
    """(sample,): uᵢ·uᵢ."""
    constant: float
    """c."""
    norm: float
    """Root of the network's inner product with itself."""


@dataclass(frozen=True, slots=True)
class RSA(Metric[PreparedRSA]):
    """Representational similarity analysis.

    Kriegeskorte, Mur and Bandettini 2008, doi:10.3389/neuro.06.004.2008. Dissimilarities of every
    two samples in one network, compared with those in the other. Where they are polynomials of
    inner products (all but `euclidean`) and are compared without ranks, no pair of samples is
    looked at: sums over pairs come from products of states.

    Parameters
    ----------
    dissimilarity
        `correlation`: 1 minus the Pearson correlation, over units, of the two samples' states;
        `cosine`: 1 minus their cosine; `euclidean`: their distance; `sqeuclidean`: its square,
        which rsatoolbox calls Euclidean.
    comparison
        `pearson`, `spearman` (ranks, means of ties), or `cosine` (Walther et al. 2016,
        doi:10.1016/j.neuroimage.2015.12.012) of the dissimilarities of all pairs.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(20, 5))
    >>> round(RSA()(x, 2 * x[:, ::-1]), 12)
    1.0
    """

    kind: ClassVar[Literal["similarity"]] = "similarity"
    reference: ClassVar[str] = "Kriegeskorte et al. 2008, doi:10.3389/neuro.06.004.2008"
    dissimilarity: Literal["correlation", "cosine", "euclidean", "sqeuclidean"] = "correlation"
    comparison: Literal["pearson", "spearman", "cosine"] = "pearson"

    def __post_init__(self) -> None:
        check_choice("dissimilarity", self.dissimilarity, _DISSIMILARITIES)
        check_choice("comparison", self.comparison, _COMPARISONS)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Permutations and one factor; rotations unless by correlation; offsets if by distance."""
        found: set[Invariance] = {"permutation", "scaling"}
        if self.dissimilarity != "correlation":
            found.add("orthogonal")
        if self._by_distance:
            found.add("translation")
        return frozenset(found)

    def prepare(self, states: ArrayLike) -> PreparedRSA:
        """Find the dissimilarities, or what their sums come from.

        Parameters
        ----------
        states
            (sample, unit).

        Raises
        ------
        InvalidInput
            If there are fewer than four samples, states are not finite or none varies, all
            dissimilarities are equal, or a sample has no correlation or cosine because its
            states are all equal or all zero; where all pairs of samples do not fit into memory.
        """
        patterns = self._patterns(as_samples(states))
        if self.dissimilarity == "euclidean" or self.comparison == "spearman":
            return self._by_pairs(patterns)
        return self._by_features(patterns)

    def compare(self, first: PreparedRSA, second: PreparedRSA) -> float:
        """Return the agreement of two networks, from -1 to 1; raises as `Metric`."""
        return float(self.compare_many([first], [second])[0, 0])

    def compare_many(
        self, first: Sequence[PreparedRSA], second: Sequence[PreparedRSA] | None = None
    ) -> NDArray[np.float64]:
        """Return the agreement of every two networks; see `Metric.compare_many`."""
        others = first if second is None else second
        for network in (*first, *others):
            check_same_samples(first[0].samples, network.samples)
        if len(first[0].vector):
            right = None if second is None else [network.vector for network in second]
            values = dot_products([network.vector for network in first], right)
        else:
            values = self._from_features(first, second)
        values = values.clip(-1, 1)
        if second is None:
            np.fill_diagonal(values, 1.0)
        return values

    @property
    def _by_distance(self) -> bool:
        return self.dissimilarity in ("euclidean", "sqeuclidean")

    def _patterns(self, x: Floats) -> Floats:
        """Return (unit, sample) states whose products or distances are the dissimilarities."""
        if self._by_distance:
            return centred(x)
        wide = x.astype(np.float64)
        sizes = np.linalg.norm(wide, axis=1)
        if self.dissimilarity == "correlation":
            wide = wide - wide.mean(1, keepdims=True)
        norms = np.linalg.norm(wide, axis=1)
        flat = norms <= 4 * np.finfo(x.dtype).eps * sizes
        if flat.any():
            why = "the same in all units" if self.dissimilarity == "correlation" else "zero"
            raise InvalidInput(
                f"Expected samples that have a {self.dissimilarity}, but the states of sample "
                f"{int(np.argmax(flat))} are {why}. Leave it out, or use dissimilarity='euclidean'."
            )
        patterns: Floats = np.ascontiguousarray((wide / norms[:, None]).T.astype(x.dtype))
        return patterns

    def _by_pairs(self, patterns: Floats) -> PreparedRSA:
        samples = patterns.shape[1]
        check_square_fits(samples)
        dtype = patterns.dtype
        if self.comparison == "spearman":  # rounding in float32 would change ranks
            patterns = patterns.astype(np.float64)
        if self._by_distance:
            vector = condensed(squared_distances(patterns))
            if self.dissimilarity == "euclidean":
                np.sqrt(vector, out=vector)
        else:
            vector = 1 - condensed(patterns.T @ patterns)
        scale = _norm(vector) if self._by_distance else np.sqrt(len(vector))
        if self.comparison == "spearman":
            vector = _ranks(vector.astype(np.float64, copy=False))
        if self.comparison != "cosine":
            vector -= vector.dtype.type(vector.mean(dtype=np.float64))
        norm = _norm(vector)
        _check_varied(norm, 16 * float(np.finfo(dtype).eps) * scale)
        vector /= vector.dtype.type(norm)
        nothing = np.empty(0)
        return PreparedRSA(
            samples, vector.astype(dtype), np.empty((0, 0)), nothing, nothing, 0.0, 1.0
        )

    def _by_features(self, patterns: Floats) -> PreparedRSA:
        wide = patterns.astype(np.float64)
        samples = wide.shape[1]
        mean = wide.mean(1)
        features = wide - mean[:, None]
        squares = np.square(features).sum(0)
        if self.dissimilarity == "sqeuclidean":
            constant, marginals = squares.mean(), (squares.mean() - squares) / 2
        else:
            constant, marginals = 1 - mean @ mean, mean @ features
        turned: NDArray[np.float64] = reduced(features).astype(np.float64, copy=False)
        nothing = np.empty(0)
        draft = PreparedRSA(samples, nothing, turned, marginals, squares, constant, 1.0)
        own = self._sums([draft], [draft])[0, 0] + np.square(turned @ turned.T).sum()
        norm = float(np.sqrt(max(own, 0)))
        # a difference of sums of squares: half of the digits of float64, all of those of float32
        eps = max(8 * np.sqrt(np.finfo(np.float64).eps), 16 * np.finfo(patterns.dtype).eps)
        _check_varied(norm, float(eps * samples * (constant if self._by_distance else 1)))
        return replace(draft, norm=norm)

    def _from_features(
        self, first: Sequence[PreparedRSA], second: Sequence[PreparedRSA] | None
    ) -> NDArray[np.float64]:
        others = first if second is None else second
        sums = self._sums(first, others)
        right = None if second is None else [network.features for network in second]
        for i, j, products in pair_products([network.features for network in first], right):
            shared = np.square(products).sum((1, 2))
            sums[i, j] += shared
            if second is None:
                sums[j, i] += shared
        norms = np.array([network.norm for network in first])
        values: NDArray[np.float64] = sums / norms[:, None] / [network.norm for network in others]
        return values

    def _sums(
        self, first: Sequence[PreparedRSA], second: Sequence[PreparedRSA]
    ) -> NDArray[np.float64]:
        """Return (first, second) inner products over all pairs i ≠ j of samples, without Σ (U Vᵀ)².

        Features and marginals sum to zero over samples, which is why so few terms remain.
        """
        n = first[0].samples
        g, k = (np.stack([getattr(a, name) for a in first]) for name in ("marginals", "squares"))
        h, m = (np.stack([getattr(b, name) for b in second]) for name in ("marginals", "squares"))
        sums = 2 * (n - 2) * g @ h.T - 2 * g @ m.T - 2 * k @ h.T - k @ m.T
        total, other_total = k.sum(1), m.sum(1)
        if self.comparison == "pearson":
            sums -= np.outer(total, other_total) / (n * (n - 1))
        else:
            c, d = (np.array([a.constant for a in networks]) for networks in (first, second))
            sums += n * (n - 1) * np.outer(c, d) + np.outer(c, other_total) + np.outer(total, d)
        checked: NDArray[np.float64] = sums
        return checked


def _norm(vector: Floats) -> float:
    return float(np.sqrt(dot_products([vector], [vector])[0, 0]))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks; what differs by the rounding of products only is tied."""
    ranks: NDArray[np.float64] = rankdata(np.round(values / (values.max() or 1), 11))
    return ranks


def _check_varied(norm: float, least: float) -> None:
    """Refuse dissimilarities that are all equal, or all zero, but for rounding."""
    if norm <= least:
        raise InvalidInput(
            "Expected samples some of which are more alike than others; all dissimilarities are "
            "equal, so that there is nothing to compare. Use other samples or dissimilarities."
        )
