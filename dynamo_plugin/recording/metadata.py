"""What the user says about each model, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.types import JSON

__all__ = ["Metadata", "as_metadata"]

Metadata: TypeAlias = "pd.DataFrame | Mapping[str, Mapping[str, Any]]"
"""A table with one row per model, its index or a column `model` or `id` holding the ids; or a
mapping from id to a mapping."""

_ID_COLUMNS = ("model", "id")


def as_metadata(metadata: Metadata | None, ids: Sequence[str]) -> dict[str, dict[str, JSON]]:
    """Return the metadata of every model, in the order of `ids`, in JSON's types.

    NumPy values become Python's, missing values (NaN, NaT, NA) become None, dates ISO text.

    Raises
    ------
    InvalidInput
        The ids of the metadata are not those of the models, or a value has no place in JSON.

    Examples
    --------
    >>> as_metadata(pd.DataFrame({"model": ["a"], "units": [np.int64(3)]}), ["a"])
    {'a': {'units': 3}}
    """
    if metadata is None:
        return {model_id: {} for model_id in ids}
    rows = _table_rows(metadata, ids) if isinstance(metadata, pd.DataFrame) else metadata
    if not isinstance(rows, Mapping):
        raise InvalidInput(
            "metadata must be a DataFrame with one row per model or a mapping from model id to a "
            f"mapping; got {type(metadata).__name__}."
        )
    missing = [model_id for model_id in ids if model_id not in rows]
    extra = [str(model_id) for model_id in rows if model_id not in set(ids)]
    if missing or extra:
        faults = [
            f"{what} {_listed(names)}"
            for what, names in (("lacks", missing), ("has rows for no model:", extra))
            if names
        ]
        raise InvalidInput(
            f"metadata {' and '.join(faults)}. Give exactly one row per model; without metadata "
            "for some of them, give those an empty row."
        )
    result: dict[str, dict[str, JSON]] = {}
    for model_id in ids:
        row = rows[model_id]
        if not isinstance(row, Mapping):
            raise InvalidInput(
                f"metadata of model {model_id!r} must be a mapping; got {type(row).__name__}."
            )
        result[model_id] = {
            str(key): _as_json(value, f"metadata {str(key)!r} of model {model_id!r}")
            for key, value in row.items()
        }
    return result


def _table_rows(table: pd.DataFrame, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    if set(table.index) != set(ids):
        column = next((name for name in _ID_COLUMNS if name in table.columns), None)
        if column is not None:
            table = table.set_index(column)
            table.index = table.index.map(str)
    repeated = table.index[table.index.duplicated()].unique()
    if len(repeated):
        raise InvalidInput(f"metadata has several rows for {_listed(map(str, repeated))}.")
    # Row-wise access would upcast integers beside floats; columns keep their types.
    columns = {str(name): list(table[name]) for name in table.columns}
    return {
        model_id: {name: values[row] for name, values in columns.items()}
        for row, model_id in enumerate(table.index)
    }


def _as_json(value: Any, where: str) -> JSON:
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise InvalidInput(f"{where} is {value}; expected finite numbers.")
        return None if math.isnan(value) else value
    if isinstance(value, pd.Timestamp) or hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, Mapping):
        return {str(key): _as_json(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item, where) for item in value]
    raise InvalidInput(
        f"{where} is of type {type(value).__name__}; expected text, numbers, truth values, lists "
        "or mappings. Convert it, for example with str()."
    )


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    more = f", ... ({len(shown)} in all)" if len(shown) > 10 else ""
    return ", ".join(shown[:10]) + more
