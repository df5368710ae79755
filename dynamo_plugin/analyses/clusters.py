"""Whether networks form groups, and whether those are the groups one knows of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dynamo_plugin.analyses._agreement import (
    adjusted_rand,
    nearest_neighbours,
    neighbour_accuracy,
    one_hot,
    silhouette,
)
from dynamo_plugin.analyses._permutation import permutation_test
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses.labels import Labels, LabelSource, read_labels
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["ClustersResult", "clusters"]

MOST_CLUSTERS = 8
"""Largest number of clusters tried where none is given."""

STATISTICS = ("label_silhouette", "neighbour_accuracy", "adjusted_rand")


@dataclass(frozen=True, slots=True, eq=False)
class ClustersResult(TableResult):
    """k-means clusters of the models, and their agreement with labels; made by `clusters`.

    The table has one row per statistic: `statistic`, `value`, `p_value`, `null_mean` (the mean
    over relabellings), of which the last two are missing for `kmeans_silhouette`, which is not
    about labels. With labels there are also `label_silhouette`, `neighbour_accuracy` and
    `adjusted_rand`.
    """

    assignments: pd.DataFrame
    """One row per model: `model`, `cluster` (from 1), and `label` where there are labels."""
    coordinates: NDArray[np.float64]
    """(model, dimension): the points that were clustered, thetas for the theta distance."""
    clusters: int
    """Number of k-means clusters."""
    labels_name: str | None
    """What the labels are; None without labels."""
    labellings: int
    """Relabellings looked at for the p-values; 0 without labels."""
    exact: bool
    """Whether those are all relabellings that there are."""
    distance: Literal["theta", "functional"]
    """Which distance between models was used."""
    name: ClassVar[str] = "clusters"

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
                    marker={"size": 10, "symbol": (cluster[shown] - 1).tolist()},
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


def clusters(
    embedding: ModelEmbedding,
    *,
    labels: LabelSource | None = None,
    clusters: int | None = None,
    permutations: int = 999,
    max_exact: int = 20_000,
    seed: int = 0,
    distance: Literal["theta", "functional"] = "theta",
) -> ClustersResult:
    """Cluster the models with k-means and compare the clusters with labels.

    k-means (Lloyd 1982, doi:10.1109/TIT.1982.1056489) from ten k-means++ starts; the silhouette
    (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7) of its clusters and, against labels, the
    silhouette of the labels, the leave-one-out accuracy of the nearest neighbour, and the adjusted
    Rand index of clusters and labels (Hubert and Arabie 1985, doi:10.1007/BF01908075). Each of the
    three has a one-sided p-value from permuted labels: over all distinct relabellings if there are
    at most `max_exact`, otherwise (1 + number at least as large) / (1 + permutations).

    Parameters
    ----------
    embedding
        At least three models.
    labels
        A metadata column, a mapping from model id to label, or one label per model. A label that a
        single model has counts with a silhouette of 0 and can have no neighbour of its own.
    clusters
        Number of clusters. By default that of the label values; without labels, the number from 2
        to 8 whose clusters have the largest silhouette.
    permutations
        Random relabellings.
    max_exact
        Largest number of relabellings that is enumerated; 0 never enumerates.
    seed
        Of k-means and of the relabellings.
    distance
        `theta`: thetas as they are. `functional`: models are placed so that their distances are
        those of `embedding.distances("functional")` (classical scaling, Torgerson 1952,
        doi:10.1007/BF02288916).

    Returns
    -------
    ClustersResult

    Raises
    ------
    UnknownName
        If there is no such metadata column or model.
    InvalidInput
        If there are too few models, labels are missing, all equal or all different, or thetas have
        fewer distinct values than there should be clusters.
    """
    models = len(embedding.ids)
    if models < 3:
        raise InvalidInput(f"Clusters need at least 3 models, this embedding has {models}.")
    if permutations < 1 or max_exact < 0:
        raise InvalidInput(
            "permutations must be at least 1 and max_exact at least 0, got "
            f"{permutations} and {max_exact}."
        )
    if distance not in ("theta", "functional"):
        raise InvalidInput(f"distance must be 'theta' or 'functional', got {distance!r}.")
    found = None if labels is None else _checked_labels(embedding, labels)
    distances = embedding.distances(distance).to_numpy()
    coordinates = (
        embedding.thetas.double().numpy() if distance == "theta" else _classical_scaling(distances)
    )
    if clusters is None and found is not None:
        clusters = len(found.values)
    assigned = _k_means(coordinates, distances, clusters, seed)
    in_clusters = one_hot(assigned[None], int(assigned.max()) + 1)
    rows = [
        {
            "statistic": "kmeans_silhouette",
            "value": float(silhouette(distances, in_clusters)[0]),
            "p_value": None,
            "null_mean": None,
        }
    ]
    assignments = {"model": list(embedding.ids), "cluster": (assigned + 1).tolist()}
    labellings, exact = 0, False
    if found is not None:
        assignments["label"] = list(found.of_models)
        neighbours, values = nearest_neighbours(distances), len(found.values)

        def statistics(codes: NDArray[np.int64]) -> NDArray[np.float64]:
            members = one_hot(codes, values)
            return np.stack(
                [
                    silhouette(distances, members),
                    neighbour_accuracy(neighbours, members),
                    adjusted_rand(in_clusters[0], members),
                ]
            )

        test = permutation_test(
            statistics, found.codes, permutations=permutations, max_exact=max_exact, seed=seed
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
    table = pd.DataFrame(rows).astype({"p_value": "Float64", "null_mean": "Float64"})
    return ClustersResult(
        table,
        pd.DataFrame(assignments),
        coordinates,
        int(assigned.max()) + 1,
        None if found is None else found.name,
        labellings,
        exact,
        distance,
    )


def _checked_labels(embedding: ModelEmbedding, labels: LabelSource) -> Labels:
    found = read_labels(embedding, labels)
    if len(found.values) < 2:
        raise InvalidInput(
            f"Expected labels of at least two values; {found.name!r} is {found.values[0]!r} for "
            "every model. Choose other labels, or cluster without."
        )
    if len(found.values) == len(embedding.ids):
        raise InvalidInput(
            f"Expected labels that some models share; {found.name!r} is different for every model. "
            "Choose other labels, or cluster without."
        )
    return found


def _k_means(
    coordinates: NDArray[np.float64],
    distances: NDArray[np.float64],
    clusters: int | None,
    seed: int,
) -> NDArray[np.int64]:
    """Return (model,) cluster codes, numbered from 0 in the order of their first model."""
    models, distinct = len(coordinates), len(np.unique(coordinates, axis=0))
    most = min(models - 1, distinct)
    if most < 2:
        raise InvalidInput(
            f"Clusters need thetas that differ; all {models} are equal. Fit longer, or with a "
            "smaller theta_decay."
        )
    if clusters is not None and not 2 <= clusters <= most:
        raise InvalidInput(
            f"Expected from 2 to {most} clusters, for {models} models at {distinct} distinct "
            f"places; got {clusters}."
        )
    candidates = range(2, min(MOST_CLUSTERS, most) + 1) if clusters is None else (clusters,)
    # One thread: on so few points, threads wait for each other far longer than they work.
    with threadpool_limits(limits=1, user_api="openmp"):
        assigned = [
            KMeans(count, n_init=10, random_state=seed).fit_predict(coordinates).astype(np.int64)
            for count in candidates
        ]
    scores = [float(silhouette(distances, _members(codes))[0]) for codes in assigned]
    best = assigned[int(np.argmax(scores))]
    _, first, codes = np.unique(best, return_index=True, return_inverse=True)
    ordered: NDArray[np.int64] = np.argsort(np.argsort(first))[codes]
    return ordered


def _members(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    return one_hot(codes[None], int(codes.max()) + 1)


def _classical_scaling(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (model, dimension) with these Euclidean distances."""
    squared = distances**2
    centred = squared - squared.mean(0) - squared.mean(1, keepdims=True) + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    kept = values > 1e-12 * max(float(values[-1]), 0.0)
    coordinates: NDArray[np.float64] = vectors[:, kept] * np.sqrt(values[kept])
    return coordinates if kept.any() else np.zeros((len(distances), 1))
