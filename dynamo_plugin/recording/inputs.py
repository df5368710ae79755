"""From the ways in which inputs come to `PopulationInputs`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording.targets import as_targets
from dynamo_plugin.store import PopulationInputs
from dynamo_plugin.types import InputSpec

__all__ = ["as_population_inputs"]

Array = NDArray[Any]


def as_population_inputs(
    inputs: Any,
    *,
    sample_ids: Sequence[str] | None = None,
    lengths: ArrayLike | Tensor | None = None,
    targets: Any = None,
    vocabulary_size: int | None = None,
    has_time: bool | None = None,
) -> PopulationInputs:
    """Bring the inputs of a population into the form in which they are stored.

    Parameters
    ----------
    inputs
        One of: a torch tensor or NumPy array, (sample, time) integer ids or
        (sample, time, feature) floating numbers, or floating arrays without time: (sample,
        feature), (sample, channel, height, width), ...; a list of ragged sequences, each (time,)
        ids or (time, feature) numbers, or of arrays of one shape; a map-style Dataset whose items
        are such samples, (sample, target) pairs, or mappings with `input_ids` (and
        `attention_mask`) or `pixel_values` (and `labels` or `label`); or `PopulationInputs`, which
        are returned as they are. An array that is a memory map is not loaded.
    sample_ids
        One per sample; `sample-0`, `sample-1`, ... by default.
    lengths
        (sample,) real steps of each row of an array whose rows are padded at the end.
    targets
        (sample,) or (sample, k) per sample; (sample, time, k), or a list of (time,) or (time, k)
        arrays, per step. Used by scores only.
    vocabulary_size
        Number of distinct ids; one more than the largest id by default.
    has_time
        Whether floating samples are sequences, (time, feature), or single arrays of any shape. By
        default those with two axes are sequences.

    Raises
    ------
    InvalidInput
        The inputs have another rank or dtype, hold NaN, an empty sequence, a negative id or one
        beyond the vocabulary, or the other arguments do not fit them. Says at which sample.

    Examples
    --------
    >>> as_population_inputs([[1, 2, 3], [4]]).lengths
    array([3, 1])
    >>> as_population_inputs(np.zeros((5, 3, 8, 8))).spec
    InputSpec(kind='array', size=192, shape=(3, 8, 8))
    """
    if isinstance(inputs, PopulationInputs):
        others = {
            "sample_ids": sample_ids,
            "lengths": lengths,
            "targets": targets,
            "vocabulary_size": vocabulary_size,
            "has_time": has_time,
        }
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise InvalidInput(
                f"inputs are PopulationInputs, which hold {', '.join(given)} already; give "
                "them there."
            )
        return inputs
    if isinstance(inputs, Tensor | np.ndarray):
        array = _array(inputs, "inputs")
        single = _is_single(array[0] if len(array) else array, has_time=has_time)
        values, counts = _from_array(array, lengths, single=single)
    else:
        sequences, found = _sequences(inputs)
        if found is not None and targets is not None:
            raise InvalidInput(
                "targets were given twice: as an argument and as the second part of the items of "
                "the Dataset. Leave one out."
            )
        if lengths is not None:
            raise InvalidInput(
                "lengths belong to a padded array; a list or a Dataset of sequences has the "
                "lengths of its items. Leave lengths out."
            )
        targets = targets if found is None else found
        arrays = [_array(item, f"sample {index}") for index, item in enumerate(sequences)]
        single = _is_single(arrays[0], has_time=has_time)
        values, counts = _from_samples(arrays, single=single)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    ids = _sample_ids(sample_ids, len(counts))
    chosen, axis = as_targets(targets, counts)
    return PopulationInputs(
        values=values,
        offsets=offsets,
        sample_ids=ids,
        spec=_input_spec(values, vocabulary_size, single=single),
        targets=chosen,
        targets_axis=axis,
    )


def _array(value: Any, where: str) -> Array:
    """Return a NumPy array of int64, float32 or float64."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        array: Array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InvalidInput(f"{where} cannot be read as an array: {error}.") from error
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype in (np.float32, np.float64):
        return array
    raise InvalidInput(
        f"{where} has dtype {array.dtype}; expected integer ids or float16, float32 or float64 "
        "features."
    )


