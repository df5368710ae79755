"""Making states smaller before they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo_plugin.errors import InvalidInput, NonFiniteStates, UnknownName, suggest
from dynamo_plugin.recording.reduction import Reduction
from dynamo_plugin.store import projected_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store import Projection
    from dynamo_plugin.types import JSON, SiteSpec, TrajectorySpec

__all__ = ["Place", "Reductions", "SiteReducer", "not_finite"]

Place = Callable[[int, int | None], str]
"""From a sample, and a step or None where there is no time, to what messages call that place."""

_ADAPTIVE: tuple[tuple[Callable[..., Tensor], Callable[..., Tensor]], ...] = (
    (F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
    (F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    (F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
)
"""Mean and maximum over 1, 2 and 3 axes of positions."""


@dataclass(frozen=True, slots=True)
class Reductions:
    """What is done to the states of each site; nothing, unless rules say so."""

    rules: tuple[tuple[str, Reduction], ...] = ()
    """Patterns over the names of sites, as of `fnmatch.fnmatchcase`; the first match counts."""

    def stored(self, spec: TrajectorySpec) -> TrajectorySpec:
        """Return what is stored of a model whose adapter describes it by `spec`.

        Raises
        ------
        UnknownName
            A pattern matches no site.
        InvalidInput
            A site cannot be reduced as asked.
        """
        if not self.rules:
            return spec
        names = [site.name for site in spec.sites]
        for pattern, _ in self.rules:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UnknownName(f"reduce: {pattern!r} matches no site. {suggest(pattern, names)}")
        return replace(spec, sites=tuple(map(self._stored_site, spec.sites)))

    def _stored_site(self, site: SiteSpec) -> SiteSpec:
        rule = self.rule(site.name)
        return site if rule is None else _stored(site, rule)

    def rule(self, site: str) -> Reduction | None:
        """Return what is asked for a site."""
        for pattern, rule in self.rules:
            if fnmatchcase(site, pattern):
                return rule
        return None


def _stored(site: SiteSpec, rule: Reduction) -> SiteSpec:
    """Return a site as it is stored."""
    where = f"site {site.name!r}"
    if rule.every > 1 and site.axis != "time":
        raise InvalidInput(
            f"{where} has one row per sample, so that every={rule.every} has no steps to choose "
            "from. Leave every out for this site."
        )
    pooled = site.shape if rule.pool is None else _pooled_shape(site, rule.pool_size)
    shape, dtype = pooled, site.dtype
    if rule.project is not None:
        width = math.prod(pooled)
        if rule.project > width:
            raise InvalidInput(
                f"{where} has {width} numbers per row; project={rule.project} asks for more. Ask "
                f"for at most {width}, or leave this site out of the pattern."
            )
        shape = (rule.project,)
        dtype = "float32" if dtype == "float16" else dtype
    dtype = dtype if rule.dtype is None else rule.dtype
    reduction: dict[str, JSON] | None = None
    if rule.pool is not None or rule.project is not None:
        fitted = rule.project is not None and rule.projection == "pca"
        reduction = {
            "source_shape": list(site.shape),
            "pool": rule.pool,
            "pooled_shape": list(pooled),
            "projection": None if rule.project is None else rule.projection,
            "seed": None if rule.project is None else rule.seed,
            "pca_samples": rule.pca_samples if fitted else None,
        }
    return replace(
        site,
        shape=shape,
        dtype=dtype,
        source_dtype=site.source_dtype or (site.dtype if dtype != site.dtype else None),
        every=rule.every,
        reduction=reduction,
    )


def _pooled_shape(site: SiteSpec, size: int | None) -> tuple[int, ...]:
    channels, *positions = site.shape or (0,)
    if not positions:
        raise InvalidInput(
            f"site {site.name!r} has rows of shape {site.shape}, without positions to pool; "
            "expected (channels, length) or (channels, height, width). Leave pool out for this "
            "site."
        )
    if size is None:
        return (channels,)
    if len(positions) > len(_ADAPTIVE):
        raise InvalidInput(
            f"site {site.name!r} has rows of shape {site.shape}; up to {len(_ADAPTIVE)} axes "
            "of positions can be pooled to a size. Leave pool_size out to pool all of them away."
        )
    return (channels, *(min(size, length) for length in positions))


@dataclass(frozen=True, slots=True)
class SiteReducer:
    """Makes the states of one site of one model smaller, as the specification of it says."""

    site: SiteSpec
    """As the adapter describes it."""
    stored: SiteSpec
    """As it is stored."""
    projection: Projection | None = None
    """What rows are projected by, where they are."""
    _matrices: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, values: Tensor, lengths: NDArray[Any], place: Place) -> Tensor:
        """Return states as they are stored.

        Parameters
        ----------
        values
            (sample, time, *shape) or (sample, *shape), as the adapter describes the site.
        lengths
            (sample,): steps of each sample.
        place
            Names a position in the batch and a step.

        Returns
        -------
        Tensor
            (sample, stored time, *stored shape) or (sample, *stored shape), contiguous.

        Raises
        ------
        NonFiniteStates
            A state is too large for the dtype asked for.
        """
        if self.site == self.stored:
            return values
        reduced = self.pooled(values)
        if self.projection is not None:
            reduced = self._projected(reduced)
        narrow = reduced.to(getattr(torch, self.stored.dtype))
        if narrow.dtype.itemsize < reduced.dtype.itemsize:
            self._check_overflow(reduced, narrow, lengths, place)
        return narrow.contiguous()

    def pooled(self, values: Tensor) -> Tensor:
        """Return the steps that are stored, pooled: what is projected, in the dtype for that."""
        if self.stored.every > 1:
            values = values[:, :: self.stored.every]
        reduction = self.stored.reduction or {}
        computing = reduction.get("pool") is not None or reduction.get("projection") is not None
        if computing and values.dtype != torch.float64:
            values = values.float()
        if reduction.get("pool") is None:
            return values
        shape = projected_shape(self.stored)
        return _pool(values, len(self.site.shape), shape, maximum=reduction["pool"] == "max")

    def step(self, number: int) -> int | None:
        """Return the step of a sample at which its row of this number was, None without time."""
        return None if self.site.axis == "sample" else number * self.stored.every

    def real(self, lengths: NDArray[Any]) -> Tensor:
        """Return which of the rows that `pooled` returns are real: (sample, stored time)."""
        if self.site.axis == "sample":
            return torch.ones(len(lengths), 1, dtype=torch.bool)
        steps = torch.arange(0, int(lengths.max()), self.stored.every)
        return steps < torch.as_tensor(lengths)[:, None]

    def _projected(self, values: Tensor) -> Tensor:
        assert self.projection is not None
        rank = len(projected_shape(self.stored))
        flat = values.flatten(values.ndim - rank) if rank else values.unsqueeze(-1)
        if flat.is_cuda and torch.get_float32_matmul_precision() != "highest":
            flat = flat.double()  # TF32 would keep ten bits
        mean, matrix = self._matrix(flat)
        return (flat - mean) @ matrix if self.projection.kind == "pca" else flat @ matrix

    def _matrix(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and transposed matrix where the states are; made once."""
        assert self.projection is not None
        key = like.device, like.dtype
        if key not in self._matrices:
            self._matrices[key] = (
                torch.from_numpy(self.projection.mean).to(like),
                torch.from_numpy(self.projection.matrix.T).to(like).contiguous(),
            )
        return self._matrices[key]

    def _check_overflow(
        self, wide: Tensor, narrow: Tensor, lengths: NDArray[Any], place: Place
    ) -> None:
        overflowed = narrow.isinf()
        if not overflowed.any():
            return
        overflowed &= wide.isfinite()  # others are found, and told, before they are written
        leading = 2 if self.site.axis == "time" else 1
        rows = overflowed.reshape(*wide.shape[:leading], -1).any(-1).cpu().reshape(len(lengths), -1)
        rows &= self.real(lengths)
        if not rows.any():
            return
        sample, step = (int(number) for number in rows.nonzero()[0])
        row = wide[(sample, step)[:leading]]
        largest = float(row[row.isfinite()].abs().max())
        dtype = self.stored.dtype
        raise NonFiniteStates(
            f"site {self.site.name!r} reaches {largest:.6g} at "
            f"{place(sample, self.step(step))}, which {dtype} cannot hold (largest: "
            f"{torch.finfo(narrow.dtype).max:.6g}). Leave dtype out of its reduction"
            f"{', or ask for float32' if dtype == 'float16' else ''}."
        )


