"""Writing a population: the inputs once, then one group per model, streamed block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynamo_plugin.errors import (
    InvalidInput,
    StoreError,
    StoreExists,
)
from dynamo_plugin.store._documents import group_document, plain_json
from dynamo_plugin.store._inputs_arrays import read_header, read_inputs, write_inputs
from dynamo_plugin.store._keys import path_key
from dynamo_plugin.store._location import Location, StoreLike
from dynamo_plugin.store._root import (
    ModelHeader,
    Root,
    is_population,
    read_model,
    read_models,
    read_root,
    write_root,
)
from dynamo_plugin.store._specs import check_spec, model_path
from dynamo_plugin.store.model_writer import ModelWriter

if TYPE_CHECKING:
    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = ["ModelStatus", "PopulationWriter"]


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
    """A population that is being written. Make one with `create` or `resume`.

    Different models may be written at the same time from threads, or, where the store is not in
    memory, from other processes: the writer can be pickled. One model must only be written by
    one `ModelWriter` at a time.
    """

    __slots__ = ("_inputs_hash", "_location", "_rows", "_samples")

    def __init__(self, location: Location, inputs: PopulationInputs) -> None:
        self._location = location
        self._samples = len(inputs)
        self._rows = len(inputs.values)
        self._inputs_hash = inputs.hash

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
        """Start a population and write its inputs.

        Parameters
        ----------
        store
            A path, an fsspec URL or a Zarr store.
        inputs
            What every model is shown.
        config
            How states are captured; `resume` demands the same.
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
        InvalidInput
            `config` cannot be written as JSON, `models` holds an id twice, or `store` names no
            store.
        """
        plain = plain_json(dict(config), "config")
        expected = None if models is None else _unique(models)
        location = Location.of(store, create=True)
        if location.children(""):
            ours = is_population(location)
            if not overwrite or not ours:
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
                    f"Expected a free place for the population, but {what} lies at {location}. "
                    f"{mend} choose another place."
                )
            # the root goes last, so that an interrupted deletion can be taken up again
            for folder in ("models", "inputs"):
                location.delete(folder)
            location.delete_key("zarr.json")
        write_root(location, Root(plain, inputs.hash, expected))
        location.set("models/zarr.json", group_document())
        write_inputs(location, inputs)
        return cls(location, inputs)

    @classmethod
    def resume(
        cls,
        store: StoreLike,
        inputs: PopulationInputs,
        *,
        config: Mapping[str, JSON],
        models: Sequence[str] | None = None,
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

        Raises
        ------
        InvalidInput
            Its inputs or its config differ from these; the message says in what.
        StoreNotFound, UnsupportedFormat, CorruptBlock
            There is no population, or its root cannot be read.
        """
        plain = plain_json(dict(config), "config")
        expected = None if models is None else _unique(models)
        location = Location.of(store, create=True)
        root = read_root(location)
        differing = sorted(
            key
            for key in root.config.keys() | plain.keys()
            if key not in root.config or key not in plain or root.config[key] != plain[key]
        )
        if differing:
            found = {key: root.config.get(key) for key in differing}
            came = {key: plain.get(key) for key in differing}
            raise InvalidInput(
                f"Expected the configuration with which {location} was begun: {found}; got "
                f"{came}. Use the same configuration, or another place."
            )
        if root.inputs_hash != inputs.hash:
            raise InvalidInput(
                f"Expected the inputs with which {location} was begun, of hash "
                f"{root.inputs_hash}; got {_describe(location, root, inputs)}. Use the same "
                "inputs, or another place."
            )
        try:
            read_inputs(location, read_header(location, root.inputs_hash))
        except StoreError:
            location.delete("inputs")
            write_inputs(location, inputs)
        if location.get("models/zarr.json") is None:
            location.set("models/zarr.json", group_document())
        if expected is not None:
            known = root.models or ()
            merged = (*known, *(name for name in expected if name not in set(known)))
            if merged != root.models:
                write_root(location, replace(root, models=merged))
        return cls(location, inputs)

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
    ) -> ModelWriter:
        """Start a model; what an interrupted capture left of it is deleted.

        Parameters
        ----------
        model_id
            Any text.
        spec
            What will be appended.
        metadata
            What is known about the model; becomes a row of `Population.metadata`.
        model_hash
            Hash of its class and parameters. Every block is tied to it.
        index
            Its place in the population's order, from 0.

        Raises
        ------
        StoreExists
            The model is complete already.
        InvalidInput
            The spec cannot be stored, or the metadata are no JSON.
        """
        check_spec(spec)
        plain = plain_json(dict(metadata), f"The metadata of model {model_id!r}")
        if index < 0:
            raise InvalidInput(f"Expected an index of at least 0, got {index}.")
        key = path_key(model_id)
        path = model_path(model_id)
        try:
            found = read_model(self._location, key, data=self._location.get(f"{path}/zarr.json"))
        except StoreError:  # never begun, or its description is damaged
            pass
        else:
            if found.complete:
                raise StoreExists(
                    f"Model {model_id!r} is complete in {self._location}. To capture it anew, "
                    f"delete the group {path} first."
                )
        self._location.delete(path)
        header = ModelHeader(model_id, index, spec, plain, model_hash, complete=False)
        return ModelWriter(
            self._location,
            header,
            samples=self._samples,
            rows=self._rows,
            inputs_hash=self._inputs_hash,
        )


def _unique(models: Sequence[str]) -> tuple[str, ...]:
    if isinstance(models, str) or len(set(models)) < len(models):
        raise InvalidInput(f"Expected every model id once, got {models!r}.")
    return tuple(plain_json(list(models), "models"))


def _describe(location: Location, root: Root, inputs: PopulationInputs) -> str:
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