def _is_single(sample: Array, *, has_time: bool | None) -> bool:
    """Return whether a sample is one array, without time."""
    if has_time is None:
        return sample.dtype.kind == "f" and sample.ndim != 2
    return not has_time


def _check_rank(array: Array, leading: tuple[str, ...], where: str) -> None:
    integer = array.dtype.kind == "i"
    axes = leading if integer else (*leading, "feature")
    if array.ndim == len(axes):
        return
    hint = ""
    if integer and array.ndim == len(axes) + 1:
        hint = " Integer features must be converted to floating numbers first."
    elif not integer and array.ndim == len(leading):
        hint = " Add a last axis for one feature per step (values[..., None]), or pass ids as ints."
    if not integer:
        hint += " Give has_time=False if a sample is one array, without time."
    kind = "integer ids" if integer else "floating features"
    raise InvalidInput(
        f"{where} has shape {array.shape}; expected {kind} of shape ({', '.join(axes)}"
        f"{',' if len(axes) == 1 else ''}).{hint}"
    )


def _check_single(array: Array, where: str) -> None:
    """Refuse arrays without time that are no floating numbers."""
    if array.dtype.kind != "f":
        raise InvalidInput(
            f"{where} holds {array.dtype} and has_time=False; expected floating numbers. Convert "
            "pixels to floating numbers first; ids are sequences, which have time."
        )


def _from_array(
    array: Array, lengths: ArrayLike | Tensor | None, *, single: bool
) -> tuple[Array, NDArray[np.int64]]:
    if single:
        _check_single(array, "inputs")
        if array.ndim < 2 or not array.size:
            raise InvalidInput(
                f"inputs have shape {array.shape}; expected (sample, time) ids, (sample, time, "
                "feature) numbers, or (sample, ...) arrays without time, and at least one sample."
            )
        if lengths is not None:
            raise InvalidInput(
                f"lengths belong to sequences; inputs of shape {array.shape} are one array per "
                "sample. Leave lengths out, or give has_time=True."
            )
        return array, np.ones(len(array), dtype=np.int64)
    _check_rank(array, ("sample", "time"), "inputs")
    samples, time = array.shape[:2]
    if not array.size:
        raise InvalidInput(
            f"inputs have shape {array.shape}; expected at least one sample, step and feature."
        )
    if lengths is None:
        return array.reshape(samples * time, *array.shape[2:]), np.full(samples, time)
    counts = lengths.detach().cpu().numpy() if isinstance(lengths, Tensor) else np.asarray(lengths)
    if counts.shape != (samples,) or counts.dtype.kind not in "iu":
        raise InvalidInput(
            f"lengths must be integers of shape ({samples},), one per sample; got "
            f"{counts.dtype} of shape {counts.shape}."
        )
    wrong = np.flatnonzero((counts < 1) | (counts > time))
    if len(wrong):
        raise InvalidInput(
            f"lengths must lie between 1 and the {time} steps of the inputs; sample "
            f"{wrong[0]} has {counts[wrong[0]]}."
        )
    return array[np.arange(time) < counts[:, None]], counts.astype(np.int64)


def _sequences(inputs: Any) -> tuple[list[Any], list[Any] | None]:
    """Return the sequences of a list or a Dataset, and its targets if it has some."""
    if isinstance(inputs, list | tuple):
        items: list[Any] = list(inputs)
    elif (
        not isinstance(inputs, Mapping | str | bytes)
        and hasattr(inputs, "__getitem__")
        and hasattr(inputs, "__len__")
    ):
        items = [inputs[index] for index in range(len(inputs))]
    else:
        raise InvalidInput(
            "inputs must be a torch tensor, a NumPy array, a list of sequences, a map-style "
            f"Dataset or PopulationInputs; got {type(inputs).__name__}."
        )
    if not items:
        raise InvalidInput("inputs are empty; expected at least one sample.")
    if isinstance(inputs, list | tuple):
        return items, None
    parts = [_item(item, index) for index, item in enumerate(items)]
    with_target = [target is not None for _, target in parts]
    if any(with_target) and not all(with_target):
        raise InvalidInput(
            f"item {with_target.index(False)} of the Dataset has no target, others have one."
        )
    targets = [target for _, target in parts] if all(with_target) else None
    return [sequence for sequence, _ in parts], targets


