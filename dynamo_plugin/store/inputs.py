"""The inputs that every model of a population is shown: ragged sequences, or single arrays."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.types import InputSpec, RowAxis, SequenceBatch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PopulationInputs", "as_batch", "ranges", "sample_indices"]

_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class PopulationInputs:
    """Sequences of different lengths, laid one after the other, or one array per sample.

    The arrays are kept without a copy and made read-only; do not change them through another
    reference afterwards. Two inputs are the same if their hashes are.

    Raises
    ------
    InvalidInput
        An array has a shape or dtype other than documented below, `offsets` do not cut `values`
        into sequences of at least one step, a sample id occurs twice, an id lies outside the
        vocabulary, or a feature or target is not finite.

    Examples
    --------
    >>> inputs = PopulationInputs(
    ...     values=np.array([3, 1, 4, 1, 5]),
    ...     offsets=np.array([0, 2, 5]),
    ...     sample_ids=("first", "second"),
    ...     spec=InputSpec(kind="ids", size=10),
    ... )
    >>> inputs.lengths
    array([2, 3])
    >>> inputs.batch([1, 0]).values
    tensor([[4, 1, 5],
            [3, 1, 0]])
    """

    values: NDArray[Any]
    """(row,) int64 ids, (row, feature) float32 or float64, or (sample, *shape) of those dtypes. A
    memory map is not loaded."""
    offsets: NDArray[np.int64]
    """(sample + 1,): sample i is the rows offsets[i]:offsets[i + 1], one row without time."""
    sample_ids: tuple[str, ...]
    """One unique id per sample."""
    spec: InputSpec
    """Kind of the values, and number of distinct ids or of features."""
    targets: NDArray[Any] | None = None
    """What the task asks for, used by scores only: (sample,), (sample, target), (row,) or
    (row, target), int64, float32 or float64."""
    targets_axis: RowAxis | None = None
    """`sample`: one target per sample; `time`: one per row. None without targets."""
    _hash: list[str] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        values = _integers_as_int64(self.values, "values")
        offsets = _integers_as_int64(self.offsets, "offsets")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "sample_ids", tuple(self.sample_ids))
        self._check_offsets()
        self._check_ids()
        self._check_values()
        if self.targets is not None:
            targets = _integers_as_int64(self.targets, "targets")
            object.__setattr__(self, "targets", targets)
        self._check_targets()

    def _check_offsets(self) -> None:
        offsets, rows = self.offsets, len(self.values) if self.values.ndim else 0
        if offsets.ndim != 1 or offsets.dtype != np.int64 or offsets.size < 2:
            raise InvalidInput(
                "Expected offsets of shape (samples + 1,) and at least one sample, got "
                f"{offsets.dtype} of shape {offsets.shape}."
            )
        if offsets[0] != 0 or offsets[-1] != rows:
            raise InvalidInput(
                f"Expected offsets from 0 to the number of rows, {rows}; they go from "
                f"{offsets[0]} to {offsets[-1]}."
            )
        short = np.flatnonzero(offsets[1:] <= offsets[:-1])
        if short.size:
            sample = int(short[0])
            raise InvalidInput(
                f"Expected every sample to have at least one step; sample {sample} has "
                f"{offsets[sample + 1] - offsets[sample]}. Leave empty samples out."
            )

    def _check_ids(self) -> None:
        if len(self.sample_ids) != len(self.offsets) - 1:
            raise InvalidInput(
                f"Expected one sample id for each of {len(self.offsets) - 1} samples, got "
                f"{len(self.sample_ids)}."
            )
        for position, sample_id in enumerate(self.sample_ids):
            if not isinstance(sample_id, str):
                raise InvalidInput(
                    f"Expected text as sample ids; number {position} is {sample_id!r} of type "
                    f"{type(sample_id).__name__}. Convert them with str."
                )
        if len(set(self.sample_ids)) < len(self.sample_ids):
            name, count = Counter(self.sample_ids).most_common(1)[0]
            raise InvalidInput(f"Expected unique sample ids; {name!r} occurs {count} times.")
        try:
            "".join(self.sample_ids).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInput(f"Expected sample ids that UTF-8 can hold: {error}.") from error

    def _check_values(self) -> None:
        values, spec = self.values, self.spec
        if spec.kind not in ("ids", "features", "array") or spec.size < 1:
            raise InvalidInput(
                "Expected an input kind 'ids', 'features' or 'array' and a size of at least 1, got "
                f"{spec}."
            )
        if spec.kind == "ids":
            if values.ndim != 1 or values.dtype != np.int64:
                raise InvalidInput(
                    f"Expected ids as int64 of shape (rows,), got {values.dtype} of shape "
                    f"{values.shape}."
                )
            row = _first(values, lambda part: (part < 0) | (part >= spec.size))
            if row is not None:
                raise InvalidInput(
                    f"Expected ids from 0 to {spec.size - 1}; {self._row(row)} holds "
                    f"{values[row]}. Raise the vocabulary size or mend the ids."
                )
            return
        row_shape = (spec.size,) if spec.kind == "features" else spec.shape
        if values.shape[1:] != row_shape or math.prod(row_shape) != spec.size:
            raise InvalidInput(
                f"Expected {spec.kind} of {spec.size} numbers, of shape (rows, "
                f"{', '.join(map(str, row_shape))}), got {values.shape}."
            )
        if spec.kind == "array" and len(values) != len(self):
            raise InvalidInput(
                f"Expected one array for each of {len(self)} samples, got {len(values)}."
            )
        if values.dtype not in (np.float32, np.float64):
            raise InvalidInput(f"Expected {spec.kind} as float32 or float64, got {values.dtype}.")
        row = _first(values, lambda part: ~np.isfinite(part.reshape(len(part), -1)).all(axis=1))
        if row is not None:
            raise InvalidInput(f"Expected finite {spec.kind}; {self._row(row)} holds NaN or inf.")

    def _row(self, row: int) -> str:
        """Say where a row is."""
        sample = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return f"step {row - self.offsets[sample]} of sample {sample} ({self.sample_ids[sample]!r})"

    def _check_targets(self) -> None:
        targets, axis = self.targets, self.targets_axis
        if targets is None:
            if axis is not None:
                raise InvalidInput(f"Expected targets beside targets_axis={axis!r}, got none.")
            return
        if axis not in ("sample", "time"):
            raise InvalidInput(
                f"Expected targets_axis 'sample' or 'time' beside targets, got {axis!r}."
            )
        count = len(self) if axis == "sample" else len(self.values)
        if targets.ndim not in (1, 2) or len(targets) != count or 0 in targets.shape:
            raise InvalidInput(
                f"Expected targets of shape ({count},) or ({count}, targets), got {targets.shape}."
            )
        if targets.dtype not in (np.int64, np.float32, np.float64):
            raise InvalidInput(
                f"Expected targets as integers, float32 or float64, got {targets.dtype}."
            )
        if not np.isfinite(targets).all():
            position = int(np.argmin(np.isfinite(targets.reshape(count, -1)).all(axis=1)))
            raise InvalidInput(f"Expected finite targets; number {position} holds NaN or inf.")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sample,): number of steps of every sample."""
        return np.diff(self.offsets)

    @property
    def hash(self) -> str:
        """SHA-256 of everything, as documented in docs/store-format.md; computed once."""
        if not self._hash:
            self._hash.append(self._compute_hash())
        return self._hash[0]

    def _compute_hash(self) -> str:
        ids = "".join(f"{len(i.encode())}:{i}" for i in self.sample_ids).encode()
        parts = [self.values, self.offsets]
        if self.targets is not None:
            parts.append(self.targets)
        header = {
            "kind": self.spec.kind,
            "size": self.spec.size,
            "arrays": [[part.dtype.name, *part.shape] for part in parts],
            "targets_axis": self.targets_axis,
        }
        digest = hashlib.sha256(b"dynamo-population-inputs/1\n")
        digest.update(json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n")
        for part in parts:
            size = max(_PIECE_BYTES // max(part[:1].nbytes, 1), 1)
            for start in range(0, len(part), size):
                piece = part[start : start + size]
                little = np.ascontiguousarray(piece, dtype=part.dtype.newbyteorder("<"))
                digest.update(little.data.cast("B"))
        digest.update(ids)
        return digest.hexdigest()

    def batch(self, samples: ArrayLike) -> SequenceBatch:
        """Return some samples as tensors, sequences padded with zeros to the longest of them.

        Parameters
        ----------
        samples
            (batch,) sample numbers in any order; repeats are allowed.

        Returns
        -------
        SequenceBatch
            `values` (batch, time) int64, (batch, time, feature) or (batch, *shape); `lengths`
            (batch,) int64.

        Raises
        ------
        InvalidInput
            There are none, or a number is not that of a sample.
        """
        chosen = sample_indices(samples, len(self))
        if not chosen.size:
            raise InvalidInput("Expected at least one sample in a batch, got none.")
        starts, stops = self.offsets[chosen], self.offsets[chosen + 1]
        if (starts[1:] == stops[:-1]).all():  # as they lie
            rows = np.array(self.values[starts[0] : stops[-1]])
        else:
            rows = self.values[ranges(starts, stops - starts)]
        return as_batch(rows, stops - starts, self.spec)

    def take(self, samples: ArrayLike) -> PopulationInputs:
        """Return some samples, in the order given, with their ids and targets.

        Parameters
        ----------
        samples
            (sample,) different sample numbers.

        Raises
        ------
        InvalidInput
            There are none, one is not that of a sample, or one occurs twice.
        """
        chosen = sample_indices(samples, len(self))
        lengths = self.lengths[chosen]
        rows = ranges(self.offsets[chosen], lengths)
        targets = self.targets
        if targets is not None:
            targets = targets[chosen if self.targets_axis == "sample" else rows]
        return PopulationInputs(
            values=self.values[rows],
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            sample_ids=tuple(self.sample_ids[sample] for sample in chosen),
            spec=self.spec,
            targets=targets,
            targets_axis=self.targets_axis,
        )


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers in some ranges, one range after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def as_batch(rows: NDArray[Any], lengths: NDArray[np.int64], spec: InputSpec) -> SequenceBatch:
    """Return flat rows as a batch, sequences padded with zeros to the longest of them.

    Parameters
    ----------
    rows
        (row, *row shape) of all samples, one after the other; the batch may share its memory.
    lengths
        (sample,) rows of each sample.
    spec
        What they are.
    """
    longest, has_time = int(lengths.max()), spec.kind != "array"
    leading = (len(lengths), longest) if has_time else (len(lengths),)
    if (lengths != longest).any():
        padded = np.zeros((len(lengths) * longest, *rows.shape[1:]), dtype=rows.dtype)
        padded[ranges(np.arange(len(lengths)) * longest, lengths)] = rows
        rows = padded
    return SequenceBatch(
        values=torch.from_numpy(rows.reshape(*leading, *rows.shape[1:])),
        lengths=torch.from_numpy(lengths),
        has_time=has_time,
    )


def _first(values: NDArray[Any], wrong: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> int | None:
    """Return the first row that is wrong; a memory map is passed through in pieces."""
    size = max(_PIECE_BYTES // max(values[:1].nbytes, 1), 1)
    for start in range(0, len(values), size):
        found = wrong(values[start : start + size])
        if found.any():
            return start + int(np.argmax(found))
    return None


def sample_indices(samples: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return sample numbers as a checked int64 array.

    Raises
    ------
    InvalidInput
        They are not integers in one dimension, or one is not below `count` or is negative.
    """
    chosen = np.asarray(samples)
    if chosen.ndim == 1 and not chosen.size:
        return np.empty(0, dtype=np.int64)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise InvalidInput(
            "Expected sample numbers as integers in one dimension, got "
            f"{chosen.dtype} of shape {chosen.shape}."
        )
    if chosen.min() < 0 or chosen.max() >= count:
        raise InvalidInput(
            f"Expected sample numbers from 0 to {count - 1}, got {chosen.min()} to {chosen.max()}."
        )
    return chosen.astype(np.int64)


def _integers_as_int64(array: ArrayLike, name: str) -> NDArray[Any]:
    """Return a read-only, contiguous, native-endian view or copy, integers widened to int64."""
    result = np.asarray(array)
    if result.dtype.kind == "u" and result.size and result.max() > np.iinfo(np.int64).max:
        raise InvalidInput(f"Expected {name} that fit int64, got {result.max()}.")
    wanted = np.dtype(np.int64) if result.dtype.kind in "iu" else result.dtype.newbyteorder("=")
    result = np.ascontiguousarray(result, dtype=wanted).view()
    result.flags.writeable = False
    return result
