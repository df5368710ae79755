"""Writing one model of a population."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynamo_plugin.errors import (
    IncompleteCapture,
    InvalidInput,
    StoreError,
    StoreExists,
    UnknownName,
    suggest,
)
from dynamo_plugin.store._assembler import Assembler
from dynamo_plugin.store._documents import check_group, group_document, plain_json, read_chunk_rows
from dynamo_plugin.store._keys import path_key
from dynamo_plugin.store._plan import add_dependent
from dynamo_plugin.store._root import ModelHeader, write_model
from dynamo_plugin.store._specs import check_spec, model_path
from dynamo_plugin.store._strays import clear

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from dynamo_plugin.store._blocks import ArrayBlocks, BlockRecord
    from dynamo_plugin.store._lease import Lease
    from dynamo_plugin.store._plan import ModelBlocks, Plan
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = ["ModelWriter", "begin_model"]


def begin_model(
    plan: Plan,
    lease: Lease,
    model_id: str,
    spec: TrajectorySpec,
    *,
    metadata: Mapping[str, JSON],
    model_hash: str,
    index: int,
    rewritten: Iterable[tuple[str, int]] | None = None,
) -> ModelWriter:
    """Start a model, or go on with one; see `PopulationWriter.begin`."""
    check_spec(spec)
    plain = plain_json(dict(metadata), f"The metadata of model {model_id!r}")
    if index < 0:
        raise InvalidInput(f"Expected an index of at least 0, got {index}.")
    header = ModelHeader(model_id, index, spec, plain, model_hash, complete=False)
    found = plan.begun(model_id, spec, metadata=plain, model_hash=model_hash, index=index)
    blocks = plan.blocks(model_id, spec, model_hash)
    counting = plan if rewritten is None else replace(plan, check_data=False)
    missing = counting.missing_of(blocks)
    for array_path, block in rewritten or ():
        missing[array_path].add(block)
    add_dependent(missing, blocks)
    lease.check()
    if plan.check_data:
        for array in blocks.arrays:
            clear(array)
    writer = ModelWriter(header, blocks, missing, lease=lease, found=found)
    if found is not None and found.complete and not any(writer.missing.values()):
        raise StoreExists(
            f"Model {model_id!r} is complete in {plan.location}. To capture it anew, "
            f"delete the group {model_path(model_id)} first."
        )
    return writer


class ModelWriter:
    """Takes the blocks of one model, those that are missing in the store.

    Blocks that were recorded elsewhere are handed to `commit`. Or rows are appended sample by
    sample, in order and from the first on, in any portions; whole blocks are then written as they
    fill. Either way a block counts from the moment its commit record is there.
    """

    __slots__ = ("_appenders", "_header", "_lease", "_location", "blocks", "missing")

    def __init__(
        self,
        header: ModelHeader,
        blocks: ModelBlocks,
        missing: dict[str, set[int]],
        *,
        lease: Lease,
        found: ModelHeader | None,
    ) -> None:
        self._header = header
        self._lease = lease
        self._location = blocks.output.location
        self.blocks = blocks
        """All blocks of the model."""
        self.missing = missing
        """Numbers of the blocks that are not committed yet, by the path of their array."""
        self._appenders: dict[str, tuple[Assembler, list[int]]] = {}
        self._describe(found)

    def _describe(self, found: ModelHeader | None) -> None:
        """Write the documents of the model, as far as they are not there and whole."""
        self._lease.check()
        path = model_path(self._header.id)
        incomplete = replace(self._header, complete=False)
        if found is None or (found.complete and any(self.missing.values())):
            write_model(self._location, incomplete)
        for folder in ("states", "outputs", *reduction_folders(self.blocks)):
            try:
                check_group(self._location, f"{path}/{folder}")
            except StoreError:
                self._location.set(f"{path}/{folder}/zarr.json", group_document())
        for array in self.blocks.arrays:
            try:
                read_chunk_rows(self._location, array.layout, array.where)
            except StoreError:
                array.describe()
        self._withdraw()

    def _withdraw(self) -> None:
        """Take back the states of sites for which what they were projected by is lost.

        They would otherwise count again as soon as another projection is committed.
        """
        for site, arrays in self.blocks.reductions.items():
            if not any(self.missing[array.layout.path] for array in arrays.values()):
                continue
            for array in (self.blocks.sites[site], *arrays.values()):
                for name in self._location.children(f"{array.layout.path}/commits"):
                    self._location.delete_key(f"{array.layout.path}/commits/{name}")

    def commit(self, path: str, record: BlockRecord) -> None:
        """Make a block count whose data were written.

        Parameters
        ----------
        path
            Path of its array.
        record
            What `ArrayBlocks.write` returned.

        Raises
        ------
        InvalidInput
            The block is not of the size that blocks of this array have.
        StoreLocked
            Another writer took over.
        StoreError
            The storage failed.
        """
        self._lease.check()
        array = next(array for array in self.blocks.arrays if array.layout.path == path)
        size = array.chunk_rows * array.layout.row_bytes
        if record.size != size or not 0 <= record.block < array.count:
            raise InvalidInput(
                f"Expected one of {array.count} blocks of {size} bytes of {array.where}, got block "
                f"{record.block} of {record.size} bytes: another release cut it. Use one release "
                "of dynamo-plugin in all processes."
            )
        array.commit(record)
        self.missing[path].discard(record.block)

    def append_states(self, site: str, rows: ArrayLike) -> None:
        """Append rows of one site, (rows, *row shape), of the declared dtype.

        Raises
        ------
        UnknownName
            The spec has no such site.
        InvalidInput
            Their shape or dtype is not the declared one, or they are too many.
        StoreError
            The storage failed, or another writer took over.
        """
        if site not in self.blocks.sites:
            raise UnknownName(
                f"Model {self._header.id!r} has no site {site!r}. "
                f"{suggest(site, self.blocks.sites)}"
            )
        self._append(self.blocks.sites[site], rows)

    def append_outputs(self, rows: ArrayLike) -> None:
        """Append rows of the output, (rows, *row shape), of the declared dtype; see above."""
        self._append(self.blocks.output, rows)

    def append_projection(
        self, site: str, mean: ArrayLike, components: ArrayLike, variances: ArrayLike
    ) -> None:
        """Write what the states of a site were projected by, before its states.

        Parameters
        ----------
        site
            One whose reduction says `projection: pca`.
        mean
            (width,) float64.
        components
            (component, width) float64, orthonormal rows.
        variances
            (component + 1,) float64: along each component, and outside all of them.

        Raises
        ------
        UnknownName
            The spec has no such site, or no projection of it is stored.
        InvalidInput, StoreError
            As `append_states`.
        """
        if site not in self.blocks.reductions:
            raise UnknownName(
                f"No projection is stored for a site {site!r} of model {self._header.id!r}. "
                f"{suggest(site, self.blocks.reductions)}"
            )
        values = {"mean": mean, "components": components, "variances": variances}
        for name, array in self.blocks.reductions[site].items():
            self._append(array, values[name])

    def _append(self, array: ArrayBlocks, rows: ArrayLike) -> None:
        path = array.layout.path
        if path not in self._appenders:
            self._appenders[path] = (Assembler(array, self.missing[path]), [0])
        assembler, position = self._appenders[path]
        values = np.asarray(rows)
        if values.ndim:
            values = values.copy()  # pieces are kept until their block is full
        for block, pieces in assembler.put(position[0], values):
            self.commit(path, array.write(block, pieces))
        position[0] += len(values)

    def zero_sites(self) -> list[str]:
        """Return the sites of which every stored value is zero.

        Raises
        ------
        StoreError
            A record is missing or damaged, or the storage failed.
        """
        return [name for name, array in self.blocks.sites.items() if _is_zero(array)]

    def finish(self) -> None:
        """Declare the model complete.

        Raises
        ------
        IncompleteCapture
            Blocks of a site or of the output are missing.
        StoreError
            The storage failed, or another writer took over.
        """
        for array in self.blocks.arrays:
            missing = self.missing[array.layout.path]
            if missing:
                first = array.bounds(min(missing))[0]
                raise IncompleteCapture(
                    f"Expected {array.layout.shape[0]} rows of {array.where}; {len(missing)} of "
                    f"{array.count} blocks are missing, from row {first} on. Append every sample "
                    "before finish()."
                )
        self._lease.check()
        self._location.sweep(model_path(self._header.id))
        write_model(self._location, replace(self._header, complete=True))


def reduction_folders(blocks: ModelBlocks) -> list[str]:
    """Return the groups below a model's that hold what its states were projected by."""
    if not blocks.reductions:
        return []
    return ["reductions", *(f"reductions/{path_key(site)}" for site in blocks.reductions)]


def _is_zero(array: ArrayBlocks) -> bool:
    for record in array.records(range(array.count)):
        if isinstance(record, IncompleteCapture):
            raise record
        if not record.zero:
            return False
    return True
