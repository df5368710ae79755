"""Which blocks a model has: it follows from the inputs, the specification and the batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput, StoreError
from dynamo_plugin.store._blocking import chunk_rows
from dynamo_plugin.store._blocks import ArrayBlocks, Identity
from dynamo_plugin.store._documents import ArrayLayout, read_chunk_rows
from dynamo_plugin.store._keys import path_key
from dynamo_plugin.store._root import VERSION, ModelHeader, Root, read_model
from dynamo_plugin.store._specs import (
    Sizes,
    model_path,
    output_layout,
    reduction_layouts,
    site_layouts,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location
    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = ["ModelBlocks", "Plan", "add_dependent", "reduction_name", "strided_rows"]

BATCH_SIZE = 64
"""Samples that blocks are laid out for, unless the configuration names a `batch_size`."""


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
    reductions: dict[str, dict[str, ArrayBlocks]] = field(default_factory=dict)
    """By site and name, what its states were projected by, where that must be stored."""

    @property
    def arrays(self) -> tuple[ArrayBlocks, ...]:
        """All arrays; those that others depend on come first."""
        return (*self.projections, *self.recorded)

    @property
    def recorded(self) -> tuple[ArrayBlocks, ...]:
        """States and outputs."""
        return (*self.sites.values(), self.output)

    @property
    def projections(self) -> tuple[ArrayBlocks, ...]:
        """What states were projected by."""
        return tuple(array for arrays in self.reductions.values() for array in arrays.values())


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

    @classmethod
    def of(
        cls, location: Location, root: Root, inputs: PopulationInputs, *, check_data: bool = False
    ) -> Plan:
        """Return the plan of the population that a root document begins."""
        batch_size = root.config.get("batch_size")
        return cls(
            location,
            inputs.lengths,
            batch_size if type(batch_size) is int and batch_size > 0 else BATCH_SIZE,
            Identity(inputs.hash, config_hash=root.config_hash),
            check_data=check_data,
        )

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

    def missing_of(self, blocks: ModelBlocks) -> dict[str, set[int]]:
        """Return the blocks of a model that are to be recorded, by the path of their array."""
        missing = {array.layout.path: self.missing(array) for array in blocks.arrays}
        add_dependent(missing, blocks)
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
        rows = {site.name: (site.axis, site.every) for site in spec.sites}
        sites = {
            name: self._array(layout, f"site {name!r} of model {model_id!r}", identity, rows[name])
            for name, layout in layouts.items()
        }
        output = output_layout(model_id, spec, sizes)
        where = f"output {spec.output.group!r} of model {model_id!r}"
        reductions = {
            site: {
                name: self._array(layout, reduction_name(name, site, model_id), identity)
                for name, layout in arrays.items()
            }
            for site, arrays in reduction_layouts(model_id, spec, sizes).items()
        }
        return ModelBlocks(
            sites, self._array(output, where, identity, (spec.output.axis, 1)), reductions
        )

    def _array(
        self,
        layout: ArrayLayout,
        where: str,
        identity: Identity,
        rows_of: tuple[str, int] | None = None,
    ) -> ArrayBlocks:
        """Return the blocks of an array; `rows_of` is axis and stride of its rows, if samples."""
        try:
            rows = read_chunk_rows(self.location, layout, where)
        except StoreError:
            sample_rows = None
            if rows_of is not None:
                axis, every = rows_of
                steps = self.lengths if axis == "time" else np.ones_like(self.lengths)
                counts = strided_rows(steps, every)
                sample_rows = int(counts[0]) if bool((counts == counts[0]).all()) else None
            rows = chunk_rows(layout, sample_rows=sample_rows, batch_size=self.batch_size)
        return ArrayBlocks(self.location, layout, rows, identity, where)


def add_dependent(missing: dict[str, set[int]], blocks: ModelBlocks) -> None:
    """Count states as missing where what they were projected by is.

    What is fitted anew need not be the same to the last bit, so that the projection is missing as
    a whole, too.
    """
    for site, arrays in blocks.reductions.items():
        if any(missing[array.layout.path] for array in arrays.values()):
            for array in (*arrays.values(), blocks.sites[site]):
                missing[array.layout.path] = set(range(array.count))


def reduction_name(name: str, site: str, model_id: str) -> str:
    """Return what messages call an array of a reduction.

    >>> reduction_name("mean", "rnn", "gru-3")
    "array 'mean' of the reduction of site 'rnn' of model 'gru-3'"
    """
    return f"array {name!r} of the reduction of site {site!r} of model {model_id!r}"
