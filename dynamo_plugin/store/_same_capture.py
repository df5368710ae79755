"""Whether a capture may go on with what lies at a place: the same configuration and inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo_plugin.errors import InvalidInput, StoreError, UnsupportedFormat
from dynamo_plugin.store._inputs_arrays import read_header
from dynamo_plugin.store._root import VERSION

if TYPE_CHECKING:
    from dynamo_plugin.store._location import Location
    from dynamo_plugin.store._root import Root
    from dynamo_plugin.store.inputs import PopulationInputs

__all__ = ["check_same"]


def check_same(location: Location, root: Root, given: Root, inputs: PopulationInputs) -> None:
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
