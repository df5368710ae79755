"""The result of `null`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import pandas as pd

from dynamo_plugin.analyses._null_table import Alternative, choose, null_table, unusable
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.types import JSON

__all__ = ["Kind", "NullResult", "null_result"]

Kind: TypeAlias = Literal["labels", "shuffled_time", "untrained", "twins"]

LEVEL = 0.05
"""Of the tests of which a note says whether they can reject."""


@dataclass(frozen=True, slots=True, eq=False)
class NullResult(TableResult):
    """Statistics beside what they are under a null; made by `null`.

    The table has one row per statistic: `statistic`, `value`, `null_mean`, `null_std`,
    `effect_size` (value less null mean, by null standard deviation; missing where the null does not
    vary), `null_low`, `null_median` and `null_high` (2.5, 50 and 97.5 % of the null), `p_value`,
    and `p_adjusted` (Holm, over the statistics).
    """

    null: pd.DataFrame
    """One row per draw under the null (labelling, refit or pairing), one column per statistic."""
    analysis: str
    """Name of the analysis whose statistics these are; `distances` for twins."""
    labels_name: str | None
    """What the labels are, where there are any."""
    alternative: Alternative | None
    """Which values count as at least as extreme; None for twins, see `null`."""
    exact: bool
    """Whether the draws are all there are."""
    omitted: dict[str, str]
    """Statistic to the reason why it has no null."""
    kind: Kind
    """What the null is."""
    smallest_p: float
    """The smallest p-value that so many draws can give."""
    note: str | None
    """What to mind about the p-values: that draws are too few for some of them to be small."""
    twins: pd.DataFrame | None = None
    """Of kind `twins`, one row per refit and network: `refit`, `model`, `twin_distance`,
    `nearest_distance` and `nearest` (of the other networks and their twins), `twin_found`."""
    noise_floor: pd.DataFrame | None = None
    """Of kind `twins`, how far apart networks lie that are the same: `quantile` (over networks and
    refits), `relative_distance` (distance of twins by the median distance of different networks),
    `networks_nearer` (share of the pairs of different networks that are no farther apart)."""
    name: ClassVar[str] = "null"
    reference: ClassVar[str] = "Phipson and Smyth 2010, doi:10.2202/1544-6115.1585"

    def summary(self) -> dict[str, JSON]:
        """Return the figures of every statistic."""
        rows = self.table.to_dict(orient="records")
        floor = self.noise_floor
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "kind": self.kind,
                "of": self.analysis,
                "labels": self.labels_name,
                "alternative": self.alternative,
                ("labellings" if self.kind == "labels" else "draws"): len(self.null),
                "exact": self.exact,
                "smallest_p": self.smallest_p,
                "note": self.note,
                "statistics": {str(row.pop("statistic")): row for row in rows},
                "noise_floor": None if floor is None else floor.to_dict(orient="records"),
                "omitted": self.omitted,
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return the null of every statistic in its own standard deviations, and its value."""
        import plotly.graph_objects as go

        figure = go.Figure()
        shown = self.table[self.table["effect_size"].notna()]
        names = [plot_text(name) for name in shown["statistic"]]
        for row, name in zip(shown.to_dict(orient="records"), names, strict=True):
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
                x=shown["effect_size"].to_numpy(),
                y=names,
                customdata=shown[["value", "p_value"]].to_numpy(),
                mode="markers",
                name="value",
                marker={"symbol": "diamond", "size": 11, "color": "black"},
                hovertemplate="%{y}<br>%{customdata[0]:.3f}, p = %{customdata[1]:.2g}"
                "<extra></extra>",
            )
        )
        figure.update_xaxes(title={"text": "standard deviations of the null from its mean"})
        figure.update_layout(height=max(320, 140 + 32 * len(names)))
        return style_figure(figure).update_yaxes(automargin=True)


def null_result(
    names: list[str],
    observed: NDArray[np.float64],
    drawn: NDArray[np.float64],
    asked: Sequence[str] | None,
    kind: Kind,
    analysis: str,
    alternative: Alternative | None,
    labels_name: str | None,
    *,
    exact: bool,
    twins: pd.DataFrame | None = None,
    noise_floor: pd.DataFrame | None = None,
) -> NullResult:
    """Return the result of statistics (statistic,) and their draws (statistic, draw).

    Raises
    ------
    UnknownName, InvalidInput
        As `choose`.
    """
    draw, draws, on = {
        "labels": ("labelling", "labellings", "labels"),
        "twins": ("pairing", "pairings", "twins"),
    }.get(kind, ("refit", "refits", "networks"))
    omitted = unusable(names, observed, drawn, draw=draw, draws=draws)
    kept = choose(names, omitted, asked, analysis, on=on)
    positions = [names.index(name) for name in kept]
    sides: list[Alternative] = [
        alternative or ("less" if name == "distance_ratio" else "greater") for name in kept
    ]
    table = null_table(kept, observed[positions], drawn[positions], sides, exact=exact)
    smallest = 1 / (drawn.shape[1] + (0 if exact else 1))
    note = None
    if smallest * len(kept) > LEVEL:
        what = "p_value" if smallest > LEVEL else f"p_adjusted of {len(kept)} statistics"
        least = smallest if smallest > LEVEL else smallest * len(kept)
        note = (
            f"{drawn.shape[1]} {draws} are too few for a {what} below {LEVEL:g}: the smallest is "
            f"{least:.2g}. Draw more, or choose fewer statistics."
        )
    values = pd.DataFrame(drawn[positions].T, columns=kept)
    return NullResult(
        table,
        values,
        analysis,
        labels_name,
        alternative,
        exact,
        omitted,
        kind,
        smallest,
        note,
        twins,
        noise_floor,
    )
