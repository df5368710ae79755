"""What a population would weigh, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamo_plugin.store._blocks import Identity
from dynamo_plugin.store._inputs_arrays import input_blocks
from dynamo_plugin.store._location import locate
from dynamo_plugin.store._plan import Plan
from dynamo_plugin.store._text import encode_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamo_plugin.store._blocks import ArrayBlocks
    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.types import TrajectorySpec

__all__ = ["Weight", "weigh_inputs", "weigh_model"]

PAGE_BYTES = 4096
"""What a file takes at least on most disks, and by which it grows."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Size of a part of a population."""

    bytes: int
    """In blocks, padding included."""
    files: int
    """Blocks, their commit records, and descriptions."""

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.bytes + other.bytes, self.files + other.files)

    def __mul__(self, count: int) -> Weight:
        return Weight(self.bytes * count, self.files * count)

    @property
    def on_disk(self) -> int:
        """Bytes on a disk, at most: the blocks, and a page more for every file."""
        return self.bytes + PAGE_BYTES * self.files


def weigh_model(
    spec: TrajectorySpec, lengths: NDArray[np.int64], *, batch_size: int
) -> tuple[Weight, dict[str, int]]:
    """Return what a model of this specification would weigh.

    Parameters
    ----------
    spec
        What is stored of it.
    lengths
        (sample,) steps of each sample.
    batch_size
        Of the capture.

    Returns
    -------
    tuple
        The weight, and the bytes of the rows of each site, and of the output under the empty name.
    """
    nowhere = Plan(locate({}, create=True), lengths, batch_size, Identity(""))
    blocks = nowhere.blocks("", spec, "")
    groups = 3 + (1 + len(blocks.reductions) if blocks.reductions else 0)
    rows = {
        name: array.layout.shape[0] * array.layout.row_bytes
        for name, array in {**blocks.sites, "": blocks.output}.items()
    }
    return _weigh(blocks.arrays, groups), rows


def weigh_inputs(inputs: PopulationInputs) -> Weight:
    """Return what all models share would weigh: inputs, root and groups."""
    arrays = dict(input_blocks(locate({}, create=True), inputs))
    text = arrays.pop("sample_ids")
    weight = _weigh(arrays.values(), groups=3)
    names = inputs.sample_ids
    for block in range(text.count):
        encoded = encode_text(names[slice(*text.bounds(block))], text.chunk_rows)
        weight += Weight(len(encoded), 2)
    return weight + Weight(0, 1)


def _weigh(arrays: Iterable[ArrayBlocks], groups: int) -> Weight:
    weight = Weight(0, groups)
    for array in arrays:
        size = array.count * array.chunk_rows * array.layout.row_bytes
        weight += Weight(size, 1 + 2 * array.count)
    return weight
