"""Labels of models: a metadata column, a mapping or a sequence, as checked integer codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["LabelSource", "Labels", "read_groups", "read_labels"]

LabelSource: TypeAlias = "str | Mapping[str, Any] | Sequence[Any] | pd.Series[Any]"
"""A metadata column, a mapping from model id to label, or one label per model in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """One label per model."""

    name: str
    """The metadata column, or `labels`."""
    values: tuple[str, ...]
    """Distinct labels as text: numbers in order of size, the rest alphabetically."""
    codes: NDArray[np.int64]
    """(model,): position in `values` of each model's label."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """(value,): models of each label."""
        return np.bincount(self.codes, minlength=len(self.values)).astype(np.int64)

    @property
    def of_models(self) -> tuple[str, ...]:
        """The label of every model, in order."""
        return tuple(self.values[code] for code in self.codes.tolist())


def read_labels(embedding: ModelEmbedding, labels: LabelSource) -> Labels:
    """Return one label for each model of an embedding.

    Parameters
    ----------
    embedding
        Its ids and metadata say which models there are.
    labels
        Name of a metadata column; or a mapping or pandas Series from every model id to a label
        (more ids are allowed in neither); or a sequence with one label per model, in the order of
        the ids. Labels are compared as text.

    Raises
    ------
    UnknownName
        If there is no such column, or a mapping names a model that is not there.
    InvalidInput
        If a label is missing (None or NaN) or their number is wrong.
    """
    name = "labels"
    if isinstance(labels, str):
        name = labels
        if name not in embedding.metadata.columns:
            known = [str(column) for column in embedding.metadata.columns]
            raise UnknownName(f"The metadata have no column {name!r}. {suggest(name, known)}")
        found = embedding.metadata[name].tolist()
    elif isinstance(labels, pd.Series) and not isinstance(labels.index, pd.RangeIndex):
        name = str(labels.name or name)
        if labels.index.has_duplicates:
            raise InvalidInput("Expected one label per model id; the index holds an id twice.")
        found = _from_mapping(embedding.ids, {str(k): v for k, v in labels.items()})
    elif isinstance(labels, Mapping):
        found = _from_mapping(embedding.ids, labels)
    else:
        found = list(labels)
    if len(found) != len(embedding.ids):
        raise InvalidInput(
            f"Expected one label for each of {len(embedding.ids)} models, got {len(found)}."
        )
    missing = [
        model for model, label in zip(embedding.ids, found, strict=True) if _is_missing(label)
    ]
    if missing:
        raise InvalidInput(
            f"Expected a label for every model; {name!r} has none for {_list(missing)}. Fill them "
            "in, or pass a mapping from model id to label."
        )
    texts = [str(label) for label in found]
    order = dict(zip(texts, found, strict=True))
    values = tuple(sorted(order, key=lambda text: _sort_key(text, order[text])))
    position = {text: code for code, text in enumerate(values)}
    return Labels(name, values, np.array([position[text] for text in texts], dtype=np.int64))


def read_groups(embedding: ModelEmbedding, labels: LabelSource) -> Labels:
    """Return labels that sort the models into groups; see `read_labels`.

    Raises
    ------
    UnknownName
        If there is no such column, or a mapping names a model that is not there.
    InvalidInput
        If a label is missing, or labels are the same or different for every model.
    """
    found = read_labels(embedding, labels)
    if len(found.values) < 2:
        raise InvalidInput(
            f"Expected labels of at least two values; {found.name!r} is {found.values[0]!r} for "
            "every model. Choose other labels."
        )
    if len(found.values) == len(embedding.ids):
        raise InvalidInput(
            f"Expected labels that some models share; {found.name!r} is different for every model. "
            "Choose other labels."
        )
    return found


def _from_mapping(ids: Sequence[str], labels: Mapping[str, Any]) -> list[Any]:
    for model in labels:
        if model not in ids:
            raise UnknownName(
                f"Labels are given for the model {model!r}, which the embedding does not have. "
                f"{suggest(str(model), ids)}"
            )
    return [labels.get(model) for model in ids]


def _is_missing(label: object) -> bool:
    return label is None or label is pd.NA or label is pd.NaT or label != label


def _sort_key(text: str, label: object) -> tuple[int, float, str]:
    if isinstance(label, int | float | np.integer | np.floating):
        return (0, float(label), text)
    return (1, 0.0, text)


def _list(models: Sequence[str]) -> str:
    return ", ".join(map(repr, models[:5])) + (", ..." if len(models) > 5 else "")
