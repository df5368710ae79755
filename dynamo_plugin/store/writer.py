"""Writing a population: the inputs once, then one group per model, streamed block by block."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from dynamo_plugin.errors import (
    InvalidInput,
    StoreError,
    StoreExists,
    StoreLocked,
    StoreNotFound,
    UnsupportedFormat,
)
from dynamo_plugin.store._blocks import Identity
from dynamo_plugin.store._documents import check_group, group_document, plain_json
from dynamo_plugin.store._inputs_arrays import (
    input_reader,
    read_header,
    read_inputs,
    write_inputs,
)
from dynamo_plugin.store._lease import FOLDER, Lease, Share
from dynamo_plugin.store._location import LEFTOVER_SUFFIX, Location, StoreLike, locate
from dynamo_plugin.store._plan import Plan, add_dependent
from dynamo_plugin.store._root import (
    VERSION,
    ModelHeader,
    Root,
    is_population,
    is_whole,
    read_models,
    read_root,
    write_root,
)
from dynamo_plugin.store._specs import check_spec, model_path
from dynamo_plugin.store._strays import clear
from dynamo_plugin.store.model_writer import ModelWriter

if TYPE_CHECKING:
    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = ["ModelStatus", "PopulationWriter"]

BATCH_SIZE = 64
"""Samples that blocks are laid out for, unless the configuration names a `batch_size`."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How far one model of a population has come."""

    id: str
    """Name of the model."""
    index: int
    """Place in the population's order."""
    complete: bool
    """Whether all its states and outputs were committed."""
    model_hash: str
    """Of the model that was recorded."""
    spec: TrajectorySpec
    """What was, or is to be, recorded of it."""
    metadata: Mapping[str, JSON]
    """What the user said about it."""


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
        root = _new_root(inputs, config, models)
        location = locate(store, create=True)
        _check_free(location, overwrite=overwrite)
        lease = Lease(location, Share())
        try:
            _check_free(location, overwrite=overwrite)  # somebody may have been faster
            # the root goes last, so that an interrupted deletion can be taken up again
            for folder in ("models", "inputs"):
                location.delete(folder)
            location.delete_key("zarr.json")
            _begin(location, root, inputs)
        except BaseException:
            lease.release()
            raise
        return cls(_plan(location, root, inputs), lease)

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
        given = _new_root(inputs, config, models)
        location = locate(store, create=True)
        if not is_population(location) and not (repair and _is_begun(location, given)):
            read_root(location)  # says what is there instead
        lease = Lease(location, Share())
        try:
            root = _read_or_mend(location, given, repair=repair)
            _check_same(location, root, given, inputs)
            _complete_inputs(location, root, given, inputs)
            if repair:
                _clear_inputs(location, root)
        except BaseException:
            lease.release()
            raise
        return cls(_plan(location, root, inputs, check_data=repair), lease)

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
        given = _new_root(inputs, config, models)
        location = locate(store, create=True)
        if not is_population(location):
            _check_free(location, overwrite=False)
        lease = Lease(location, share)
        try:
            _begin_once(location, given, inputs, time.monotonic() + patience)
            root = read_root(location)
            _check_same(location, root, given, inputs)
        except BaseException:
            lease.release()
            raise
        return cls(_plan(location, root, inputs), lease, share=share)

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
        headers, _ = read_models(self._location)
        return {
            header.id: ModelStatus(
                header.id,
                header.index,
                header.complete,
                header.model_hash,
                header.spec,
                header.metadata,
            )
            for header in headers.values()
        }

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
        check_spec(spec)
        plain = plain_json(dict(metadata), f"The metadata of model {model_id!r}")
        if index < 0:
            raise InvalidInput(f"Expected an index of at least 0, got {index}.")
        header = ModelHeader(model_id, index, spec, plain, model_hash, complete=False)
        path = model_path(model_id)
        found = self.plan.begun(model_id, spec, metadata=plain, model_hash=model_hash, index=index)
        blocks = self.plan.blocks(model_id, spec, model_hash)
        plan = self.plan if rewritten is None else replace(self.plan, check_data=False)
        missing = plan.missing_of(blocks)
        for array_path, block in rewritten or ():
            missing[array_path].add(block)
        add_dependent(missing, blocks)
        self._lease.check()
        if self.plan.check_data:
            for array in blocks.arrays:
                clear(array)
        writer = ModelWriter(header, blocks, missing, lease=self._lease, found=found)
        if found is not None and found.complete and not any(writer.missing.values()):
            raise StoreExists(
                f"Model {model_id!r} is complete in {self._location}. To capture it anew, "
                f"delete the group {path} first."
            )
        return writer


def _new_root(
    inputs: PopulationInputs, config: Mapping[str, JSON], models: Sequence[str] | None
) -> Root:
    plain = plain_json(dict(config), "config")
    return Root(plain, inputs.hash, None if models is None else _unique(models))


def _unique(models: Sequence[str]) -> tuple[str, ...]:
    if isinstance(models, str) or len(set(models)) < len(models):
        raise InvalidInput(f"Expected every model id once, got {models!r}.")
    return tuple(plain_json(list(models), "models"))


