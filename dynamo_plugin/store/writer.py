"""Writing a population: the inputs once, then one group per model, streamed block by block."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from dynamo_plugin.errors import StoreError
from dynamo_plugin.store._lease import Lease, Share
from dynamo_plugin.store._location import StoreLike, locate
from dynamo_plugin.store._plan import Plan
from dynamo_plugin.store._root import is_population, read_root
from dynamo_plugin.store._same_capture import check_same
from dynamo_plugin.store._shared_parts import (
    begin_shared,
    begin_shared_once,
    check_free,
    clear_inputs,
    complete_shared,
    delete_population,
    is_begun,
    new_root,
    read_or_mend_root,
)
from dynamo_plugin.store.model_status import ModelStatus, read_statuses
from dynamo_plugin.store.model_writer import ModelWriter, begin_model

if TYPE_CHECKING:
    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = ["PopulationWriter"]


class PopulationWriter:
    """A population that is being written. Make one with `create`, `resume` or `join`.

    It holds a lease, so that no other writer comes between; `close`, the end of a `with` block or
    its disposal ends that. Different models may be written at the same time from threads. Other
    processes write blocks of `plan`, whose records are committed here.
    """

    def __init__(self, plan: Plan, lease: Lease, *, share: Share | None = None) -> None:
        self.plan = plan
        """Where blocks go."""
        self.share = share
        """Which models are written here, where other writers write the others."""
        self._lease = lease
        self._location = plan.location

    def __enter__(self) -> PopulationWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the lease; nothing can be written afterwards."""
        self._lease.release()

    @classmethod
    def create(
        cls,
        store: StoreLike,
        inputs: PopulationInputs,
        *,
        config: Mapping[str, JSON],
        models: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> PopulationWriter:
        """Begin a population.

        Parameters
        ----------
        store
            A path, an fsspec URL or a Zarr store where nothing lies yet.
        inputs
            What every model is shown. Written at once.
        config
            How the capture is made, as JSON. `resume` continues only with an equal one. Its
            `batch_size`, if it has one, decides how blocks are cut.
        models
            Ids of all models to come, in order. Where given, readers refuse the population until
            each of them is complete, so that an interrupted capture is never taken for a whole
            one.
        overwrite
            Delete the population that is already there. Nothing else is ever deleted.

        Raises
        ------
        StoreExists
            Something lies there already.
        StoreLocked
            Another writer is at work there.
        InvalidInput
            `config` cannot be written as JSON, `models` holds an id twice, or `store` names no
            store.
        """
        root = new_root(inputs, config, models)
        location = locate(store, create=True)
        check_free(location, overwrite=overwrite)
        lease = Lease(location, Share())
        try:
            check_free(location, overwrite=overwrite)  # somebody may have been faster
            delete_population(location)
            begin_shared(location, root, inputs)
        except BaseException:
            lease.release()
            raise
        return cls(Plan.of(location, root, inputs), lease)

    @classmethod
    def resume(
        cls,
        store: StoreLike,
        inputs: PopulationInputs,
        *,
        config: Mapping[str, JSON],
        models: Sequence[str] | None = None,
        repair: bool = False,
    ) -> PopulationWriter:
        """Go on with a population that `create` began.

        Inputs that were not written to the end, or were damaged since, are written anew.

        Parameters
        ----------
        store, inputs, config
            As in `create`.
        models
            As in `create`. Ids that the population did not expect so far are added to those
            that it does.
        repair
            Check the data of every block, and count damaged ones as missing; delete chunks and
            records that belong to no block. Write the root document anew, too, where it is
            damaged or lost but inputs or models beside it show that it was one of these.

        Raises
        ------
        InvalidInput
            Its inputs or its config differ from these; the message says in what.
        StoreNotFound, UnsupportedFormat, CorruptBlock
            There is no population, or its root cannot be read.
        StoreLocked
            Another writer is at work there.
        """
        given = new_root(inputs, config, models)
        location = locate(store, create=True)
        if not is_population(location) and not (repair and is_begun(location, given)):
            read_root(location)  # says what is there instead
        lease = Lease(location, Share())
        try:
            root = read_or_mend_root(location, given, repair=repair)
            check_same(location, root, given, inputs)
            complete_shared(location, root, given, inputs)
            if repair:
                clear_inputs(location, root)
        except BaseException:
            lease.release()
            raise
        return cls(Plan.of(location, root, inputs, check_data=repair), lease)

    @classmethod
    def join(
        cls,
        store: StoreLike,
        inputs: PopulationInputs,
        *,
        config: Mapping[str, JSON],
        models: Sequence[str],
        share: Share,
        patience: float = 300.0,
    ) -> PopulationWriter:
        """Write one share of a population, beside the writers of the other shares.

        Whoever comes first begins the population.

        Parameters
        ----------
        store, inputs, config
            As in `create`.
        models
            Ids of the models of all shares, in order.
        share
            Which of them will be written here.
        patience
            Seconds to wait for the writer that begins the population.

        Raises
        ------
        InvalidInput, UnsupportedFormat, CorruptBlock, StoreLocked
            As in `resume`.
        StoreExists
            Something that is not a population lies there.
        """
        given = new_root(inputs, config, models)
        location = locate(store, create=True)
        if not is_population(location):
            check_free(location, overwrite=False)
        lease = Lease(location, share)
        try:
            begin_shared_once(location, given, inputs, time.monotonic() + patience)
            root = read_root(location)
            check_same(location, root, given, inputs)
        except BaseException:
            lease.release()
            raise
        return cls(Plan.of(location, root, inputs), lease, share=share)

    @staticmethod
    def config_of(store: StoreLike) -> dict[str, JSON] | None:
        """Return the configuration of the population that lies there, None if none can be read."""
        try:
            return read_root(locate(store, create=False)).config
        except StoreError:
            return None

    def models(self) -> dict[str, ModelStatus]:
        """Return how far every model has come, by id, in the population's order.

        A group whose description is missing or damaged counts as never begun.
        """
        return read_statuses(self._location)

    def begin(
        self,
        model_id: str,
        spec: TrajectorySpec,
        *,
        metadata: Mapping[str, JSON],
        model_hash: str,
        index: int,
        rewritten: Iterable[tuple[str, int]] | None = None,
    ) -> ModelWriter:
        """Start a model, or go on with one: blocks that were committed are kept.

        Parameters
        ----------
        model_id
            Any text.
        spec
            What will be recorded.
        metadata
            What is known about the model; becomes a row of `Population.metadata`.
        model_hash
            Hash of its class and parameters. Every block is tied to it.
        index
            Its place in the population's order, from 0.
        rewritten
            Path of the array and number of blocks whose data were written elsewhere, where
            damaged ones were found, too. They count as missing until they are committed.

        Raises
        ------
        StoreExists
            The model is complete already.
        InvalidInput
            The spec cannot be stored, the metadata are no JSON, or the model was begun with
            another specification, hash, index or other metadata.
        """
        return begin_model(
            self.plan,
            self._lease,
            model_id,
            spec,
            metadata=metadata,
            model_hash=model_hash,
            index=index,
            rewritten=rewritten,
        )
