"""The result of comparing all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pandas as pd

from dynamo_plugin.errors import CorruptBlock, InvalidInput, UnknownName, suggest
from dynamo_plugin.metrics import _figures
from dynamo_plugin.metrics._checks import check_choice, check_count
from dynamo_plugin.metrics._saving import read_document, write_document
from dynamo_plugin.metrics._scaling import classical_scaling, stress_scaling

if TYPE_CHECKING:
    from pathlib import Path

    import plotly.graph_objects as go
    import xarray as xr
    from numpy.typing import NDArray

    from dynamo_plugin.registry.interfaces import Metric
    from dynamo_plugin.types import JSON

__all__ = ["PairwiseDistances"]

_SQUARES: Final = ("values", "distances")
_PLAIN: Final = (
    "metric",
    "kind",
    "symmetric",
    "is_metric",
    "distance_rule",
    "reference",
    "population",
)

Linkage = Literal["single", "complete", "average", "weighted"]


@dataclass(frozen=True, slots=True, eq=False)
class PairwiseDistances:
    """Every two models of a population or an embedding, compared; made by `pairwise`."""

    ids: tuple[str, ...]
    """Of the models, in order."""
    values: NDArray[np.float64]
    """(model, model), read-only: what the metric gives for (row, column)."""
    distances: NDArray[np.float64]
    """(model, model), read-only: the same as distances, by `distance_rule`."""
    metric: str
    """Name of the metric."""
    settings: Mapping[str, JSON]
    """Options of the metric, site or sites, number of samples, rows drawn and their seed."""
    kind: Literal["distance", "similarity"]
    """What the values are."""
    symmetric: bool
    """Whether the order of two models does not matter."""
    is_metric: bool
    """Whether the distances keep the triangle inequality."""
    distance_rule: str
    """How values become distances."""
    reference: str
    """Paper and DOI of the metric."""
    population: str
    """Where the population lies; that of the embedding, if one was given."""
    name: ClassVar[str] = "pairwise"

    @classmethod
    def make(
        cls,
        metric: Metric[Any],
        ids: Sequence[str],
        values: NDArray[np.float64],
        *,
        settings: Mapping[str, JSON],
        population: str,
    ) -> PairwiseDistances:
        """Put values and what is known of them together.

        Parameters
        ----------
        metric
            What the values were computed by.
        ids
            Of the models.
        values
            (model, model).
        settings
            With the name of the metric under `metric`.
        population
            Where it lies.
        """
        rest = {name: value for name, value in settings.items() if name != "metric"}
        return cls(
            tuple(ids),
            _frozen(values),
            _frozen(metric.to_distances(values)),
            str(settings["metric"]),
            rest,
            metric.kind,
            metric.symmetric,
            metric.is_metric,
            metric.distance_rule,
            metric.reference,
            population,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def value(self, first: str, second: str) -> float:
        """Return the value of two models, in this order; raises `UnknownName`."""
        return float(self.values[self._place(first), self._place(second)])

    def to_dataframe(self, *, of: Literal["values", "distances"] = "values") -> pd.DataFrame:
        """Return a square table, labelled with the ids: values, or the distances they make."""
        check_choice("of", of, ("values", "distances"))
        index = pd.Index(self.ids, name="model")
        square = self.values if of == "values" else self.distances
        return pd.DataFrame(square.copy(), index=index, columns=index)

    def to_pairs(self) -> pd.DataFrame:
        """Return a tidy table of the pairs: `first`, `second`, `value`, `distance`.

        Each pair once where the metric is symmetric, else in both orders.
        """
        different = ~np.eye(len(self), dtype=bool)
        i, j = np.nonzero(np.triu(different) if self.symmetric else different)
        names = np.array(self.ids, dtype=object)
        return pd.DataFrame(
            {
                "first": names[i],
                "second": names[j],
                "value": self.values[i, j],
                "distance": self.distances[i, j],
            }
        )

    def to_xarray(self) -> xr.Dataset:
        """Return a dataset with `value` and `distance`, both (model, other_model).

        Raises
        ------
        InvalidInput
            If xarray is not installed.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise InvalidInput(
                "to_xarray needs xarray: pip install 'dynamo-plugin[xarray]'."
            ) from error
        dimensions = ("model", "other_model")
        return xr.Dataset(
            {
                "value": (dimensions, self.values.copy()),
                "distance": (dimensions, self.distances.copy()),
            },
            coords={dimension: list(self.ids) for dimension in dimensions},
            attrs={
                "metric": self.metric,
                "kind": self.kind,
                "distance_rule": self.distance_rule,
                "reference": self.reference,
                "population": self.population,
            },
        )

    def to_rsatoolbox(self) -> Any:
        """Return an `rsatoolbox.rdm.RDMs` of one matrix, whose patterns are the models.

        Raises
        ------
        InvalidInput
            If rsatoolbox is not installed.
        """
        try:
            from rsatoolbox.rdm import RDMs
        except ImportError as error:
            raise InvalidInput("to_rsatoolbox needs rsatoolbox: pip install rsatoolbox.") from error
        return RDMs(
            self.symmetric_distances()[None],
            dissimilarity_measure=self.metric,
            rdm_descriptors={"metric": [self.metric]},
            pattern_descriptors={"model": list(self.ids)},
        )

    def symmetric_distances(self) -> NDArray[np.float64]:
        """Return (model, model) distances, averaged over both orders, zero on the diagonal."""
        square = (self.distances + self.distances.T) / 2
        np.fill_diagonal(square, 0)
        return square

    def embed(
        self,
        *,
        dimensions: int = 2,
        method: Literal["classical", "stress"] = "classical",
        seed: int = 0,
    ) -> pd.DataFrame:
        """Place the models so that their distances are these, as far as that can be.

        Parameters
        ----------
        dimensions
            Of the space.
        method
            `classical` scaling (Torgerson 1952, doi:10.1007/BF02288916); or `stress`, which changes
            those places until the sum of squared differences of distances is least (SMACOF; de
            Leeuw 1977).
        seed
            Of `stress`, where classical scaling has fewer dimensions than asked for.

        Returns
        -------
        DataFrame
            One row per model, columns `x1`, `x2`, ...

        Raises
        ------
        InvalidInput
            If there are no more models than dimensions.
        """
        check_choice("method", method, ("classical", "stress"))
        check_count("dimensions", dimensions, least=1)
        if len(self) <= dimensions:
            raise InvalidInput(
                f"{len(self)} models can be placed in at most {len(self) - 1} dimensions, not "
                f"{dimensions}."
            )
        square = self.symmetric_distances()
        places = classical_scaling(square, dimensions)
        if method == "stress":
            places = stress_scaling(square, places, seed=seed)
        index = pd.Index(self.ids, name="model")
        columns = [f"x{axis + 1}" for axis in range(dimensions)]
        return pd.DataFrame(places, index=index, columns=columns)

    def linkage(self, *, method: Linkage = "average") -> NDArray[np.float64]:
        """Return a hierarchical clustering, as `scipy.cluster.hierarchy` takes it.

        Parameters
        ----------
        method
            How far clusters are apart: `average` (UPGMA), `single`, `complete` or `weighted`. Those
            that need Euclidean distances are left out.

        Returns
        -------
        ndarray
            (model - 1, 4).
        """
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform

        check_choice("method", method, ("single", "complete", "average", "weighted"))
        condensed = squareform(self.symmetric_distances(), checks=False)
        tree: NDArray[np.float64] = linkage(condensed, method, optimal_ordering=len(self) <= 500)
        return tree

    def plot(
        self,
        kind: Literal["heatmap", "dendrogram", "embedding"] = "heatmap",
        *,
        labels: Mapping[str, object] | pd.Series[Any] | None = None,
    ) -> go.Figure:
        """Return a Plotly figure.

        Parameters
        ----------
        kind
            `heatmap`: the values, models in the order of the dendrogram; `dendrogram`: average
            linkage of the distances; `embedding`: classical scaling to a plane.
        labels
            What each model is, by id; colours the embedding, and names models elsewhere.

        Raises
        ------
        UnknownName
            If a model has no label.
        """
        check_choice("kind", kind, ("heatmap", "dendrogram", "embedding"))
        given = None if labels is None else [str(self._label(labels, m)) for m in self.ids]
        if kind == "embedding":
            return _figures.embedding_figure(self.embed(), given)
        names = (
            list(self.ids)
            if given is None
            else [f"{model} ({label})" for model, label in zip(self.ids, given, strict=True)]
        )
        if kind == "dendrogram":
            return _figures.dendrogram_figure(self.linkage(), names)
        return _figures.heatmap_figure(self.values, self.linkage(), names, self._title())

    def summary(self) -> dict[str, JSON]:
        """Return the headline figures, ready for JSON."""
        pairs = self.to_pairs()
        order = pairs["distance"].to_numpy().argsort(kind="stable")
        nearest, farthest = (
            [str(pairs["first"].iloc[place]), str(pairs["second"].iloc[place])]
            for place in (order[0], order[-1])
        )
        return {
            "metric": self.metric,
            **self.settings,
            "kind": self.kind,
            "symmetric": self.symmetric,
            "is_metric": self.is_metric,
            "distance_rule": self.distance_rule,
            "reference": self.reference,
            "population": self.population,
            "models": len(self),
            "mean": float(pairs["value"].mean()),
            "least": float(pairs["value"].min()),
            "most": float(pairs["value"].max()),
            "nearest": list(nearest),
            "farthest": list(farthest),
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write everything into one JSON file, which appears whole or not at all.

        Raises
        ------
        StoreExists
            If something is there, unless it is a comparison that may be overwritten.
        StoreNotFound
            If there is no folder to write into.
        """
        document = {name: getattr(self, name) for name in _PLAIN}
        squares = {name: getattr(self, name).tolist() for name in _SQUARES}
        ids = {"ids": list(self.ids), "settings": dict(self.settings)}
        return write_document(path, document | ids | squares, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> PairwiseDistances:
        """Read what `save` wrote; runs no code.

        Raises
        ------
        StoreNotFound
            If there is no file.
        UnsupportedFormat
            If it is something else, or of another version.
        CorruptBlock
            If it is damaged.
        """
        document = read_document(path)
        try:
            ids = tuple(document["ids"])
            squares: dict[str, Any] = {
                name: _frozen(np.array(document[name], dtype=float)) for name in _SQUARES
            }
            if any(square.shape != (len(ids), len(ids)) for square in squares.values()):
                raise ValueError("its tables do not have one row and column per model")
            plain = {name: document[name] for name in (*_PLAIN, "settings")}
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptBlock(f"{path} is damaged: {error}. Compare again.") from error
        return cls(ids=ids, **squares, **plain)

    def _place(self, model: str) -> int:
        if model not in self.ids:
            raise UnknownName(f"There is no model {model!r}. {suggest(model, self.ids)}")
        return self.ids.index(model)

    def _label(self, labels: Mapping[str, object] | pd.Series[Any], model: str) -> object:
        if model not in labels:
            raise UnknownName(f"labels have none for model {model!r}. Give one label per model.")
        return labels[model]

    def _title(self) -> str:
        return f"{self.metric} ({self.kind})"


def _frozen(square: NDArray[np.float64]) -> NDArray[np.float64]:
    copy = np.array(square, dtype=np.float64)
    copy.setflags(write=False)
    return copy