def _plan(
    location: Location, root: Root, inputs: PopulationInputs, *, check_data: bool = False
) -> Plan:
    batch_size = root.config.get("batch_size")
    return Plan(
        location,
        inputs.lengths,
        batch_size if type(batch_size) is int and batch_size > 0 else BATCH_SIZE,
        Identity(inputs.hash, config_hash=root.config_hash),
        check_data=check_data,
    )


def _check_free(location: Location, *, overwrite: bool) -> None:
    """Refuse a place where something lies that may not be replaced."""
    names = set(location.children("")) - {FOLDER}
    if all(name.endswith(LEFTOVER_SUFFIX) for name in names):
        return
    ours = is_population(location)
    if overwrite and ours:
        return
    what, mend = (
        (
            "a population",
            "Go on with it by resume=True (--resume), replace it by overwrite=True "
            "(--overwrite), or",
        )
        if ours
        else ("something that is not a population", "Move it, or")
    )
    raise StoreExists(
        f"Expected a free place for the population, but {what} lies at {location}. {mend} choose "
        "another place."
    )


def _begin(location: Location, root: Root, inputs: PopulationInputs) -> None:
    write_root(location, root)
    location.set("models/zarr.json", group_document())
    write_inputs(location, inputs)


def _begin_once(location: Location, given: Root, inputs: PopulationInputs, deadline: float) -> None:
    """Begin a population unless another writer does; then wait until it is there."""
    while True:
        try:
            root = read_root(location)
            read_inputs(location, read_header(location, root.inputs_hash))
            check_group(location, "models")
            if set(given.models or ()) <= set(root.models or ()):
                return
        except StoreError:  # not there, or not to the end
            pass
        try:
            lease = Lease(location, None)
        except StoreLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            continue
        try:
            try:
                root = read_root(location)
            except StoreNotFound:
                _begin(location, given, inputs)
            else:
                _check_same(location, root, given, inputs)
                _complete_inputs(location, root, given, inputs)
        finally:
            lease.release()


def _read_or_mend(location: Location, given: Root, *, repair: bool) -> Root:
    """Return the root; write it where it is damaged, if that may be mended."""
    try:
        return read_root(location)
    except StoreError:
        if not repair or is_whole(location) or not _is_begun(location, given):
            raise
        write_root(location, given)
        return given


def _is_begun(location: Location, given: Root) -> bool:
    """Return whether what lies beside a lost root document is of the population given."""
    try:
        read_header(location, given.inputs_hash)
    except StoreError:
        return any(model_id in read_models(location)[0] for model_id in given.models or ())
    return True


def _clear_inputs(location: Location, root: Root) -> None:
    """Delete what belongs to no block of the inputs."""
    header = read_header(location, root.inputs_hash)
    for name in header.layouts:
        clear(input_reader(location, header, name).blocks)


def _check_same(location: Location, root: Root, given: Root, inputs: PopulationInputs) -> None:
    """Refuse a population that was begun with something else."""
    if root.version != VERSION:
        raise UnsupportedFormat(
            f"{location} is a population of format version {root.version}, which can be read but "
            f"not continued; this release writes version {VERSION}. Capture into another place, "
            "or with overwrite=True."
        )
    differing = sorted(
        key
        for key in root.config.keys() | given.config.keys()
        if key not in root.config
        or key not in given.config
        or root.config[key] != given.config[key]
    )
    if differing:
        found = {key: root.config.get(key) for key in differing}
        came = {key: given.config.get(key) for key in differing}
        raise InvalidInput(
            f"Expected the configuration with which {location} was begun: {found}; got "
            f"{came}. Use the same configuration, or another place."
        )
    if root.inputs_hash != inputs.hash:
        raise InvalidInput(
            f"Expected the inputs with which {location} was begun, of hash "
            f"{root.inputs_hash}; got {_described(location, root, inputs)}. Use the same "
            "inputs, or another place."
        )


def _complete_inputs(location: Location, root: Root, given: Root, inputs: PopulationInputs) -> None:
    """Write what an interrupted capture left out of what all models share."""
    location.sweep("", deep=False)
    location.sweep("models", deep=False)
    location.sweep("inputs")
    try:
        read_inputs(location, read_header(location, root.inputs_hash))
    except StoreError:
        location.delete("inputs")
        write_inputs(location, inputs)
    try:
        check_group(location, "models")
    except StoreError:
        location.set("models/zarr.json", group_document())
    if given.models is not None:
        known = root.models or ()
        merged = (*known, *(name for name in given.models if name not in set(known)))
        if merged != root.models:
            write_root(location, replace(root, models=merged))


def _described(location: Location, root: Root, inputs: PopulationInputs) -> str:
    """Say in what given inputs differ from stored ones, as far as their header tells."""
    hint = f"inputs of hash {inputs.hash}"
    try:
        header = read_header(location, root.inputs_hash)
    except StoreError:
        return hint
    facts = {
        "samples": (header.samples, len(inputs)),
        "rows": (header.rows, len(inputs.values)),
        "kind": (header.spec.kind, inputs.spec.kind),
        "size": (header.spec.size, inputs.spec.size),
        "dtype": (header.dtype, inputs.values.dtype.name),
    }
    differing = [f"{name} {a} -> {b}" for name, (a, b) in facts.items() if a != b]
    return f"{hint} ({', '.join(differing) or 'other values, sample ids or targets'})"
