"""Reading one model of a population."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest
from dynamo_plugin.store._array_reader import ArrayReader
from dynamo_plugin.store._blocks import Identity
from dynamo_plugin.store._plan import reduction_name, strided_rows
from dynamo_plugin.store._specs import Sizes, output_layout, reduction_layouts, site_layouts
from dynamo_plugin.store.inputs import sample_indices
from dynamo_plugin.store.projections import fitted_projection, random_projection

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.store._block_cache import BlockCache
    from dynamo_plugin.store._documents import ArrayLayout
    from dynamo_plugin.store._inputs_reader import InputsReader
    from dynamo_plugin.store._location import Location
    from dynamo_plugin.store._root import ModelHeader, Root
    from dynamo_plugin.store.projections import Projection
    from dynamo_plugin.types import RowAxis, SiteSpec, TrajectorySpec

__all__ = ["ModelReader", "find_site"]


def find_site(model_id: str, spec: TrajectorySpec, name: str | None) -> SiteSpec:
    """Return the site of a model of this name, or its only one."""
    sites = {site.name: site for site in spec.sites}
    if name is None:
        if len(sites) > 1:
            raise InvalidInput(
                f"Expected the name of one of the sites of model {model_id!r}: {', '.join(sites)}."
            )
        (name,) = sites
    if name not in sites:
        raise UnknownName(f"Model {model_id!r} has no site {name!r}. {suggest(name, sites)}")
    return sites[name]


class ModelReader:
    """Reads the arrays of one model; the methods are those of `Population`.

    Parameters
    ----------
    location
        Of the population.
    root
        What the population says.
    header
        What the group of the model says.
    inputs
        Of the population; they say which rows a sample has.
    cache
        Of the population.
    """

    __slots__ = ("_cache", "_identity", "_inputs", "_location", "_readers", "_sizes", "header")

    def __init__(
        self,
        location: Location,
        root: Root,
        header: ModelHeader,
        inputs: InputsReader,
        cache: BlockCache,
    ) -> None:
        self.header = header
        """What its group says."""
        self._location = location
        self._inputs = inputs
        self._cache = cache
        self._identity = Identity(root.inputs_hash, header.model_hash, root.config_hash)
        self._sizes = Sizes(inputs.header.samples, inputs.count_rows, root.version)
        self._readers: dict[str, ArrayReader] = {}

    @property
    def nbytes(self) -> int:
        """How many bytes its states and outputs take in memory."""
        layouts = [*self._site_layouts.values(), self._output_layout]
        return sum(layout.shape[0] * layout.row_bytes for layout in layouts)

    def states(self, site: str | None, samples: ArrayLike | None) -> NDArray[Any]:
        """Return hidden states; see `Population.states`."""
        chosen = find_site(self.header.id, self.header.spec, site)
        layout = self._site_layouts[chosen.name]
        reader = self._reader(layout, f"site {chosen.name!r} of model {self.header.id!r}")
        return self._read(reader, samples, chosen.axis, every=chosen.every)

    def outputs(self, samples: ArrayLike | None) -> NDArray[Any]:
        """Return outputs; see `Population.outputs`."""
        reader = self._reader(self._output_layout, f"the output of model {self.header.id!r}")
        return self._read(reader, samples, self.header.spec.output.axis)

    def projection(self, site: str | None) -> Projection:
        """Return what the states of a site were projected by; see `Population.projection`."""
        chosen, model_id = find_site(self.header.id, self.header.spec, site), self.header.id
        kind = None if chosen.reduction is None else chosen.reduction.get("projection")
        if kind is None:
            raise InvalidInput(
                f"The states of site {chosen.name!r} of model {model_id!r} were stored without a "
                "projection. Capture with reduce={...: Reduction(project=...)} for one."
            )
        if kind == "random":
            return random_projection(chosen)
        layouts = reduction_layouts(model_id, self.header.spec, self._sizes)[chosen.name]
        parts = {
            name: self._reader(layout, reduction_name(name, chosen.name, model_id)).read()
            for name, layout in layouts.items()
        }
        return fitted_projection(chosen, parts)

    @property
    def _site_layouts(self) -> dict[str, ArrayLayout]:
        return site_layouts(self.header.id, self.header.spec, self._sizes)

    @property
    def _output_layout(self) -> ArrayLayout:
        return output_layout(self.header.id, self.header.spec, self._sizes)

    def _reader(self, layout: ArrayLayout, where: str) -> ArrayReader:
        if layout.path not in self._readers:
            self._readers[layout.path] = ArrayReader(
                self._location, layout, where, self._identity, cache=self._cache
            )
        return self._readers[layout.path]

    def _read(
        self, reader: ArrayReader, samples: ArrayLike | None, axis: RowAxis, *, every: int = 1
    ) -> NDArray[Any]:
        """Return the rows of some samples, or all rows."""
        if samples is None:
            return reader.read()
        chosen = sample_indices(samples, self._inputs.header.samples)
        if axis == "sample":
            return reader.read_ranges(chosen, np.ones_like(chosen))
        if every == 1:
            offsets = self._inputs.offsets
            starts = offsets[chosen]
            return reader.read_ranges(starts, offsets[chosen + 1] - starts)
        counts = strided_rows(self._inputs.lengths, every)
        ends = np.cumsum(counts)
        return reader.read_ranges((ends - counts)[chosen], counts[chosen])
