"""Everything that a report shows, computed once; what does not apply says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from dynamo_plugin.analyses import (
    AttributionResult,
    AverageResult,
    ClustersResult,
    ComponentsResult,
    FidelityResult,
    attribution,
    average,
    clusters,
    components,
    fidelity,
)
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.registry.interfaces import AnalysisResult
from dynamo_plugin.report._cautions import find_cautions
from dynamo_plugin.report._results_section import result_cautions, result_titles

__all__ = ["Findings", "find"]

MOST_LABELLED = 12
"""Metadata columns that are compared with the clusters."""

MOST_NUMBERS = 5
"""Distinct numbers with a fractional part up to which a column may sort models into groups."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """The results of the analyses. Where one does not apply, the text says why."""

    embedding: ModelEmbedding
    """What the report is about."""
    labels: str | None
    """The metadata column that models are coloured and averaged by; None without any."""
    fidelity: FidelityResult
    """On held-out samples."""
    components: ComponentsResult | str
    """Principal components."""
    clusters: ClustersResult | str
    """k-means without labels."""
    labelled: dict[str, ClustersResult]
    """Metadata column to its comparison with the clusters."""
    unlabelled: dict[str, str]
    """Metadata column to the reason why it was not compared."""
    attribution: AttributionResult | str
    """What the columns of the metadata explain."""
    average: AverageResult | str
    """Centroids by `labels`, or of all models where that cannot be."""
    average_note: str
    """Why the averages are not by `labels`; empty if they are."""
    cautions: list[str]
    """What a reader must know before he believes the rest."""
    results: tuple[AnalysisResult, ...] = ()
    """Further results, each of which gets a section."""


def find(
    embedding: ModelEmbedding, *, labels: str | None, results: Sequence[AnalysisResult] = ()
) -> Findings:
    """Run the analyses of a report.

    Parameters
    ----------
    embedding
        Its population is read.
    labels
        A metadata column; None for the first that has groups.
    results
        Further results of analyses.
    """
    candidates, unlabelled = _groupings(embedding.metadata, len(embedding.ids))
    labelled = {}
    for column in candidates[:MOST_LABELLED]:
        found = _attempt(lambda column=column: clusters(embedding, labels=column))  # type: ignore[misc]
        if isinstance(found, str):
            unlabelled[column] = found
        else:
            labelled[column] = found
    for column in candidates[MOST_LABELLED:]:
        unlabelled[column] = f"only the first {MOST_LABELLED} columns with groups are compared"
    if labels is None:
        labels = next(iter(candidates), None)
    faithful = fidelity(embedding)
    averaged, note = _attempt(lambda: average(embedding, labels=labels)), ""
    if isinstance(averaged, str) and labels is not None:
        # Groups may straddle output groups; the averages that need no labels may still exist.
        without = _attempt(lambda: average(embedding))
        if not isinstance(without, str):
            averaged, note = without, f"Not averaged by {labels}: {averaged}"
    return Findings(
        embedding=embedding,
        labels=labels,
        fidelity=faithful,
        components=_attempt(lambda: components(embedding)),
        clusters=_attempt(lambda: clusters(embedding)),
        labelled=labelled,
        unlabelled=unlabelled,
        attribution=_attempt(lambda: attribution(embedding)),
        average=averaged,
        average_note=note,
        cautions=[
            *find_cautions(embedding, faithful),
            *result_cautions(embedding, results, result_titles(results)),
        ],
        results=tuple(results),
    )


def _attempt(run: Callable[[], Result]) -> Result | str:
    try:
        return run()
    except InvalidInput as error:
        return str(error)


def _groupings(metadata: pd.DataFrame, models: int) -> tuple[list[str], dict[str, str]]:
    """Return the columns that sort models into groups, and why the others do not."""
    chosen, refused = [], {}
    for name in map(str, metadata.columns):
        values = metadata[name]
        distinct = values.dropna().map(str).nunique()
        if distinct < 2:
            refused[name] = "the same for every model"
        elif values.isna().any():
            refused[name] = "missing for some models"
        elif distinct > MOST_NUMBERS and _is_measured(values):
            refused[name] = "a measurement"
        elif distinct > max(models / 2, 2) or distinct >= models:
            refused[name] = "different for most models"
        else:
            chosen.append(name)
    return chosen, refused


def _is_measured(values: pd.Series[Any]) -> bool:
    return pd.api.types.is_float_dtype(values) and bool((values % 1 != 0).any())
