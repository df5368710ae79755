"""Some of the samples, at random but the same everywhere."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.types import JSON

__all__ = ["chosen_samples", "draw_samples"]


def draw_samples(count: int, total: int, seed: int) -> NDArray[np.int64]:
    """Return `count` of the numbers below `total`, ascending; fewer are a part of more.

    Every number has a key of 64 bits, its place in SHAKE-256 of the ASCII text

        dynamo-plugin samples 1: seed {seed}, total {total}

    read as little-endian integers; those with the smallest keys are drawn.

    >>> draw_samples(3, 10, seed=0)
    array([...])
    """
    text = f"dynamo-plugin samples 1: seed {seed}, total {total}"
    stream = hashlib.shake_256(text.encode("ascii")).digest(8 * total)
    order = np.argsort(np.frombuffer(stream, dtype="<u8"), kind="stable")
    return np.sort(order[:count]).astype(np.int64)


def chosen_samples(
    samples: int | ArrayLike | None, total: int, seed: int
) -> tuple[NDArray[np.int64] | None, JSON]:
    """Return which samples are shown to the models, and what the configuration says of that.

    Parameters
    ----------
    samples
        So many of them, at random; or their numbers; or None for all.
    total
        How many there are.
    seed
        Of the draw.

    Returns
    -------
    tuple
        (sample,) int64 numbers, or None for all; and an object for the configuration, or None.

    Raises
    ------
    InvalidInput
        There are not so many, or the numbers are not those of samples, each once.
    """
    if type(seed) is not int or seed < 0:
        raise InvalidInput(f"sample_seed must be an integer of at least 0; got {seed!r}.")
    single = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
    if seed and not single:
        raise InvalidInput("sample_seed is only used together with samples=, a number of them.")
    if samples is None:
        return None, None
    if single:
        count = int(samples)  # type: ignore[arg-type]
        if not 1 <= count <= total:
            raise InvalidInput(
                f"samples must be from 1 to {total}, as many as there are; got {count}."
            )
        drawn = draw_samples(count, total, seed)
        return drawn, {"of": total, "count": count, "seed": seed}
    numbers: NDArray[Any] = np.asarray(samples)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        raise InvalidInput(
            "samples must be a number of samples, or their numbers as integers in one dimension; "
            f"got {numbers.dtype} of shape {numbers.shape}."
        )
    if numbers.min() < 0 or numbers.max() >= total:
        raise InvalidInput(
            f"samples must be numbers from 0 to {total - 1}; got {numbers.min()} to "
            f"{numbers.max()}."
        )
    values, counts = np.unique(numbers, return_counts=True)
    if counts.max() > 1:
        raise InvalidInput(
            f"samples must name each sample once; {values[counts.argmax()]} occurs "
            f"{counts.max()} times."
        )
    chosen = numbers.astype(np.int64)
    digest = hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()
    return chosen, {"of": total, "count": len(chosen), "numbers_sha256": digest}
