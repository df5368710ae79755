"""The inputs of a population as arrays in its store."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynamo_plugin.errors import CorruptBlock, InvalidInput
from dynamo_plugin.store._array_reader import ArrayReader
from dynamo_plugin.store._blocking import chunk_rows, text_chunk_rows
from dynamo_plugin.store._blocks import ArrayBlocks, Identity
from dynamo_plugin.store._documents import STRING, ArrayLayout, group_document, read_group
from dynamo_plugin.store._root import VERSION
from dynamo_plugin.store._specs import MOST_AXES, MOST_NUMBERS, row_dimension
from dynamo_plugin.store._text import encode_text
from dynamo_plugin.store.inputs import PopulationInputs
from dynamo_plugin.types import InputSpec

if TYPE_CHECKING:
    from dynamo_plugin.store._block_cache import BlockCache
    from dynamo_plugin.store._location import Location
    from dynamo_plugin.types import RowAxis

__all__ = [
    "InputsHeader",
    "header_of",
    "input_blocks",
    "input_reader",
    "read_header",
    "read_inputs",
    "write_inputs",
]


@dataclass(frozen=True, slots=True)
class InputsHeader:
    """What the group of the inputs says; its arrays follow from it."""

    spec: InputSpec
    """Kind and size."""
    samples: int
    """Number of samples."""
    rows: int
    """Number of steps of all samples together."""
    dtype: str
    """Of the values."""
    targets: tuple[RowAxis, str, tuple[int, ...]] | None
    """Axis, dtype and shape of one target, if there are targets."""
    hash: str
    """Of the inputs."""
    version: int = VERSION
    """Format version of the population."""

    @property
    def layouts(self) -> dict[str, ArrayLayout]:
        """Every array by its name."""
        row_shape: dict[str, tuple[int, ...]] = {
            "ids": (),
            "features": (self.spec.size,),
            "array": self.spec.shape,
        }
        shape = row_shape[self.spec.kind]
        names = (
            ("feature",)
            if self.spec.kind == "features"
            else tuple(f"axis_{axis}" for axis in range(len(shape)))
        )
        rows = "sample" if self.spec.kind == "array" else "row"
        layouts = [
            ArrayLayout("inputs/values", (self.rows, *shape), self.dtype, (rows, *names)),
            ArrayLayout("inputs/offsets", (self.samples + 1,), "int64", ("boundary",)),
            ArrayLayout("inputs/sample_ids", (self.samples,), STRING, ("sample",)),
        ]
        if self.targets is not None:
            axis, dtype, shape = self.targets
            count = self.samples if axis == "sample" else self.rows
            dimensions = (row_dimension(axis), *("target",)[: len(shape)])
            layouts.append(
                ArrayLayout("inputs/targets", (count, *shape), dtype, dimensions, {"axis": axis})
            )
        return {
            layout.path.removeprefix("inputs/"): replace(layout, version=self.version)
            for layout in layouts
        }


def write_inputs(location: Location, inputs: PopulationInputs) -> None:
    """Write the group of the inputs and all its arrays."""
    location.set("inputs/zarr.json", group_document(_to_json(header_of(inputs, inputs.hash))))
    arrays = {"values": inputs.values, "offsets": inputs.offsets}
    if inputs.targets is not None:
        arrays["targets"] = inputs.targets
    for name, blocks in input_blocks(location, inputs, inputs.hash).items():
        blocks.describe()
        for block in range(blocks.count):
            start, stop = blocks.bounds(block)
            if blocks.layout.dtype == STRING:
                encoded = encode_text(inputs.sample_ids[start:stop], blocks.chunk_rows)
                record = blocks.write_bytes(block, [encoded], zero=False)
            else:
                record = blocks.write(block, [arrays[name][start:stop]])
            blocks.commit(record)


def input_blocks(
    location: Location, inputs: PopulationInputs, inputs_hash: str = ""
) -> dict[str, ArrayBlocks]:
    """Return the blocks of every array of the inputs, by name, as they are laid out when new."""
    blocks: dict[str, ArrayBlocks] = {}
    for name, layout in header_of(inputs, inputs_hash).layouts.items():
        rows = text_chunk_rows(layout) if layout.dtype == STRING else chunk_rows(layout)
        blocks[name] = ArrayBlocks(location, layout, rows, Identity(inputs_hash), _where(name))
    return blocks


def header_of(inputs: PopulationInputs, inputs_hash: str) -> InputsHeader:
    """Return what the group of some inputs says."""
    targets = inputs.targets
    return InputsHeader(
        spec=inputs.spec,
        samples=len(inputs),
        rows=len(inputs.values),
        dtype=inputs.values.dtype.name,
        targets=None
        if targets is None or inputs.targets_axis is None
        else (inputs.targets_axis, targets.dtype.name, targets.shape[1:]),
        hash=inputs_hash,
    )


def _to_json(header: InputsHeader) -> dict[str, Any]:
    targets = header.targets
    return {
        "kind": header.spec.kind,
        "size": header.spec.size,
        "shape": list(header.spec.shape),
        "samples": header.samples,
        "rows": header.rows,
        "dtype": header.dtype,
        "targets": targets and {"axis": targets[0], "dtype": targets[1], "shape": list(targets[2])},
        "hash": header.hash,
    }


def read_header(location: Location, inputs_hash: str, *, version: int = VERSION) -> InputsHeader:
    """Read the group of the inputs.

    Raises
    ------
    IncompleteCapture
        It was never written.
    CorruptBlock, UnsupportedFormat
        It is not what was written, or belongs to another population.
    """
    found = read_group(location, "inputs")
    where = f"inputs/zarr.json of {location}"
    try:
        targets = found["targets"]
        header = InputsHeader(
            spec=InputSpec(
                kind=found["kind"],
                size=found["size"],
                shape=() if version == 1 else tuple(found["shape"]),
            ),
            samples=found["samples"],
            rows=found["rows"],
            dtype=found["dtype"],
            targets=targets and (targets["axis"], targets["dtype"], tuple(targets["shape"])),
            hash=found["hash"],
            version=version,
        )
    except (KeyError, TypeError) as error:
        raise CorruptBlock(f"Missing or malformed field in {where}: {error!r}.") from error
    if header.hash != inputs_hash:
        raise CorruptBlock(
            f"Expected inputs of hash {inputs_hash} in {location}, found {header.hash}: these "
            "inputs belong to another population. Capture again."
        )
    if not _plausible(header):
        raise CorruptBlock(f"The fields in {where} do not describe inputs: {found!r}.")
    return header


def _plausible(header: InputsHeader) -> bool:
    spec = header.spec
    sizes = [spec.size, header.samples, header.rows, *spec.shape]
    floats = ("float32", "float64")
    dtypes: dict[str, tuple[str, ...]] = {"ids": ("int64",), "features": floats, "array": floats}
    allowed = header.dtype in dtypes.get(spec.kind, ())
    allowed &= header.version > 1 or spec.kind != "array"
    if spec.kind == "array":
        allowed &= bool(spec.shape) and header.rows == header.samples
    else:
        allowed &= not spec.shape
    if header.targets is not None:
        axis, dtype, shape = header.targets
        sizes += shape
        allowed &= axis in ("sample", "time") and len(shape) <= 1
        allowed &= dtype in ("int64", "float32", "float64")
    allowed &= len(spec.shape) <= MOST_AXES
    allowed &= all(type(size) is int and 0 < size <= MOST_NUMBERS for size in sizes)
    return bool(allowed) and math.prod(spec.shape) <= MOST_NUMBERS


def input_reader(
    location: Location, header: InputsHeader, name: str, *, cache: BlockCache | None = None
) -> ArrayReader:
    """Return the reader of one array of the inputs."""
    return ArrayReader(
        location, header.layouts[name], _where(name), Identity(header.hash), cache=cache
    )


def _where(name: str) -> str:
    return f"array {name!r} of the inputs"


def read_inputs(location: Location, header: InputsHeader) -> PopulationInputs:
    """Read all arrays of the inputs and check them against their hash.

    Raises
    ------
    IncompleteCapture, CorruptBlock, UnsupportedFormat
        An array is missing or not what was written.
    """
    readers = {name: input_reader(location, header, name) for name in header.layouts}
    try:
        inputs = PopulationInputs(
            values=readers["values"].read(),
            offsets=readers["offsets"].read(),
            sample_ids=tuple(readers["sample_ids"].read_text()),
            spec=header.spec,
            targets=readers["targets"].read() if "targets" in readers else None,
            targets_axis=header.targets[0] if header.targets else None,
        )
    except InvalidInput as error:
        raise CorruptBlock(f"The inputs in {location} contradict themselves: {error}") from error
    if inputs.hash != header.hash:
        raise CorruptBlock(
            f"The inputs in {location} have hash {inputs.hash}, {header.hash} was written. "
            "Capture again."
        )
    return inputs
