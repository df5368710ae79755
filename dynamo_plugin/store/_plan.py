"""Which blocks a model has: it follows from the inputs, the specification and the batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput, StoreError
from dynamo_plugin.store._blocking import chunk_rows
from dynamo_plugin.store._blocks import ArrayBlocks, Identity
from dynamo_plugin.store._documents import ArrayLayout, read_chunk_rows
from dynamo_plugin.store._keys import path_key
from dynamo_plugin.store._root import VERSION, ModelHeader, read_model
from dynamo_plugin.store._specs import Sizes, model_path, output_layout, site_layouts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = ["ModelBlocks", "Plan", "strided_rows"]


def strided_rows(lengths: NDArray[np.int64], every: int) -> NDArray[np.int64]:
    """Return how many of the steps 0, every, 2 every, ... each sample has.

    >>> strided_rows(np.array([1, 4, 5]), 2)
    array([1, 2, 3])
    """
    return -(-lengths // every)


@dataclass(frozen=True, slots=True)
class ModelBlocks:
    """The blocks of all arrays of one model."""

    sites: dict[str, ArrayBlocks]
    """By site, in the order of the specification."""
    output: ArrayBlocks
    """Of the outputs."""

    @property
    def arrays(self) -> tuple[ArrayBlocks, ...]:
        """All arrays."""
        return (*self.sites.values(), self.output)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the models of a population are written to. Can be sent to other processes."""

    location: Location
    """Of the population."""
    lengths: NDArray[np.int64]
    """(sample,) steps of each sample."""
    batch_size: int
    """Samples that arrive together."""
    identity: Identity
    """Of the inputs and the configuration."""
    check_data: bool = False
    """Whether blocks count as missing, too, whose data do not agree with their record."""

    def rows(self, every: int = 1) -> int:
        """Return the rows of all samples, counting every so many steps."""
        return int(strided_rows(self.lengths, every).sum())

    def missing(self, array: ArrayBlocks) -> set[int]:
        """Return the blocks of an array that are to be recorded."""
        missing = set(array.missing())
        if self.check_data:
            present = (block for block in range(array.count) if block not in missing)
            missing |= set(array.damaged(present))
        return missing

    def begun(
        self,
        model_id: str,
        spec: TrajectorySpec,
        *,
        metadata: Mapping[str, JSON],
        model_hash: str,
        index: int,
    ) -> ModelHeader | None:
        """Return what the store says about a model, None if it was never begun or that is lost.

        Raises
        ------
        InvalidInput
            It was begun with another specification, hash, index or other metadata.
        """
        try:
            data = self.location.get(f"{model_path(model_id)}/zarr.json")
            found = read_model(self.location, path_key(model_id), data=data)
        except StoreError:
            return None
        pairs: dict[str, tuple[Any, Any]] = {
            "model hash": (found.model_hash, model_hash),
            "place in the order": (found.index, index),
            "metadata": (found.metadata, dict(metadata)),
            "specification": (found.spec, spec),
        }
        differing = [name for name, (before, now) in pairs.items() if before != now]
        if differing:
            details = "; ".join(f"{n} was {pairs[n][0]}, is {pairs[n][1]}" for n in differing)
            raise InvalidInput(
                f"Model {model_id!r} was begun in {self.location} with another "
                f"{' and '.join(differing)} ({details}). resume=True continues a capture of the "
                "same models in the same order; capture into another store, or with "
                "overwrite=True."
            )
        return found

    def blocks(self, model_id: str, spec: TrajectorySpec, model_hash: str) -> ModelBlocks:
        """Return the blocks of a model. Arrays that were begun keep their number of rows per block.

        Raises
        ------
        StoreError
            The storage failed.
        """
        identity = replace(self.identity, model_hash=model_hash)
        sizes = Sizes(len(self.lengths), self.rows, VERSION)
        layouts = site_layouts(model_id, spec, sizes)
        axes = {site.name: (site.axis, site.every) for site in spec.sites}
        sites = {
            name: self._array(layout, *axes[name], f"site {name!r} of model {model_id!r}", identity)
            for name, layout in layouts.items()
        }
        output = output_layout(model_id, spec, sizes)
        where = f"output {spec.output.group!r} of model {model_id!r}"
        return ModelBlocks(sites, self._array(output, spec.output.axis, 1, where, identity))

    def _array(
        self, layout: ArrayLayout, axis: str, every: int, where: str, identity: Identity
    ) -> ArrayBlocks:
        try:
            rows = read_chunk_rows(self.location, layout, where)
        except StoreError:
            counts = strided_rows(self.lengths, every) if axis == "time" else self.lengths * 0 + 1
            equal = bool((counts == counts[0]).all())
            rows = chunk_rows(
                layout,
                sample_rows=int(counts[0]) if equal else None,
                batch_size=self.batch_size,
            )
        return ArrayBlocks(self.location, layout, rows, identity, where)
