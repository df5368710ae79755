"""What states are projected by: made from a seed, read from the store, or fitted on the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput, NonFiniteStates
from dynamo_plugin.recording.principal import accumulator, accumulator_bytes
from dynamo_plugin.recording.reducing import Place, SiteReducer, not_finite
from dynamo_plugin.recording.sampling import draw_samples
from dynamo_plugin.store import (
    Assembler,
    ModelBlocks,
    are_finite,
    fitted_projection,
    projected_shape,
    random_projection,
    read_blocks,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dynamo_plugin.store import BlockRecord
    from dynamo_plugin.types import SiteSpec, TrajectorySpec

__all__ = ["Batches", "fit_components", "site_reducers"]

Batches = Callable[
    ["NDArray[np.int64]"], "Iterator[tuple[NDArray[np.int64], Mapping[str, Tensor]]]"
]
"""From sample numbers to batches of them: the numbers of each, and its states by site."""

FIT_BYTES = 256 * 2**20
"""What fits of several sites keep at once; above that, the model runs once more."""


def site_reducers(
    spec: TrajectorySpec,
    stored: TrajectorySpec,
    blocks: ModelBlocks,
    missing: Mapping[str, Collection[int]],
    *,
    fit: Callable[[list[SiteReducer]], Iterator[tuple[str, dict[str, NDArray[np.float64]]]]],
    commit: Callable[[str, BlockRecord], None],
) -> dict[str, SiteReducer]:
    """Return what makes the states of each site smaller; fit what is missing, and write it.

    Parameters
    ----------
    spec, stored
        What the adapter describes, and what is stored.
    blocks, missing
        Of the model.
    fit
        Yields name and principal components of each of these sites.
    commit
        Notes that a block was written.
    """
    reducers: dict[str, SiteReducer] = {}
    unfitted: list[SiteReducer] = []
    for site, kept in zip(spec.sites, stored.sites, strict=True):
        kind = (kept.reduction or {}).get("projection")
        projection = random_projection(kept) if kind == "random" else None
        if kind == "pca":
            arrays = blocks.reductions[site.name]
            if any(missing[array.layout.path] for array in arrays.values()):
                unfitted.append(SiteReducer(site, kept))
                continue
            parts = {name: read_blocks(array) for name, array in arrays.items()}
            projection = fitted_projection(kept, parts)
        reducers[site.name] = SiteReducer(site, kept, projection)
    kept_as = {site.name: site for site in stored.sites}
    described = {site.name: site for site in spec.sites}
    for name, parts in fit(unfitted) if unfitted else ():
        for part, array in blocks.reductions[name].items():
            whole = Assembler(array, range(array.count))
            for block, pieces in whole.put(0, parts[part]):
                commit(array.layout.path, array.write(block, pieces))
        projection = fitted_projection(kept_as[name], parts)
        reducers[name] = SiteReducer(described[name], kept_as[name], projection)
    return reducers


def fit_components(
    reducers: list[SiteReducer],
    lengths: NDArray[np.int64],
    batches: Batches,
    *,
    place: Place,
) -> Iterator[tuple[str, dict[str, NDArray[np.float64]]]]:
    """Yield name and principal components of each site, fitted on some samples of the model.

    Parameters
    ----------
    reducers
        Of the sites, without a projection.
    lengths
        (sample,) steps of every sample.
    batches
        Runs the model.
    place
        Names a sample number and a step.

    Raises
    ------
    InvalidInput
        There are too few rows.
    NonFiniteStates
        A state is not finite.
    """
    for group in _groups(reducers):
        fits = {each.site.name: accumulator(*_sizes(each.stored)) for each in group}
        seed, count = _drawn(group[0].stored)
        samples = draw_samples(min(count, len(lengths)), len(lengths), seed)
        for chosen, states in batches(samples):
            for each in group:
                values = each.pooled(states[each.site.name])
                real = each.real(lengths[chosen])
                rows = values.cpu().numpy().reshape(real.numel(), -1)[real.flatten().numpy()]
                wide = rows.astype(np.float64)
                if not are_finite(wide):
                    raise _not_finite(each, wide, real, chosen, place)
                fits[each.site.name].add(wide)
        for name, fitted in fits.items():
            try:
                yield name, fitted.result()
            except InvalidInput as error:
                raise InvalidInput(f"site {name!r}: {error}") from error


def _groups(reducers: list[SiteReducer]) -> Iterator[list[SiteReducer]]:
    """Yield sites that are fitted on the same samples and fit into memory together."""
    group: list[SiteReducer] = []
    size = 0
    for each in sorted(reducers, key=lambda each: _drawn(each.stored)):
        added = accumulator_bytes(*_sizes(each.stored))
        if group and (size + added > FIT_BYTES or _drawn(each.stored) != _drawn(group[0].stored)):
            yield group
            group, size = [], 0
        group.append(each)
        size += added
    if group:
        yield group


def _drawn(site: SiteSpec) -> tuple[int, int]:
    """Return seed and number of the samples on which a site is fitted."""
    reduction: Mapping[str, Any] = site.reduction or {}
    return int(reduction["seed"]), int(reduction["pca_samples"])


def _sizes(site: SiteSpec) -> tuple[int, int]:
    """Return width and number of components of a site."""
    return math.prod(projected_shape(site)), site.shape[0]


def _not_finite(
    reducer: SiteReducer,
    rows: NDArray[np.float64],
    real: Tensor,
    chosen: NDArray[np.int64],
    place: Place,
) -> NonFiniteStates:
    first = int(np.argmin(np.isfinite(rows).all(axis=1)))
    sample, row = (int(number) for number in real.nonzero()[first])
    where = place(int(chosen[sample]), reducer.step(row))
    return NonFiniteStates(not_finite(f"site {reducer.site.name!r}", where))
