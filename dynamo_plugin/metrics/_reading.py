"""What a metric compares, read from a population model by model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynamo_plugin.errors import DuplicateName, InvalidInput
from dynamo_plugin.store import Population, strided_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.registry.interfaces import Reads
    from dynamo_plugin.types import JSON, OutputSpec, SiteSpec

__all__ = ["Sites", "Source", "check_samples"]

Sites: TypeAlias = "str | Sequence[str] | Mapping[str, str | Sequence[str]] | None"
"""A site, or several that are joined unit by unit: of all models, or by model."""

_PIECE_BYTES = 64 * 2**20  # read at once where only some of the rows are kept


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Reads the same samples, and the same steps of them, of every model.

    Checked when it is made, so that what cannot be laid side by side is refused before anything is
    computed.
    """

    population: Population
    reads: Reads
    """What the metric takes."""
    site: Sites
    """Of all models, or by model; None where they have only one."""
    samples: NDArray[np.int64]
    """Sample numbers."""
    chosen: NDArray[np.int64] | None
    """Rows that are kept of those of the samples, in order; None for all."""

    @classmethod
    def make(
        cls,
        population: Population,
        ids: Sequence[str],
        *,
        reads: Reads,
        site: Sites,
        samples: ArrayLike | None,
        rows: int | None,
        row_seed: int,
    ) -> Source:
        """Check what is to be read, and draw rows.

        Raises
        ------
        InvalidInput
            If models, or sites of one, were recorded at different steps, or options do not go
            together.
        UnknownName
            If a model has no such site.
        DuplicateName
            If a site is named twice.
        """
        count = len(population.lengths)
        numbers = np.arange(count) if samples is None else check_samples(samples, count)
        if reads == "outputs" and site is not None:
            raise InvalidInput("This metric compares outputs, which have no site. Leave site out.")
        source = cls(population, reads, site, numbers, None)
        layouts = {model: source._layout(model) for model in ids}
        first = next(iter(layouts))
        for model, layout in layouts.items():
            if layout != layouts[first]:
                raise InvalidInput(
                    f"Expected models recorded at the same steps; {first!r} has one row per "
                    f"{_phrase(layouts[first])}, {model!r} per {_phrase(layout)}. Name sites that "
                    "match, by model if need be: site={model: site or sites}."
                )
        if reads == "trials":
            if layouts[first][0] != "time":
                raise InvalidInput(
                    "This metric compares dynamics and needs states over time; the site has one "
                    "row per sample."
                )
            if rows is not None:
                raise InvalidInput(
                    "This metric compares trials, of which rows cannot be drawn. Choose some of "
                    "the trials with samples=..."
                )
        if rows is None:
            return source
        total = int(source.counts(first).sum())
        if rows >= total:
            return source
        drawn = np.random.default_rng(row_seed).choice(total, rows, replace=False)
        return cls(population, reads, site, source.samples, np.sort(drawn))

    @property
    def all_samples(self) -> bool:
        """Whether these are all samples there are, in order."""
        return np.array_equal(self.samples, np.arange(len(self.population.lengths)))

    def settings(self, *, row_seed: int) -> dict[str, JSON]:
        """Return what was read, for people and for checkpoints."""
        return {
            "site": _plain(self.site),
            "samples": len(self.samples),
            "rows": len(self.chosen) if self.chosen is not None else None,
            "row_seed": row_seed if self.chosen is not None else None,
        }

    def identity(self, ids: Sequence[str]) -> dict[str, JSON]:
        """Return what checkpoints of a comparison of these models must say, beside settings."""
        return {
            "models": {model: self.population.model_hash(model) for model in ids},
            "order": list(ids),
            "inputs": self.population.inputs_hash,
            "sample_numbers": hashlib.sha256(self.samples.tobytes()).hexdigest(),
        }

    def sites_of(self, model: str) -> tuple[str | None, ...]:
        """Return the sites of a model; one None where it has only one and none was named.

        Raises
        ------
        InvalidInput
            If none is named for it.
        DuplicateName
            If one is named twice.
        """
        named = self.site
        if isinstance(named, Mapping):
            if model not in named:
                raise InvalidInput(f"site names none for model {model!r}. Add it.")
            named = named[model]
        if named is None or isinstance(named, str):
            return (named,)
        sites = tuple(named)
        if not sites or not all(isinstance(site, str) for site in sites):
            raise InvalidInput(
                f"site must be the name of a site, or a list of names; got {named!r}."
            )
        for place, site in enumerate(sites):
            if site in sites[:place]:
                raise DuplicateName(f"Site {site!r} is named twice. Name every site once.")
        return sites

    def counts(self, model: str) -> NDArray[np.int64]:
        """Return (sample,) rows of every sample."""
        axis, every = self._layout(model)
        if axis == "sample":
            return np.ones(len(self.samples), np.int64)
        return strided_rows(self.population.lengths[self.samples], every)

    def read(self, model: str) -> Any:
        """Return what the metric prepares: an array, or one array per trial."""
        if self.reads == "trials":
            whole = self._rows(model, None if self.all_samples else self.samples)
            return np.split(whole, np.cumsum(self.counts(model))[:-1])
        if self.chosen is None:
            return self._rows(model, None if self.all_samples else self.samples)
        ends = np.cumsum(counts := self.counts(model))
        owner = np.searchsorted(ends, self.chosen, side="right")
        needed, place = np.unique(owner, return_inverse=True)
        starts = np.cumsum(counts[needed]) - counts[needed]
        within = starts[place] + self.chosen - (ends - counts)[owner]
        row_bytes = max(1, self._row_bytes(model))
        pieces = (np.cumsum(counts[needed]) * row_bytes) // _PIECE_BYTES
        found = []
        for piece in np.unique(pieces):
            members = np.flatnonzero(pieces == piece)
            block = self._rows(model, self.samples[needed[members]])
            taken = np.isin(place, members)
            found.append(block[within[taken] - starts[members[0]]])
        return np.concatenate(found)

    def _rows(self, model: str, samples: NDArray[np.int64] | None) -> NDArray[Any]:
        """Return (row, unit) arrays, whatever the shape of a row."""
        if self.reads == "outputs":
            found = self.population.outputs(model, samples=samples)
            return found.reshape(len(found), -1)
        specs = self._specs(model)
        if len(specs) == 1:
            found = self.population.states(model, specs[0].name, samples=samples)
            return found.reshape(len(found), -1)
        # Filled in site by site, so that only one of them is there twice.
        joined: NDArray[Any] | None = None
        dtype = np.result_type(*(np.dtype(spec.dtype) for spec in specs))
        ends = np.cumsum([prod(spec.shape) for spec in specs])
        for spec, end in zip(specs, ends, strict=True):
            part = self.population.states(model, spec.name, samples=samples)
            if joined is None:
                joined = np.empty((len(part), ends[-1]), dtype)
            joined[:, end - prod(spec.shape) : end] = part.reshape(len(part), -1)
        assert joined is not None
        return joined

    def _layout(self, model: str) -> tuple[str, int]:
        """Return what a row of a model is, and every how many steps there is one."""
        if self.reads == "outputs":
            return self.population.spec(model).output.axis, 1
        first, *others = self._specs(model)
        for spec in others:
            if (spec.axis, spec.every) != (first.axis, first.every):
                raise InvalidInput(
                    f"Expected sites recorded at the same steps, to be joined; of {model!r}, "
                    f"{first.name!r} has one row per {_phrase((first.axis, first.every))}, "
                    f"{spec.name!r} per {_phrase((spec.axis, spec.every))}."
                )
        return first.axis, first.every

    def _row_bytes(self, model: str) -> int:
        specs: Sequence[SiteSpec | OutputSpec] = (
            [self.population.spec(model).output] if self.reads == "outputs" else self._specs(model)
        )
        return sum(prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)

    def _specs(self, model: str) -> tuple[SiteSpec, ...]:
        """Return the sites that are joined."""
        sites = {site.name: site for site in self.population.spec(model).sites}
        found = []
        for name in self.sites_of(model):
            if name is None and len(sites) == 1:
                (name,) = sites
            if name not in sites:
                # raises, and says which sites there are
                self.population.states(model, name, samples=np.arange(0))
                raise AssertionError("unreachable")
            found.append(sites[name])
        return tuple(found)


def check_samples(samples: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return sample numbers, of so many samples that there are; raises `InvalidInput`."""
    numbers = np.asarray(samples)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
        raise InvalidInput(
            "samples must be sample numbers, such as [0, 2, 5]; got "
            f"{numbers.dtype} of shape {numbers.shape}."
        )
    if numbers.min() < 0 or numbers.max() >= count:
        raise InvalidInput(
            f"samples must lie from 0 to {count - 1}; got {numbers.min()} to {numbers.max()}."
        )
    return numbers.astype(np.int64)


def _plain(site: Sites) -> JSON:
    """Return sites as JSON."""
    if isinstance(site, Mapping):
        return {model: _plain(own) for model, own in site.items()}
    return site if site is None or isinstance(site, str) else list(site)


def _phrase(layout: tuple[str, int]) -> str:
    axis, every = layout
    return "sample" if axis == "sample" else "step" if every == 1 else f"{every} steps"
