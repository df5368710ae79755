"""Principal components of rows that come batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Accumulator", "accumulator", "accumulator_bytes"]

Parts = dict[str, "NDArray[np.float64]"]

EXACT_WIDTH = 2048
"""Up to this width the covariance is kept (32 MiB); above it, more components than asked for."""

_OVERSAMPLING = 2
_MORE = 16


class Accumulator(Protocol):
    """Takes rows, and returns the principal components of all of them."""

    def add(self, rows: NDArray[np.float64]) -> None:
        """Take rows (row, width), finite."""

    def result(self) -> Parts:
        """Return `mean` (width,), `components` (component, width) and `variances` (component + 1,).

        Variances are those of a sample (divided by rows - 1); the last is that outside the
        components. Of each component, the entry of largest magnitude is positive.

        Raises
        ------
        InvalidInput
            There were fewer rows than components, or fewer than two.
        """


def accumulator(width: int, components: int) -> Accumulator:
    """Return one that keeps the covariance where that is small, else one that approximates.

    Parameters
    ----------
    width
        Numbers per row.
    components
        How many are wanted.
    """
    kind = _Covariance if width <= EXACT_WIDTH else _Incremental
    return kind(width, components)


def accumulator_bytes(width: int, components: int) -> int:
    """Return about how much an accumulator keeps between batches."""
    if width <= EXACT_WIDTH:
        return 8 * width * width
    return 8 * width * 3 * (_OVERSAMPLING * components + _MORE)


class _Covariance:
    """Exact: mean and scatter of parts are joined without cancellation.

    Chan, Golub and LeVeque 1983 (doi:10.1080/00031305.1983.10483115).
    """

    def __init__(self, width: int, components: int) -> None:
        self._components = components
        self._count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: NDArray[np.float64]) -> None:
        part = torch.from_numpy(rows)
        if not len(part):
            return
        mean = part.mean(0)
        deviations = part - mean
        joined = self._count + len(part)
        shift = mean - self._mean
        self._scatter.addmm_(deviations.T, deviations)
        self._scatter.addr_(shift, shift, alpha=self._count * len(part) / joined)
        self._mean += shift * (len(part) / joined)
        self._count = joined

    def result(self) -> Parts:
        _check_rows(self._count, self._components)
        covariance = self._scatter / (self._count - 1)
        values, vectors = torch.linalg.eigh(covariance)
        variances = values.flip(0)[: self._components].clamp(min=0)
        components = vectors.flip(1)[:, : self._components].T
        return _parts(self._mean, components, variances, float(covariance.trace()))


class _Incremental:
    """Approximate: the leading components so far stand for all rows so far.

    Ross, Lim, Lin and Yang 2008 (doi:10.1007/s11263-007-0075-7), as in scikit-learn. Twice as many
    components as wanted are kept while rows come, which makes those wanted nearly exact.
    """

    def __init__(self, width: int, components: int) -> None:
        self._components = components
        self._kept = min(_OVERSAMPLING * components + _MORE, width)
        self._waiting: list[NDArray[np.float64]] = []
        self._rows = 0
        self._count = 0
        self._pca: Any = None

    def add(self, rows: NDArray[np.float64]) -> None:
        self._count += len(rows)
        for start in range(0, len(rows), self._kept):
            self._waiting.append(rows[start : start + self._kept])
            self._rows += len(self._waiting[-1])
            # what is left at the end must not be fewer rows than components
            if self._rows >= 2 * self._kept:
                waiting = np.concatenate(self._waiting)
                self._fit(waiting[: self._kept])
                self._waiting = [waiting[self._kept :].copy()]
                self._rows = len(self._waiting[0])

    def _fit(self, rows: NDArray[np.float64]) -> None:
        from sklearn.decomposition import IncrementalPCA

        if self._pca is None:
            self._pca = IncrementalPCA(n_components=min(self._kept, len(rows)))
        self._pca.partial_fit(rows)

    def result(self) -> Parts:
        _check_rows(self._count, self._components)
        self._fit(np.concatenate(self._waiting))
        self._waiting = []
        pca = self._pca
        total = float(pca.var_.sum()) * self._count / (self._count - 1)
        return _parts(
            torch.from_numpy(pca.mean_),
            torch.from_numpy(pca.components_[: self._components]),
            torch.from_numpy(pca.explained_variance_[: self._components]),
            total,
        )


def _check_rows(rows: int, components: int) -> None:
    needed = max(components, 2)
    if rows < needed:
        raise InvalidInput(
            f"{components} principal components need at least {needed} rows to be fitted on; there "
            f"are {rows}. Raise pca_samples, give more samples, or ask for fewer components with "
            "project=."
        )


def _parts(
    mean: torch.Tensor, components: torch.Tensor, variances: torch.Tensor, total: float
) -> Parts:
    largest = components.abs().argmax(1, keepdim=True)
    signs = torch.where(components.gather(1, largest) < 0, -1.0, 1.0)
    rest = max(total - float(variances.sum()), 0.0)
    return {
        "mean": mean.numpy().copy(),
        "components": (components * signs).contiguous().numpy(),
        "variances": np.append(variances.numpy(), rest),
    }
