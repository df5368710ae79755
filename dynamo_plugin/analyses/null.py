"""What chance makes of the statistics of any analysis that takes labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._permutation import (
    ROUNDING,
    holm,
    permutation_test,
    share_reaching,
)
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses._statistics import VECTORISED, statistics_of
from dynamo_plugin.analyses.labels import LabelSource, read_groups
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["NullResult", "null"]

Alternative: TypeAlias = Literal["greater", "less", "two-sided"]

NOISE = 1e-14
"""Statistics that vary by less than this vary by rounding only."""

MOST_ENUMERATED = 20_000
"""Labellings that are enumerated by default, where they are worked on many at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class NullResult(TableResult):
    """Statistics beside what they are for permuted labels; made by `null`.

    The table has one row per statistic: `statistic`, `value`, `null_mean`, `null_std`,
    `effect_size` (value less null mean, by null standard deviation), `null_low`, `null_median` and
    `null_high` (2.5, 50 and 97.5 % of the null), `p_value`, and `p_adjusted` (Holm, over the
    statistics).
    """

    null: pd.DataFrame
    """One row per labelling, one column per statistic: the values for permuted labels."""
    analysis: str
    """Name of the analysis whose statistics these are."""
    labels_name: str
    """What the labels are."""
    alternative: Alternative
    """Which values count as at least as extreme."""
    exact: bool
    """Whether the labellings are all there are."""
    omitted: dict[str, str]
    """Statistic to the reason why it has no null."""
    name: ClassVar[str] = "null"
    reference: ClassVar[str] = "Phipson and Smyth 2010, doi:10.2202/1544-6115.1585"

    def summary(self) -> dict[str, JSON]:
        """Return the figures of every statistic."""
        rows = self.table.to_dict(orient="records")
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "of": self.analysis,
                "labels": self.labels_name,
                "alternative": self.alternative,
                "labellings": len(self.null),
                "exact": self.exact,
                "statistics": {str(row.pop("statistic")): row for row in rows},
                "omitted": self.omitted,
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return the null of every statistic in its own standard deviations, and its value."""
        import plotly.graph_objects as go

        figure = go.Figure()
        names = [plot_text(name) for name in self.table["statistic"]]
        for row, name in zip(self.table.to_dict(orient="records"), names, strict=True):
            values = self.null[row["statistic"]].to_numpy()
            figure.add_trace(
                go.Box(
                    x=(values - row["null_mean"]) / row["null_std"],
                    name=name,
                    boxpoints=False,
                    showlegend=False,
                )
            )
        figure.add_trace(
            go.Scatter(
                x=self.table["effect_size"].to_numpy(),
                y=names,
                customdata=self.table[["value", "p_value"]].to_numpy(),
                mode="markers",
                name="value",
                marker={"symbol": "diamond", "size": 11, "color": "black"},
                hovertemplate="%{y}<br>%{customdata[0]:.3f}, p = %{customdata[1]:.2g}"
                "<extra></extra>",
            )
        )
        figure.update_xaxes(title={"text": "standard deviations of the null from its mean"})
        return style_figure(figure).update_yaxes(automargin=True)


@analysis
def null(
    embedding: ModelEmbedding,
    *,
    labels: LabelSource,
    analysis: str = "clusters",
    statistics: Sequence[str] | None = None,
    alternative: Alternative = "greater",
    permutations: int = 999,
    max_exact: int | None = None,
    seed: int = 0,
    **options: Any,
) -> NullResult:
    """Compare the statistics of an analysis with those it has when labels are permuted.

    If there are at most `max_exact` distinct labellings, all are enumerated, and p is the share of
    them that are at least as extreme; otherwise labels are drawn, and p is (1 + number at least as
    extreme) / (1 + permutations), which is never 0 and rejects no more often than it says (Phipson
    and Smyth 2010, doi:10.2202/1544-6115.1585).

    Statistics are the numbers in the analysis' `summary()`; nested ones have dotted names. For
    `clusters` and `attribution` they are computed for many labellings at once: the agreement of
    the labels with theta, and the share `r2` of the variance that they explain with its
    `pseudo_f`. Any other analysis that has the option `labels`, a plugin's too, runs once per
    labelling.

    Parameters
    ----------
    embedding
        At least three models.
    labels
        A metadata column, a mapping from model id to label, or one label per model.
    analysis
        Registered name.
    statistics
        Which of its statistics; None for all that depend on the labels.
    alternative
        `greater`: values at least as large are extreme. `less`: at least as small. `two-sided`: at
        least as far from the mean over all labellings looked at.
    permutations
        Labellings that are drawn.
    max_exact
        Largest number of labellings that is enumerated; 0 never enumerates. None for 20,000 where
        many are worked on at once, else `permutations`.
    seed
        Of the draws.
    **options
        Options of the analysis.

    Returns
    -------
    NullResult

    Raises
    ------
    UnknownName
        If there is no such analysis, column or statistic.
    InvalidInput
        If labels do not sort models into groups, an option does not fit, or no statistic depends
        on the labels.
    """
    if permutations < 1 or (max_exact is not None and max_exact < 0):
        raise InvalidInput(
            "permutations must be at least 1 and max_exact at least 0, got "
            f"{permutations} and {max_exact}."
        )
    if alternative not in ("greater", "less", "two-sided"):
        raise InvalidInput(
            f"alternative must be 'greater', 'less' or 'two-sided', got {alternative!r}."
        )
    if analysis == "null":
        raise InvalidInput("The null of the null is not defined; name another analysis.")
    found = read_groups(embedding, labels)
    names, compute = statistics_of(analysis, embedding, found, options)
    if max_exact is None:
        max_exact = MOST_ENUMERATED if analysis in VECTORISED else permutations
    test = permutation_test(
        compute, found.codes, permutations=permutations, max_exact=max_exact, seed=seed
    )
    omitted = _unusable(names, test.observed, test.null)
    kept = _choose(names, omitted, statistics, analysis)
    positions = [names.index(name) for name in kept]
    observed, drawn = test.observed[positions], test.null[positions]
    p_values = _p_values(observed, drawn, alternative, exact=test.exact)
    low, median, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=1)
    means, stds = drawn.mean(1), drawn.std(1)
    table = pd.DataFrame(
        {
            "statistic": kept,
            "value": observed,
            "null_mean": means,
            "null_std": stds,
            "effect_size": (observed - means) / stds,
            "null_low": low,
            "null_median": median,
            "null_high": high,
            "p_value": p_values,
            "p_adjusted": holm(p_values),
        }
    )
    values = pd.DataFrame(drawn.T, columns=kept)
    return NullResult(table, values, analysis, found.name, alternative, test.exact, omitted)


def _p_values(
    observed: NDArray[np.float64],
    drawn: NDArray[np.float64],
    alternative: Alternative,
    *,
    exact: bool,
) -> NDArray[np.float64]:
    if alternative == "less":
        return share_reaching(-observed, -drawn, exact=exact)
    if alternative == "greater":
        return share_reaching(observed, drawn, exact=exact)
    # The given labelling is one of those drawn from, so the centre must count it like them.
    every = drawn if exact else np.column_stack([observed, drawn])
    centre = every.mean(1)
    return share_reaching(np.abs(observed - centre), np.abs(drawn - centre[:, None]), exact=exact)


def _unusable(
    names: Sequence[str], observed: NDArray[np.float64], drawn: NDArray[np.float64]
) -> dict[str, str]:
    reasons = {}
    for name, value, values in zip(names, observed, drawn, strict=True):
        if not (np.isfinite(value) and np.isfinite(values).all()):
            reasons[name] = "missing or infinite for some labellings"
        elif np.ptp(values) <= max(ROUNDING * float(np.abs(values).max()), NOISE):
            reasons[name] = "the same for every labelling"
    return reasons


def _choose(
    names: Sequence[str],
    omitted: Mapping[str, str],
    asked: Sequence[str] | None,
    analysis: str,
) -> list[str]:
    if isinstance(asked, str):
        raise InvalidInput(f"statistics must be a list of names; write [{asked!r}].")
    for name in asked or ():
        if name not in names:
            raise UnknownName(
                f"The analysis {analysis!r} has no statistic {name!r}. {suggest(name, names)}"
            )
        if name in omitted:
            raise InvalidInput(f"The statistic {name!r} has no null: it is {omitted[name]}.")
    kept = [name for name in names if name not in omitted] if asked is None else list(asked)
    if not kept:
        raise InvalidInput(
            f"The analysis {analysis!r} has no statistic that depends on the labels. Choose "
            "another analysis, or labels."
        )
    return kept
