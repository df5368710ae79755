"""Right answers of a task, laid out like the outputs of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.store import Population
    from dynamo_plugin.types import OutputSpec

__all__ = ["align_targets"]


def align_targets(population: Population, output: OutputSpec, targets: ArrayLike) -> NDArray[Any]:
    """Return targets laid out like the stored outputs of a group.

    Parameters
    ----------
    population
        Says how many samples there are, and how long.
    output
        The output group.
    targets
        Integer classes: (sample,) or (sample, 1), or (row,) or (row, 1) for outputs per step.
        Numbers: the same with one column per output channel. Targets per step may also come padded,
        (sample, time, channel).

    Returns
    -------
    ndarray
        (sample or row,) int64 classes, or (sample or row, channel) float64 numbers.

    Raises
    ------
    InvalidInput
        If they do not fit, are not finite, or a class is out of range.
    """
    values = np.asarray(targets)
    channels = int(np.prod(output.shape, dtype=np.int64))
    lengths = np.asarray(population.lengths)
    rows, samples = int(lengths.sum()), len(lengths)
    wanted = rows if output.axis == "time" else samples
    if values.dtype.kind not in "biuf":
        raise InvalidInput(f"Expected integer or real targets, got dtype {values.dtype}.")
    if (
        output.axis == "time"
        and values.shape[:2] == (samples, int(lengths.max()))
        and (values.ndim == 3 or samples != rows)
    ):
        values = values[np.arange(values.shape[1]) < lengths[:, None]]
    if values.ndim == 0 or len(values) != wanted:
        per = "row (one per step of every sample)" if output.axis == "time" else "sample"
        raise InvalidInput(
            f"Expected one target for each of {wanted} {per}s, since the outputs of the group "
            f"{output.group!r} come per {output.axis}; got shape {values.shape}."
        )
    flat = values.reshape(wanted, -1)
    if values.dtype.kind in "biu" and flat.shape[1] == 1:
        classes = max(channels, 2)
        flat = flat[:, 0].astype(np.int64)
        if flat.min() < 0 or flat.max() >= classes:
            raise InvalidInput(
                f"Expected classes from 0 to {classes - 1} for outputs of {channels} channels, got "
                f"{flat.min()} to {flat.max()}. Give floating-point targets to score by R2."
            )
        return flat
    if flat.shape[1] != channels:
        raise InvalidInput(
            f"Expected {channels} target channels, as many as outputs, got {flat.shape[1]}."
        )
    flat = flat.astype(np.float64)
    if not np.isfinite(flat).all():
        raise InvalidInput("Expected finite targets, got NaN or infinity among them.")
    return flat
