"""What explains the thetas: labels, metadata, hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._columns import Predictor, read_predictor
from dynamo_plugin.analyses._coordinates import Distance, model_coordinates
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._permutation import PermutationTest, holm, permutation_test
from dynamo_plugin.analyses._result import LONGEST_TICK, TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses.labels import LabelSource, read_labels
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["AttributionResult", "attribution", "shares"]


@dataclass(frozen=True, slots=True, eq=False)
class AttributionResult(TableResult):
    """Shares of the variance of theta that columns explain; made by `attribution`.

    The table has one row per column: `column`, `kind` (`groups` or `number`), `models` that have a
    value, `missing`, `values` (distinct), `r2`, `adjusted_r2` (0 on average by chance), `pseudo_f`
    (infinite where nothing is left to explain), `p_value`, `p_adjusted` (Holm, over the columns),
    `labellings` looked at, and whether they are all there are, `exact`.
    """

    dimensions: pd.DataFrame
    """One row per column and dimension of theta that varies: `column`, `dimension` (`theta_0` and
    on), `r2`, `p_value`, `p_adjusted` (over the dimensions, within the column)."""
    omitted: dict[str, str]
    """Column to the reason why it was left out."""
    distance: Distance
    """Which distance between models the table is about."""
    name: ClassVar[str] = "attribution"
    reference: ClassVar[str] = (
        "Anderson 2001, doi:10.1111/j.1442-9993.2001.01070.pp.x; McArdle and Anderson 2001, "
        "doi:10.1890/0012-9658(2001)082[0290:FMMTCD]2.0.CO;2"
    )

    def summary(self) -> dict[str, JSON]:
        """Return the figures of every column, and what was left out."""
        rows = self.table.to_dict(orient="records")
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "distance": self.distance,
                "columns": {str(row.pop("column")): row for row in rows},
                "omitted": self.omitted,
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return a bar per column: the share it explains, beside what chance explains."""
        import plotly.graph_objects as go

        ordered = self.table.sort_values("r2", kind="stable")
        rank = list(range(len(ordered)))
        p_values = [f"{p:.2g}" for p in ordered["p_adjusted"]]
        figure = go.Figure(
            go.Bar(
                x=ordered["r2"].to_numpy(),
                y=rank,
                orientation="h",
                text=[f"p = {p}" for p in p_values],
                customdata=[plot_text(column) for column in ordered["column"]],
                name="explained",
                hovertemplate="%{customdata}<br>R² %{x:.3f}, %{text} (Holm)<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=_by_chance(ordered).to_numpy(),
                y=rank,
                mode="markers",
                name="by chance",
                marker={"symbol": "line-ns-open", "size": 14, "line": {"width": 2}},
                hovertemplate="by chance %{x:.3f}<extra></extra>",
            )
        )
        ticks = [plot_text(column, longest=LONGEST_TICK) for column in ordered["column"]]
        figure.update_layout(
            xaxis={"title": {"text": "share of the variance of θ"}, "range": [0, 1]},
            yaxis={"tickmode": "array", "tickvals": rank, "ticktext": ticks},
            height=max(320, 120 + 28 * len(ordered)),
        )
        return (
            style_figure(figure)
            .update_layout(
                legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"}, margin={"l": 24}
            )
            .update_yaxes(automargin=True)
        )


def _by_chance(table: pd.DataFrame) -> pd.Series[float]:
    """Return the mean R2 of permuted columns: degrees of freedom / (models - 1)."""
    freedom = (table["values"] - 1).where(table["kind"] == "groups", 1)
    return freedom / (table["models"] - 1)


@analysis
def attribution(
    embedding: ModelEmbedding,
    *,
    columns: Sequence[str] | None = None,
    labels: LabelSource | None = None,
    permutations: int = 999,
    max_exact: int = 20_000,
    seed: int = 0,
    distance: Distance = "theta",
) -> AttributionResult:
    """Say which columns of the metadata explain where models lie, each one by itself.

    R2 is the share of the squared distances to the mean that a column explains, and the pseudo-F
    their ratio to what it leaves, by degrees of freedom: permutational multivariate analysis of
    variance for groups (Anderson 2001, doi:10.1111/j.1442-9993.2001.01070.pp.x), multivariate
    linear regression for numbers (McArdle and Anderson 2001,
    doi:10.1890/0012-9658(2001)082[0290:FMMTCD]2.0.CO;2). p is from permuted values: over all
    relabellings if there are at most `max_exact`, otherwise (1 + number at least as large) / (1 +
    permutations). It is corrected for the number of columns (Holm 1979,
    https://www.jstor.org/stable/4615733), and for each dimension of theta, within a column, by the
    largest R2 of all dimensions (Westfall and Young 1993, Resampling-based Multiple Testing).

    Columns that go together explain the same variance: shares do not add up. Groups that differ in
    spread, not in place, may have a small p too. A column whose values are numbers is one straight
    line; name it in `labels` for groups.

    Parameters
    ----------
    embedding
        At least three models. Models without a value are left out of that column's figures.
    columns
        Names of metadata columns; None for all. Those that are constant, different for every
        model, or leave no degree of freedom are left out, and the result says why.
    labels
        One more column, taken as groups even if it holds numbers: a metadata column, a mapping
        from model id to label, or one label per model.
    permutations
        Random permutations.
    max_exact
        Largest number of relabellings that is enumerated; 0 never enumerates.
    seed
        Of the permutations.
    distance
        `theta` or `functional`, as in `embedding.distances`. Dimensions are those of theta.

    Returns
    -------
    AttributionResult

    Raises
    ------
    UnknownName
        If there is no such metadata column.
    InvalidInput
        If no column explains anything, thetas are all equal, or an option does not fit.
    """
    if permutations < 1 or max_exact < 0:
        raise InvalidInput(
            "permutations must be at least 1 and max_exact at least 0, got "
            f"{permutations} and {max_exact}."
        )
    coordinates, _ = model_coordinates(embedding, distance)
    thetas = embedding.thetas.double().numpy()
    rows, dimensions, omitted = [], [], {}
    for name, read in _predictors(embedding, columns, labels).items():
        tested = (
            read
            if isinstance(read, str)
            else _test(
                read, coordinates, thetas, permutations=permutations, max_exact=max_exact, seed=seed
            )
        )
        if isinstance(tested, str):
            omitted[name] = tested
            continue
        rows.append({"column": name, **tested.row})
        dimensions.append(tested.dimensions.assign(column=name))
    if not rows:
        reasons = "; ".join(f"{name} ({why})" for name, why in omitted.items())
        raise InvalidInput(
            f"Expected a column that differs between models: {reasons or 'there is none'}. Give "
            "labels, or capture with metadata."
        )
    table = pd.DataFrame(rows)
    table["p_adjusted"] = holm(table["p_value"].to_numpy())
    order = ["column", "kind", "models", "missing", "values", "r2", "adjusted_r2", "pseudo_f"]
    table = table[[*order, "p_value", "p_adjusted", "labellings", "exact"]]
    by_dimension = pd.concat(dimensions, ignore_index=True)
    by_dimension = by_dimension[["column", "dimension", "r2", "p_value", "p_adjusted"]]
    return AttributionResult(table, by_dimension, omitted, distance)


