"""Whether networks form groups, and whether those are the groups one knows of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from dynamo_plugin.analyses._clustering import (
    CRITERIA,
    METHODS,
    Criterion,
    Method,
    Partition,
    find_partition,
)
from dynamo_plugin.analyses._coordinates import Distance, model_coordinates
from dynamo_plugin.analyses._label_agreement import (
    adjusted_rand,
    centroid_accuracy,
    nearest_neighbours,
    neighbour_accuracy,
    one_hot,
    silhouette,
)
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._permutation import permutation_test
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses.labels import LabelSource, read_groups
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["STATISTICS", "ClustersResult", "clusters", "label_statistics"]

LEFT_OUT = 100
"""Plotly's open circle, the symbol of models that are in no cluster."""

STATISTICS = ("label_silhouette", "neighbour_accuracy", "centroid_accuracy", "adjusted_rand")


@dataclass(frozen=True, slots=True, eq=False)
class ClustersResult(TableResult):
    """Clusters of the models, and their agreement with labels; made by `clusters`.

    The table has one row per statistic: `statistic`, `value`, `p_value`, `null_mean` (the mean
    over relabellings), of which the last two are missing for the silhouette of the clusters,
    `kmeans_silhouette` or of another method, which is not about labels. With labels there are also
    `label_silhouette`, `neighbour_accuracy`, `centroid_accuracy` and `adjusted_rand`.
    """

    assignments: pd.DataFrame
    """One row per model: `model`, `cluster` (from 1; 0 for models that HDBSCAN leaves out), and
    `label` where there are labels."""
    coordinates: NDArray[np.float64]
    """(model, dimension): the points that were clustered, thetas for the theta distance."""
    clusters: int
    """Number of clusters."""
    labels_name: str | None
    """What the labels are; None without labels."""
    labellings: int
    """Relabellings looked at for the p-values; 0 without labels."""
    exact: bool
    """Whether those are all relabellings that there are."""
    distance: Distance
    """Which distance between models was used."""
    method: Method
    """What made the clusters."""
    chosen_by: Criterion | None
    """What chose their number; None if it was given, by the labels too, or the method finds it."""
    selection: pd.DataFrame
    """One row per number of clusters tried: `clusters`, `score`, `error`. The best score is the
    largest silhouette, the smallest BIC, the first gap not below the next less the next's error."""
    note: str
    """Why the silhouette of the clusters is missing; empty if it is not."""
    name: ClassVar[str] = "clusters"
    reference: ClassVar[str] = "Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7"

    def summary(self) -> dict[str, JSON]:
        """Return every statistic and, as `<statistic>_p`, its p-value."""
        names = self.table["statistic"].tolist()
        values = dict(zip(names, self.table["value"].tolist(), strict=True))
        p_values = {
            f"{name}_p": p_value
            for name, p_value in zip(names, self.table["p_value"].tolist(), strict=True)
            if name in STATISTICS
        }
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "models": len(self.assignments),
                "clusters": self.clusters,
                "labels": self.labels_name,
                "distance": self.distance,
                "method": self.method,
                "chosen_by": self.chosen_by,
                "note": self.note,
                **values,
                **p_values,
                "labellings": self.labellings,
                "exact": self.exact,
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return the plane of the first two principal components: colour for labels (or clusters),
        symbol for clusters.
        """
        import plotly.graph_objects as go

        plane = PCA(n_components=min(2, *self.coordinates.shape)).fit_transform(self.coordinates)
        second = plane[:, 1] if plane.shape[1] > 1 else np.zeros(len(plane))
        cluster = self.assignments["cluster"].to_numpy()
        symbols = np.where(cluster > 0, cluster - 1, LEFT_OUT)
        by = self.assignments["label" if self.labels_name is not None else "cluster"].astype(str)
        figure = go.Figure()
        for value in by.unique():
            shown = (by == value).to_numpy()
            figure.add_trace(
                go.Scatter(
                    x=plane[shown, 0],
                    y=second[shown],
                    name=plot_text(value),
                    text=[plot_text(m) for m in self.assignments["model"][shown]],
                    customdata=cluster[shown],
                    mode="markers",
                    marker={"size": 10, "symbol": symbols[shown].tolist()},
                    hovertemplate="%{text}<br>%{fullData.name}, cluster %{customdata}"
                    "<extra></extra>",
                )
            )
        figure.update_xaxes(title={"text": "component 1"})
        figure.update_yaxes(title={"text": "component 2"})
        title = plot_text(self.labels_name if self.labels_name is not None else "cluster")
        return style_figure(figure).update_layout(
            legend={"title": {"text": title}}, showlegend=True
        )


@analysis
def clusters(
    embedding: ModelEmbedding,
    *,
    labels: LabelSource | None = None,
    clusters: int | None = None,
    permutations: int = 999,
    max_exact: int = 20_000,
    seed: int = 0,
    distance: Distance = "theta",
    method: Method = "kmeans",
    choose_by: Criterion | None = None,
) -> ClustersResult:
    """Cluster the models and compare the clusters with labels.

    The silhouette (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7) of the clusters and, against
    labels, the silhouette of the labels, the leave-one-out accuracies of the nearest neighbour and
    of the nearest centroid, and the adjusted Rand index of clusters and labels (Hubert and Arabie
    1985, doi:10.1007/BF01908075). Each of the four has a one-sided p-value from permuted labels:
    over all distinct relabellings if there are at most `max_exact`, otherwise (1 + number at least
    as large) / (1 + permutations).

    Parameters
    ----------
    embedding
        At least three models.
    labels
        A metadata column, a mapping from model id to label, or one label per model. A label that a
        single model has counts with a silhouette of 0 and can have no neighbour of its own.
    clusters
        Number of clusters; HDBSCAN finds its own. By default that of the label values, unless
        `choose_by` is given; without labels, a number up to 8 that `choose_by` chooses.
    permutations
        Random relabellings.
    max_exact
        Largest number of relabellings that is enumerated; 0 never enumerates.
    seed
        Of the clusters and of the relabellings.
    distance
        `theta`: thetas as they are. `functional`: models are placed so that their distances are
        those of `embedding.distances("functional")` (classical scaling, Torgerson 1952,
        doi:10.1007/BF02288916).
    method
        `kmeans` (Lloyd 1982, doi:10.1109/TIT.1982.1056489), from ten k-means++ starts.
        `gaussian_mixture`: one covariance for all components, fitted on as many principal
        components as hold 95 % of the variance, at most one for every 8 models; some clusters may
        stay empty, and do not count.
        `hdbscan` (Campello et al. 2013, doi:10.1007/978-3-642-37456-2_14): clusters of at least 5
        models, or a quarter of them if that is less; models in no dense place are left out, and
        stand apart in the adjusted Rand index.
        `agglomerative` (Ward 1963, doi:10.1080/01621459.1963.10500845).
    choose_by
        What chooses the number of clusters. `silhouette`: the largest, from 2. `bic` (Schwarz 1978,
        doi:10.1214/aos/1176344136), for mixtures and their default, and `gap` (Tibshirani et al.
        2001, doi:10.1111/1467-9868.00293): from 1, so that they can say there are no clusters. With
        few models BIC may still see two where there is no gap.

    Returns
    -------
    ClustersResult

    Raises
    ------
    UnknownName
        If there is no such metadata column or model.
    InvalidInput
        If there are too few models, labels are missing, all equal or all different, thetas have
        fewer distinct values than there should be clusters, or options do not go together.
    """
    models = len(embedding.ids)
    if models < 3:
        raise InvalidInput(f"Clusters need at least 3 models, this embedding has {models}.")
    if permutations < 1 or max_exact < 0:
        raise InvalidInput(
            "permutations must be at least 1 and max_exact at least 0, got "
            f"{permutations} and {max_exact}."
        )
    _check_method(method, clusters, choose_by)
    found = None if labels is None else read_groups(embedding, labels)
    coordinates, distances = model_coordinates(embedding, distance)
    if clusters is None and choose_by is None and found is not None and CRITERIA[method]:
        clusters = len(found.values)
    partition = find_partition(
        coordinates,
        distances,
        method=method,
        clusters=clusters,
        choose_by=choose_by,
        seed=seed,
    )
    value, note = _silhouette(distances, partition)
    rows = [
        {"statistic": f"{method}_silhouette", "value": value, "p_value": None, "null_mean": None}
    ]
    assignments = {"model": list(embedding.ids), "cluster": (partition.codes + 1).tolist()}
    labellings, exact = 0, False
    if found is not None:
        assignments["label"] = list(found.of_models)
        test_labels = label_statistics(distances, partition.members, len(found.values))
        test = permutation_test(
            test_labels, found.codes, permutations=permutations, max_exact=max_exact, seed=seed
        )
        labellings, exact = test.labellings, test.exact
        rows += [
            {"statistic": name, "value": value, "p_value": p_value, "null_mean": null_mean}
            for name, value, p_value, null_mean in zip(
                STATISTICS,
                test.observed.tolist(),
                test.p_values.tolist(),
                test.null_means.tolist(),
                strict=True,
            )
        ]
    table = pd.DataFrame(rows).astype(dict.fromkeys(("value", "p_value", "null_mean"), "Float64"))
    return ClustersResult(
        table,
        pd.DataFrame(assignments),
        coordinates,
        partition.count,
        None if found is None else found.name,
        labellings,
        exact,
        distance,
        method,
        partition.chosen_by,
        partition.selection,
        note,
    )


def label_statistics(
    distances: NDArray[np.float64], in_clusters: NDArray[np.float64], values: int
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Return what maps (labelling, model) codes to (statistic, labelling), as in `STATISTICS`.

    Parameters
    ----------
    distances
        (model, model).
    in_clusters
        (model, cluster) indicators.
    values
        Number of label values.
    """
    neighbours, squared = nearest_neighbours(distances), distances**2

    def statistics(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        members = one_hot(codes, values)
        return np.stack(
            [
                silhouette(distances, members),
                neighbour_accuracy(neighbours, members),
                centroid_accuracy(squared, members),
                adjusted_rand(in_clusters, members),
            ]
        )

    return statistics


def _check_method(method: str, clusters: int | None, choose_by: str | None) -> None:
    if method not in METHODS:
        raise InvalidInput(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if method == "hdbscan" and (clusters is not None or choose_by is not None):
        raise InvalidInput(
            "HDBSCAN finds the number of clusters itself. Leave out clusters and choose_by, or "
            "choose another method."
        )
    if clusters is not None and choose_by is not None:
        raise InvalidInput(
            f"The number of clusters is given ({clusters}), and to be chosen by {choose_by!r}. "
            "Give one of the two."
        )
    if choose_by is not None and choose_by not in CRITERIA[method]:
        raise InvalidInput(
            f"choose_by must be one of {', '.join(CRITERIA[method])} for the method {method!r}; "
            f"got {choose_by!r}."
        )


def _silhouette(distances: NDArray[np.float64], partition: Partition) -> tuple[float | None, str]:
    """Return the silhouette of the models that are in clusters, or why there is none."""
    if partition.count < 2:
        found = "no cluster" if partition.count == 0 else "one cluster only"
        return None, f"no silhouette: there is {found}"
    kept = partition.codes >= 0
    members = one_hot(partition.codes[kept][None], partition.count)
    return float(silhouette(distances[np.ix_(kept, kept)], members)[0]), ""
