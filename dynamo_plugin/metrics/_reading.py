"""What a metric compares, read from a population model by model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population, strided_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.types import OutputSpec, SiteSpec

__all__ = ["Source"]

_PIECE_BYTES = 64 * 2**20  # read at once where only some of the rows are kept


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Reads the same samples, and the same steps of them, of every model.

    Checked when it is made, so that what cannot be laid side by side is refused before anything is
    computed.
    """

    population: Population
    reads: Literal["states", "trials", "outputs"]
    """What the metric takes."""
    site: str | Mapping[str, str] | None
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
        reads: Literal["states", "trials", "outputs"],
        site: str | Mapping[str, str] | None,
        samples: ArrayLike | None,
        rows: int | None,
        row_seed: int,
    ) -> Source:
        """Check what is to be read, and draw rows.

        Raises
        ------
        InvalidInput
            If models were recorded at different steps, or options do not go together.
        UnknownName
            If a model has no such site.
        """
        count = len(population.lengths)
        numbers = np.arange(count) if samples is None else np.asarray(samples)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            raise InvalidInput(
                "samples must be sample numbers, such as [0, 2, 5]; got "
                f"{numbers.dtype} of shape {numbers.shape}."
            )
        if numbers.min() < 0 or numbers.max() >= count:
            raise InvalidInput(
                f"samples must lie from 0 to {count - 1}; got {numbers.min()} to {numbers.max()}."
            )
        if reads == "outputs" and site is not None:
            raise InvalidInput("This metric compares outputs, which have no site. Leave site out.")
        source = cls(population, reads, site, numbers.astype(np.int64), None)
        layouts = {model: source._layout(model) for model in ids}
        first = next(iter(layouts))
        for model, layout in layouts.items():
            if layout != layouts[first]:
                raise InvalidInput(
                    f"Expected models recorded at the same steps; {first!r} has one row per "
                    f"{_phrase(layouts[first])}, {model!r} per {_phrase(layout)}. Name sites that "
                    "match, by model if need be: site={model: site}."
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

    def site_of(self, model: str) -> str | None:
        """Return the site of a model; raises `InvalidInput` where none is named for it."""
        if not isinstance(self.site, Mapping):
            return self.site
        if model not in self.site:
            raise InvalidInput(f"site names none for model {model!r}. Add it.")
        return self.site[model]

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
        else:
            found = self.population.states(model, self.site_of(model), samples=samples)
        return found.reshape(len(found), -1)

    def _layout(self, model: str) -> tuple[str, int]:
        """Return what a row of a model is, and every how many steps there is one."""
        spec = self._spec(model)
        return spec.axis, getattr(spec, "every", 1)

    def _row_bytes(self, model: str) -> int:
        spec = self._spec(model)
        return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize

    def _spec(self, model: str) -> SiteSpec | OutputSpec:
        spec = self.population.spec(model)
        if self.reads == "outputs":
            return spec.output
        name = self.site_of(model)
        sites = {site.name: site for site in spec.sites}
        if name in sites:
            return sites[name]
        if name is None and len(sites) == 1:
            return spec.sites[0]
        # raises, and says which sites there are
        self.population.states(model, name, samples=np.arange(0))
        raise AssertionError("unreachable")


def _phrase(layout: tuple[str, int]) -> str:
    axis, every = layout
    return "sample" if axis == "sample" else "step" if every == 1 else f"{every} steps"
