"""Statistics of an analysis as functions of labels, many labellings at once where that can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._clustering import Partition
from dynamo_plugin.analyses._columns import Predictor, read_predictor
from dynamo_plugin.analyses._coordinates import model_coordinates
from dynamo_plugin.analyses.attribution import shares
from dynamo_plugin.analyses.clusters import STATISTICS, ClustersResult, label_statistics
from dynamo_plugin.analyses.labels import Labels
from dynamo_plugin.analyses.run import analyse
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["VECTORISED", "numbers_in", "statistics_of"]

Statistics: TypeAlias = "Callable[[NDArray[np.int64]], NDArray[np.float64]]"
"""(labelling, model) codes to (statistic, labelling) values."""


def statistics_of(
    analysis: str, embedding: ModelEmbedding, labels: Labels, options: Mapping[str, Any]
) -> tuple[list[str], Statistics]:
    """Return the names of the statistics of an analysis, and what computes them.

    Parameters
    ----------
    analysis
        Registered name. Those in `VECTORISED` work on many labellings at once, any other runs once
        for each.
    embedding, labels
        What is analysed; the labels say which values there are.
    options
        Of the analysis.
    """
    return VECTORISED.get(analysis, _one_by_one)(analysis, embedding, labels, options)


def _of_clusters(
    analysis: str, embedding: ModelEmbedding, labels: Labels, options: Mapping[str, Any]
) -> tuple[list[str], Statistics]:
    # Permuted labels have the same number of values, so that the clusters stay the same.
    result = analyse(
        analysis, embedding, labels=labels.of_models, permutations=1, max_exact=0, **options
    )
    assert isinstance(result, ClustersResult)
    codes = result.assignments["cluster"].to_numpy(dtype=np.int64) - 1
    members = Partition(codes, None, result.selection).members
    distances = embedding.distances(result.distance).to_numpy()
    return list(STATISTICS), label_statistics(distances, members, len(labels.values))


def _of_attribution(
    analysis: str, embedding: ModelEmbedding, labels: Labels, options: Mapping[str, Any]
) -> tuple[list[str], Statistics]:
    unknown = sorted(set(options) - {"distance"})
    if unknown:
        raise InvalidInput(
            f"The null of {analysis} has the option 'distance' alone, got {unknown[0]!r}."
        )
    coordinates, _ = model_coordinates(embedding, options.get("distance", "theta"))
    centred = coordinates - coordinates.mean(0)
    predictor = read_predictor(pd.Series(labels.of_models), groups=True)
    if (
        not isinstance(predictor, Predictor)
        or not (centred**2).sum() > 1e-14 * (coordinates**2).sum()
    ):
        raise InvalidInput(
            "Labels can explain only thetas that differ; these are all equal. Fit longer, or with "
            "a smaller theta_decay."
        )
    freedom = predictor.rows.shape[1]
    left = len(centred) - 1 - freedom
    explained = shares(predictor, centred, [centred.shape[1]])

    def statistics(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        r2 = explained(codes)[0]
        with np.errstate(divide="ignore"):
            pseudo_f = (r2 / freedom) / ((1 - r2) / left)
        return np.stack([r2, pseudo_f])

    return ["r2", "pseudo_f"], statistics


VECTORISED: Mapping[
    str,
    Callable[[str, ModelEmbedding, Labels, Mapping[str, Any]], tuple[list[str], Statistics]],
] = {"clusters": _of_clusters, "attribution": _of_attribution}
"""Analyses whose statistics are computed for many labellings at once."""


def _one_by_one(
    analysis: str, embedding: ModelEmbedding, labels: Labels, options: Mapping[str, Any]
) -> tuple[list[str], Statistics]:
    """Return the statistics of an analysis that takes one labelling at a time."""

    def figures(codes: NDArray[np.int64]) -> dict[str, float]:
        given = [labels.values[code] for code in codes.tolist()]
        return numbers_in(analyse(analysis, embedding, labels=given, **options).summary())

    names = list(figures(labels.codes))

    def statistics(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        rows = [figures(labelling) for labelling in codes]
        return np.array([[row.get(name, np.nan) for row in rows] for name in names])

    return names, statistics


def numbers_in(value: Any, name: str = "") -> dict[str, float]:
    """Return the numbers in a summary, by dotted names; p-values are no statistics.

    >>> numbers_in({"score": {"mean": 1, "worst": None}, "score_p": 0.5, "ids": ["a"]})
    {'score.mean': 1.0, 'score.worst': nan}
    """
    last = name.rsplit(".", maxsplit=1)[-1]
    if last in ("p", "p_value", "p_adjusted") or last.endswith("_p") or isinstance(value, bool):
        return {}
    if isinstance(value, dict):
        parts = (
            numbers_in(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()
        )
        return {key: number for part in parts for key, number in part.items()}
    if isinstance(value, int | float):
        return {name: float(value)}
    return {name: float("nan")} if value is None else {}
