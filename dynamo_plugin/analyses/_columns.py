"""Columns of metadata as predictors: groups or a number, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Predictor", "read_predictor"]


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """One value per model that has one."""

    kind: Literal["groups", "number"]
    """Whether values are names or a quantity."""
    present: NDArray[np.bool_]
    """(model,): whether the model has a value."""
    codes: NDArray[np.int64]
    """(present model,): which of the distinct values it has."""
    rows: NDArray[np.float64]
    """(value, degree of freedom): what stands for each value; taken for the models, columns are
    orthonormal and their sums zero."""


def read_predictor(values: pd.Series[Any], *, groups: bool = False) -> Predictor | str:
    """Return a column as a predictor, or why it explains nothing.

    Parameters
    ----------
    values
        One per model. Numbers are a quantity, all else (truth values too) names of groups,
        compared as text. What is missing or infinite is left out.
    groups
        Whether numbers name groups as well.
    """
    found = values[values.notna()]
    numeric = not groups and not found.empty and all(map(_is_number, found.tolist()))
    present = values.notna().to_numpy(dtype=bool)
    if numeric:
        numbers = np.full(len(values), np.nan)
        numbers[present] = found.to_numpy(dtype=np.float64)
        present = np.isfinite(numbers)
        distinct, codes = np.unique(numbers[present], return_inverse=True)
        if len(distinct) > 1:
            # In units of their range, so that neither offset nor scale costs digits.
            columns = ((distinct - distinct[0]) / (distinct[-1] - distinct[0]))[:, None]
    else:
        texts = np.array([str(value) for value in found.tolist()], dtype=object)
        distinct, codes = np.unique(texts, return_inverse=True)
        columns = np.eye(len(distinct))
    models, count = int(present.sum()), len(distinct)
    if count == 0:
        return "missing for every model"
    if count == 1:
        return "the same for every model"
    if count == models and not numeric:
        return "different for every model"
    if models < 3:
        return f"known for {models} models only"
    columns = columns - columns[codes].mean(0)
    _, strengths, axes = np.linalg.svd(columns[codes], full_matrices=False)
    kept = strengths > 1e-9 * strengths[0]
    rows = columns @ (axes[kept].T / strengths[kept])
    return Predictor("number" if numeric else "groups", present, codes.astype(np.int64), rows)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