def _pool(values: Tensor, rank: int, shape: tuple[int, ...], *, maximum: bool) -> Tensor:
    """Pool rows of (channels, *positions), of so many axes in all, to the shape given."""
    leading = values.shape[: values.ndim - rank]
    rows = values.reshape(-1, *values.shape[values.ndim - rank :])
    if len(shape) == 1:
        flat = rows.flatten(2)
        pooled = _keep_infinite(flat.amax(2), flat.amin(2)) if maximum else flat.mean(2)
        return pooled.reshape(*leading, *shape)
    mean, most = _ADAPTIVE[len(shape) - 2]
    size = list(shape[1:])
    if not maximum:
        return mean(rows, size).reshape(*leading, *shape)
    pooled = _keep_infinite(most(rows, size), -most(-rows, size))
    return pooled.reshape(*leading, *shape)


def _keep_infinite(largest: Tensor, smallest: Tensor) -> Tensor:
    """Return the largest values, but minus infinity where it would be hidden by them."""
    return torch.where(smallest.isneginf(), smallest, largest)


def not_finite(where: str, place: str) -> str:
    """Return what is said of a state or output that holds NaN or infinity."""
    return (
        f"{where} is not finite at {place}; expected finite numbers. Leave this model out, or find "
        "out why it diverges on this input."
    )
