"""What all models share, the root document and the inputs: begun once, completed, mended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dynamo_plugin.errors import (
    InvalidInput,
    StoreError,
    StoreExists,
    StoreLocked,
    StoreNotFound,
)
from dynamo_plugin.store._documents import check_group, group_document, plain_json
from dynamo_plugin.store._inputs_arrays import (
    input_reader,
    read_header,
    read_inputs,
    write_inputs,
)
from dynamo_plugin.store._lease import FOLDER, Lease
from dynamo_plugin.store._location import LEFTOVER_SUFFIX
from dynamo_plugin.store._root import (
    Root,
    is_population,
    is_whole,
    read_models,
    read_root,
    write_root,
)
from dynamo_plugin.store._same_capture import check_same
from dynamo_plugin.store._strays import clear

if TYPE_CHECKING:
    from dynamo_plugin.store._location import Location
    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.types import JSON

__all__ = [
    "begin_shared",
    "begin_shared_once",
    "check_free",
    "clear_inputs",
    "complete_shared",
    "delete_population",
    "is_begun",
    "new_root",
    "read_or_mend_root",
]


def new_root(
    inputs: PopulationInputs, config: Mapping[str, JSON], models: Sequence[str] | None
) -> Root:
    """Return what the root document will say; raises `InvalidInput` where it cannot."""
    plain = plain_json(dict(config), "config")
    return Root(plain, inputs.hash, None if models is None else _unique(models))


def check_free(location: Location, *, overwrite: bool) -> None:
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


def delete_population(location: Location) -> None:
    """Delete a population that is to be replaced, and nothing that lies beside it."""
    # the root goes last, so that an interrupted deletion can be taken up again
    for folder in ("models", "inputs"):
        location.delete(folder)
    location.delete_key("zarr.json")


def begin_shared(location: Location, root: Root, inputs: PopulationInputs) -> None:
    """Write what all models share, in the order that the format demands."""
    write_root(location, root)
    location.set("models/zarr.json", group_document())
    write_inputs(location, inputs)


def begin_shared_once(
    location: Location, given: Root, inputs: PopulationInputs, deadline: float
) -> None:
    """Begin a population unless another writer does; then wait until it is there."""
    begun = False
    while True:
        try:
            root = read_root(location)
            read_inputs(location, read_header(location, root.inputs_hash))
            check_group(location, "models")
            if set(given.models or ()) <= set(root.models or ()):
                return
        except StoreError:  # not there, or not to the end
            if begun:  # nor is what was just written
                raise
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
                begin_shared(location, given, inputs)
            else:
                check_same(location, root, given, inputs)
                complete_shared(location, root, given, inputs)
            begun = True
        finally:
            lease.release()


def complete_shared(location: Location, root: Root, given: Root, inputs: PopulationInputs) -> None:
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


def read_or_mend_root(location: Location, given: Root, *, repair: bool) -> Root:
    """Return the root; write it where it is damaged, if that may be mended."""
    try:
        return read_root(location)
    except StoreError:
        if not repair or is_whole(location) or not is_begun(location, given):
            raise
        write_root(location, given)
        return given


def is_begun(location: Location, given: Root) -> bool:
    """Return whether what lies beside a lost root document is of the population given."""
    try:
        read_header(location, given.inputs_hash)
    except StoreError:
        return any(model_id in read_models(location)[0] for model_id in given.models or ())
    return True


def clear_inputs(location: Location, root: Root) -> None:
    """Delete what belongs to no block of the inputs."""
    header = read_header(location, root.inputs_hash)
    for name in header.layouts:
        clear(input_reader(location, header, name).blocks)


def _unique(models: Sequence[str]) -> tuple[str, ...]:
    if isinstance(models, str) or len(set(models)) < len(models):
        raise InvalidInput(f"Expected every model id once, got {models!r}.")
    return tuple(plain_json(list(models), "models"))
