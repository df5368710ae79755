"""What a sweep says at every value of a setting: one column each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._label_agreement import (
    nearest_neighbours,
    neighbour_accuracy,
    one_hot,
    silhouette,
)
from dynamo_plugin.analyses._mantel import mantel_spearman
from dynamo_plugin.analyses._permutation import permutation_test

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._reference_distances import Reference
    from dynamo_plugin.analyses.labels import Labels

__all__ = ["agreement_columns", "mean_fidelity", "separation_columns"]


def mean_fidelity(tables: Sequence[pd.DataFrame]) -> dict[str, list[float]]:
    """Return means over models of tables of `fidelity`; outputs by how they are compared."""
    found = {"hidden_r2": [float(table["hidden_r2"].mean()) for table in tables]}
    for kind in sorted(set(tables[0]["output_kind"])):
        found[f"output_{kind}"] = [
            float(table.loc[table["output_kind"] == kind, "output_agreement"].mean())
            for table in tables
        ]
    kinds = set(tables[0]["output_kind"])
    if "own_readout_agreement" in tables[0] and len(kinds) == 1:
        found["own_readout_agreement"] = [
            float(table["own_readout_agreement"].mean()) for table in tables
        ]
    return found


def agreement_columns(
    what: str, distances: NDArray[np.float64], reference: Reference, **options: int
) -> dict[str, Any]:
    """Return the rank correlation of the distances of thetas with others, and its p-value.

    Parameters
    ----------
    what
        Begins the names of the columns.
    distances
        (value, model, model).
    reference
        The others; columns are missing where none can be compared.
    **options
        Of `mantel_spearman`.
    """
    if not reference.strata:
        missing = pd.array([pd.NA] * len(distances), dtype="Float64")
        return {f"{what}_spearman": missing, f"{what}_spearman_p": missing}
    values, p_values = mantel_spearman(distances, reference.square, reference.strata, **options)
    return {f"{what}_spearman": values, f"{what}_spearman_p": p_values}


def separation_columns(
    distances: NDArray[np.float64], labels: Labels, **options: int
) -> dict[str, Any]:
    """Return silhouette and nearest-neighbour accuracy of labels, and their p-values.

    Parameters
    ----------
    distances
        (value, model, model).
    labels
        Of the models.
    **options
        Of `permutation_test`.
    """
    neighbours = [nearest_neighbours(square) for square in distances]

    def statistics(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """(labelling, model) to (statistic of every weight, labelling)."""
        members = one_hot(codes, len(labels.values))
        return np.stack(
            [
                *(silhouette(square, members) for square in distances),
                *(neighbour_accuracy(near, members) for near in neighbours),
            ]
        )

    test = permutation_test(statistics, labels.codes, **options)
    values, p_values = test.observed.reshape(2, -1), test.p_values.reshape(2, -1)
    return {
        "label_silhouette": values[0],
        "label_silhouette_p": p_values[0],
        "neighbour_accuracy": values[1],
        "neighbour_accuracy_p": p_values[1],
    }
