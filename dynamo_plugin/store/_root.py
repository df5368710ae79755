"""The root group, which says that a Zarr group is a population and of which version."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import (
    CorruptBlock,
    IncompleteCapture,
    InvalidInput,
    StoreError,
    StoreNotFound,
    UnsupportedFormat,
)
from dynamo_plugin.store._documents import canonical, group_document, parse_json, read_group
from dynamo_plugin.store._keys import path_key
from dynamo_plugin.store._specs import spec_from_json, spec_to_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.store._location import Location
    from dynamo_plugin.types import JSON, TrajectorySpec

__all__ = [
    "FORMAT",
    "VERSION",
    "ModelHeader",
    "Root",
    "is_population",
    "is_whole",
    "read_model",
    "read_models",
    "read_root",
    "write_model",
    "write_root",
]

FORMAT = "dynamo-population"
VERSION = 2
"""What this release writes. It reads all earlier versions."""

# the group's own document, what an interrupted write of it leaves, and hidden files
_NO_MODEL = re.compile(r"zarr\.json|zarr\.[0-9a-f]{32}\.partial|\..*")


@dataclass(frozen=True, slots=True)
class Root:
    """What the root group says."""

    config: dict[str, JSON]
    """Configuration of the capture."""
    inputs_hash: str
    """Of the inputs that every model was shown."""
    models: tuple[str, ...] | None
    """Ids that the finished population holds, if the writer knew them."""
    version: int = VERSION
    """Format version."""

    @property
    def config_hash(self) -> str:
        """SHA-256 of the canonical JSON of the configuration."""
        return hashlib.sha256(canonical(self.config)).hexdigest()


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What the group of a model says."""

    id: str
    """Name of the model."""
    index: int
    """Place in the population's order."""
    spec: TrajectorySpec
    """What was recorded."""
    metadata: dict[str, JSON]
    """What the user said about the model."""
    model_hash: str
    """Of the model's class and parameters."""
    complete: bool
    """Whether all of it was written."""


def write_root(location: Location, root: Root) -> None:
    """Write the root document."""
    try:
        software = f"dynamo-plugin {version('dynamo-plugin')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        software = "dynamo-plugin"
    dynamo = {
        "format": FORMAT,
        "version": VERSION,
        "software": software,
        "config": root.config,
        "inputs_hash": root.inputs_hash,
        "models": None if root.models is None else list(root.models),
    }
    location.set("zarr.json", group_document(dynamo))


def read_root(location: Location) -> Root:
    """Read the root document.

    Raises
    ------
    StoreNotFound
        There is none.
    UnsupportedFormat
        It is not that of a population of a version that this release reads.
    CorruptBlock
        It is not what was written.
    """
    data = location.get("zarr.json")
    if data is None:
        raise StoreNotFound(
            f"Expected a population at {location}, but there is no zarr.json. "
            "Check the path, or capture one."
        )
    version = _read_version(location, data)
    found = read_group(location, "", data=data)
    config, inputs_hash, models = (found.get(k) for k in ("config", "inputs_hash", "models"))
    named = models is None or (isinstance(models, list) and all(type(m) is str for m in models))
    if not isinstance(config, dict) or not isinstance(inputs_hash, str) or not named:
        raise CorruptBlock(f"Missing or malformed fields in zarr.json of {location}.")
    return Root(config, inputs_hash, None if models is None else tuple(models), version)


def _read_version(location: Location, data: NDArray[np.uint8]) -> int:
    """Return the version, before details are looked at that differ between versions."""
    match parse_json(data, f"zarr.json of {location}"):
        case {"attributes": {"dynamo": {"format": "dynamo-population", "version": int(found)}}}:
            if not 1 <= found <= VERSION:
                raise UnsupportedFormat(
                    f"{location} is a population of format version {found}; this release reads "
                    f"versions 1 to {VERSION}. Upgrade dynamo-plugin."
                )
            return found
        case _:
            raise UnsupportedFormat(
                f"{location} holds a Zarr group or array, but no population: its attributes do "
                f"not say format {FORMAT!r}. Check the path."
            )


def is_population(location: Location) -> bool:
    """Return whether the root document says that this is a population, of any version."""
    data = location.get("zarr.json")
    if data is None:
        return False
    try:
        document: Mapping[str, Any] = parse_json(data, "zarr.json")
    except CorruptBlock:
        return False
    match document:
        case {"attributes": {"dynamo": {"format": "dynamo-population"}}}:
            return True
    return False


def is_whole(location: Location) -> bool:
    """Return whether the root document is as it was written, of whatever version."""
    try:
        read_group(location, "")
    except StoreError:
        return False
    return True


def write_model(location: Location, header: ModelHeader) -> None:
    """Write the document of a model's group."""
    dynamo = {
        "id": header.id,
        "index": header.index,
        "spec": spec_to_json(header.spec),
        "metadata": header.metadata,
        "model_hash": header.model_hash,
        "complete": header.complete,
    }
    location.set(f"models/{path_key(header.id)}/zarr.json", group_document(dynamo))


def read_model(
    location: Location, key: str, *, data: NDArray[np.uint8] | None, version: int = VERSION
) -> ModelHeader:
    """Return the header of the model in the group models/`key`.

    Raises
    ------
    IncompleteCapture
        Its document is missing.
    CorruptBlock, UnsupportedFormat
        It is not what was written, or was moved here from another key.
    """
    path = f"models/{key}"
    where = f"{path}/zarr.json of {location}"
    if data is None:
        raise IncompleteCapture(
            f"Expected {where}, which is missing. Capture again with resume=True."
        )
    found = read_group(location, path, data=data)
    try:
        header = ModelHeader(
            id=found["id"],
            index=found["index"],
            spec=spec_from_json(found["spec"], version=version),
            metadata=found["metadata"],
            model_hash=found["model_hash"],
            complete=found["complete"],
        )
        types = [type(getattr(header, name)) for name in header.__slots__ if name != "spec"]
    except (KeyError, InvalidInput) as error:
        raise CorruptBlock(f"Missing or malformed field in {where}: {error}.") from error
    if types != [str, int, dict, str, bool]:
        raise CorruptBlock(f"A field in {where} has the wrong type: {found!r}.")
    if path_key(header.id) != key:
        raise CorruptBlock(
            f"{where} describes model {header.id!r}, which belongs under "
            f"models/{path_key(header.id)}. Groups cannot be renamed or copied."
        )
    return header


def read_models(
    location: Location, *, version: int = VERSION
) -> tuple[dict[str, ModelHeader], dict[str, StoreError]]:
    """Return the header of every model by id, in the population's order.

    Returns
    -------
    tuple
        The headers that can be read, and by key of the group the errors of those that cannot.
    """
    keys = [key for key in location.children("models") if not _NO_MODEL.fullmatch(key)]
    documents = location.get_many([f"models/{key}/zarr.json" for key in keys])
    headers: list[ModelHeader] = []
    errors: dict[str, StoreError] = {}
    for key, data in zip(keys, documents, strict=True):
        try:
            headers.append(read_model(location, key, data=data, version=version))
        except StoreError as error:
            errors[key] = error
    headers.sort(key=lambda header: (header.index, header.id))
    return {header.id: header for header in headers}, errors
