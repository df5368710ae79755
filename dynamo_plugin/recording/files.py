"""Inputs and metadata from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dynamo_plugin.errors import InvalidConfig, InvalidInput, suggest
from dynamo_plugin.recording.config import InputsConfig
from dynamo_plugin.recording.metadata import Metadata

__all__ = ["read_inputs", "read_metadata"]


def read_inputs(config: InputsConfig, folder: Path) -> dict[str, Any]:
    """Read the file of inputs.

    Returns
    -------
    dict
        Keyword arguments of `capture`: `inputs`, and `lengths`, `targets` and `sample_ids` as
        far as the file has them.

    Raises
    ------
    InvalidInput
        The file cannot be read.
    InvalidConfig
        It has no such key or column.
    """
    assert config.file is not None
    path = folder / config.file
    if path.suffix.lower() == ".npy":
        extra = {"lengths": config.lengths_file, "targets": config.targets_file}
        return {
            "inputs": _read_npy(path),
            **{name: _read_npy(folder / file) for name, file in extra.items() if file is not None},
        }
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path, config)
    return _read_columns(path, config)


def read_metadata(path: Path) -> Metadata:
    """Read a table with one row per model; ids are read as text.

    Raises
    ------
    InvalidInput
        The file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    try:
        if suffix == ".csv":
            return pd.read_csv(path, dtype={"model": str, "id": str})
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as {suffix[1:]}: {error}.") from error
    if isinstance(content, dict):
        return content
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return pd.DataFrame(content, dtype=object)
    raise InvalidInput(f"{path} must hold a list of records, or an object from model id to row.")


def _read_npy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInput(f"{path} cannot be read as a plain .npy array: {error}.") from error


def _read_safetensors(path: Path, config: InputsConfig) -> dict[str, Any]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{path} cannot be read as safetensors: {error}.") from error
    wanted = {"lengths": config.lengths_key, "targets": config.targets_key}
    keys = {name: key for name, key in wanted.items() if key is not None}
    if config.key is not None:
        keys["inputs"] = config.key
    else:
        free = sorted(set(tensors) - set(keys.values()))
        if len(free) != 1:
            raise InvalidConfig(
                f"inputs.key: {path} holds the tensors {', '.join(sorted(tensors)) or '(none)'}; "
                "say which are the inputs."
            )
        keys["inputs"] = free[0]
    for name, key in keys.items():
        if key not in tensors:
            place = "key" if name == "inputs" else f"{name}_key"
            raise InvalidConfig(
                f"inputs.{place}: {path} has no tensor {key!r}. {suggest(key, tensors)}"
            )
    return {name: tensors[key] for name, key in keys.items()}


def _read_columns(path: Path, config: InputsConfig) -> dict[str, Any]:
    table = _read_parquet(path)
    wanted = {
        "column": config.column,
        "target_column": config.target_column,
        "id_column": config.id_column,
    }
    for place, column in wanted.items():
        if column is not None and column not in table.columns:
            known = map(str, table.columns)
            raise InvalidConfig(
                f"inputs.{place}: {path} has no column {column!r}. {suggest(column, known)}"
            )
    # Features arrive as an array of arrays per row, which only lists turn into one array.
    sequences = [_plain(value) for value in table[config.column]]
    found: dict[str, Any] = {"inputs": sequences}
    if config.target_column is not None:
        found["targets"] = [_plain(value) for value in table[config.target_column]]
    if config.id_column is not None:
        found["sample_ids"] = [str(value) for value in table[config.id_column]]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_plain(item) for item in value]
    return value


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise InvalidInput(
            f"reading {path} needs pyarrow: pip install 'dynamo-plugin[data]'."
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as parquet: {error}.") from error