def _item(item: Any, index: int) -> tuple[Any, Any]:
    """Return sequence and target of one item of a Dataset."""
    if isinstance(item, Mapping):
        target = item.get("labels", item.get("label"))
        if "pixel_values" in item and "input_ids" not in item:
            return item["pixel_values"], target
        if "input_ids" not in item:
            raise InvalidInput(
                f"item {index} of the Dataset has the keys {', '.join(map(str, item))}; expected "
                "'input_ids' or 'pixel_values'."
            )
        ids = _array(item["input_ids"], f"'input_ids' of item {index}")
        if "attention_mask" in item:
            mask = _array(item["attention_mask"], f"'attention_mask' of item {index}")
            real = int(mask.sum())
            if mask.shape != ids.shape[:1] or not mask[:real].all():
                raise InvalidInput(
                    f"item {index} of the Dataset has an attention_mask that is not a run of ones "
                    "followed by zeros; pad at the end (padding_side='right'), or not at all."
                )
            ids = ids[:real]
        return ids, target
    if isinstance(item, tuple | list) and not all(isinstance(part, int) for part in item):
        if len(item) > 2:
            raise InvalidInput(
                f"item {index} of the Dataset has {len(item)} parts; expected a sequence, or a "
                "sequence and a target."
            )
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def _from_samples(arrays: Sequence[Array], *, single: bool) -> tuple[Array, NDArray[np.int64]]:
    first = arrays[0]
    if single:
        for index, array in enumerate(arrays):
            _check_single(array, f"sample {index}")
            if array.shape != first.shape or not array.size:
                raise InvalidInput(
                    f"sample {index} has shape {array.shape}, sample 0 {first.shape}; expected "
                    "arrays of one shape, with at least one number."
                )
        return np.stack(arrays), np.ones(len(arrays), dtype=np.int64)
    for index, array in enumerate(arrays):
        _check_rank(array, ("time",), f"sample {index}")
        if not array.size:
            raise InvalidInput(
                f"sample {index} is empty (shape {array.shape}); expected at least one step. "
                "Leave empty samples out."
            )
        if array.dtype.kind != first.dtype.kind or array.shape[1:] != first.shape[1:]:
            raise InvalidInput(
                f"sample {index} holds {array.dtype} of shape {array.shape}, sample 0 "
                f"{first.dtype} of shape {first.shape}; expected one kind of values and one "
                "number of features."
            )
    counts = np.array([len(array) for array in arrays], dtype=np.int64)
    return np.concatenate(arrays), counts


def _input_spec(values: Array, vocabulary_size: int | None, *, single: bool) -> InputSpec:
    if values.dtype.kind != "i":
        if vocabulary_size is not None:
            raise InvalidInput(
                "vocabulary_size belongs to integer ids; the inputs are floating features."
            )
        if single:
            return InputSpec("array", math.prod(values.shape[1:]), values.shape[1:])
        return InputSpec("features", int(values.shape[1]))
    if vocabulary_size is None:
        return InputSpec("ids", max(int(values.max()) + 1, 1))
    if isinstance(vocabulary_size, bool) or not isinstance(vocabulary_size, int):
        raise InvalidInput(f"vocabulary_size must be an integer; got {vocabulary_size!r}.")
    return InputSpec("ids", vocabulary_size)


def _sample_ids(sample_ids: Sequence[str] | None, samples: int) -> tuple[str, ...]:
    if sample_ids is None:
        return tuple(f"sample-{index}" for index in range(samples))
    if isinstance(sample_ids, str):
        raise InvalidInput(f"sample_ids must be a sequence of texts; got {sample_ids!r}.")
    return tuple(sample_ids)