def _predictors(
    embedding: ModelEmbedding, columns: Sequence[str] | None, labels: LabelSource | None
) -> dict[str, Predictor | str]:
    metadata = embedding.metadata
    known = [str(column) for column in metadata.columns]
    if isinstance(columns, str):
        raise InvalidInput(f"columns must be a list of names; write [{columns!r}].")
    for column in columns or ():
        if column not in known:
            raise UnknownName(f"The metadata have no column {column!r}. {suggest(column, known)}")
    asked = known if columns is None else list(dict.fromkeys(columns))
    found = {name: read_predictor(metadata.iloc[:, known.index(name)]) for name in asked}
    if labels is not None:
        given = read_labels(embedding, labels)
        found[given.name] = read_predictor(pd.Series(given.of_models), groups=True)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Tested:
    row: dict[str, Any]
    dimensions: pd.DataFrame


def _test(
    predictor: Predictor,
    coordinates: NDArray[np.float64],
    thetas: NDArray[np.float64],
    **options: int,
) -> _Tested | str:
    """Return the figures of one column, or why there are none."""
    models, freedom = len(predictor.codes), predictor.rows.shape[1]
    left = models - 1 - freedom
    if left < 1:
        return f"{freedom + 1} values for {models} models leave nothing to compare with"
    points, of_dimensions = (
        values[predictor.present] - values[predictor.present].mean(0)
        for values in (coordinates, thetas)
    )
    by_dimension = (of_dimensions**2).sum(0)
    varies = by_dimension > 1e-12 * by_dimension.max()
    if not (points**2).sum() > 1e-14 * (coordinates**2).sum() or not varies.any():
        return "the models that have a value all lie in one place"
    explained = shares(
        predictor,
        np.hstack([points, of_dimensions[:, varies]]),
        [points.shape[1], *[1] * int(varies.sum())],
    )
    test = permutation_test(explained, predictor.codes, width=max(freedom, 1), **options)
    r2 = float(test.observed[0])
    unexplained = 1 - r2
    row = {
        "kind": predictor.kind,
        "models": models,
        "missing": int((~predictor.present).sum()),
        "values": len(predictor.rows),
        "r2": r2,
        "adjusted_r2": 1 - unexplained * (models - 1) / left,
        "pseudo_f": (r2 / freedom) / (unexplained / left) if unexplained > 1e-12 else np.inf,
        "p_value": float(test.p_values[0]),
        "labellings": test.labellings,
        "exact": test.exact,
    }
    single = PermutationTest(test.observed[1:], test.p_values[1:], test.null[1:], test.exact)
    names = [f"theta_{dimension}" for dimension in np.flatnonzero(varies)]
    dimensions = pd.DataFrame(
        {
            "dimension": names,
            "r2": single.observed,
            "p_value": single.p_values,
            "p_adjusted": single.family_p_values,
        }
    )
    return _Tested(row, dimensions)


def shares(
    predictor: Predictor, values: NDArray[np.float64], parts: Sequence[int]
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Return what maps (labelling, model) codes to (part, labelling) shares of variance explained.

    Parameters
    ----------
    predictor
        Of these models.
    values
        (model, dimension), with mean 0.
    parts
        How many dimensions each part has, in order; every part varies.
    """
    starts = np.cumsum([0, *parts[:-1]])
    totals = np.add.reduceat((values**2).sum(0), starts)

    def explained(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        along = predictor.rows[codes].transpose(0, 2, 1) @ values
        squares = np.add.reduceat((along**2).sum(1), starts, axis=1)
        r2: NDArray[np.float64] = np.minimum(squares / totals, 1.0).T
        return r2

    return explained
