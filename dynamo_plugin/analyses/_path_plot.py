"""The figure of scores and agreement along paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plotly.subplots import make_subplots

from dynamo_plugin.analyses._result import LONGEST_TICK, plot_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["plot_paths"]

STYLES = {
    "linear": ("theta, straight", "#4269d0"),
    "geodesic": ("theta, geodesic", "#e8820c"),
    "weights": ("averaged weights", "#3ca951"),
    "outputs": ("mixed outputs", "#a463f2"),
}
"""Kind of path to its title and colour, the same in both panels."""


def plot_paths(
    table: pd.DataFrame, score_kind: str | None, agreement_kind: str, ends: tuple[str, str]
) -> go.Figure:
    """Return one panel of scores, where there are any, above one of agreement with the ends.

    Parameters
    ----------
    table
        That of `InterpolationResult`.
    score_kind
        What the scores are; None if there are none.
    agreement_kind
        `decisions` or `r2`.
    ends
        Names of the ends.
    """
    import plotly.graph_objects as go

    first, second = (plot_text(end, longest=LONGEST_TICK) for end in ends)
    lines = [] if score_kind is None else [("score", "", "solid")]
    panels = len(lines) + 1
    lines += [("agreement_first", f", with {first}", "solid")]
    lines += [("agreement_second", f", with {second}", "dash")]
    figure = make_subplots(rows=panels, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    shown: set[str] = set()
    for column, of, dash in lines:
        row = 1 if column == "score" else panels
        for kind, path in table.groupby("path", sort=False):
            title, colour = STYLES[str(kind)]
            along = path[path[column].notna()]
            figure.add_trace(
                go.Scatter(
                    x=along["position"].to_numpy(dtype=float),
                    y=along[column].to_numpy(dtype=float),
                    error_y={
                        "type": "data",
                        "array": along[f"{column}_se"].to_numpy(dtype=float),
                        "thickness": 1,
                        "width": 2,
                        "visible": column == "score",
                    },
                    customdata=along[f"{column}_se"].to_numpy(dtype=float),
                    mode="lines+markers",
                    line={"color": colour, "dash": dash},
                    marker={"size": 5},
                    name=title,
                    legendgroup=str(kind),
                    showlegend=str(kind) not in shown,
                    hovertemplate="%{y:.3f} ± %{customdata:.3f} at %{x:.2f}<extra>"
                    f"{title}{of}</extra>",
                ),
                row=row,
                col=1,
            )
            shown.add(str(kind))
    what = {"decisions": "equal decisions", "r2": "R² of the outputs"}[agreement_kind]
    figure.update_yaxes(
        title={"text": f"{what}<br>solid: as {first}<br>dashed: as {second}"}, row=panels
    )
    if score_kind is not None:
        figure.update_yaxes(title={"text": {"accuracy": "accuracy", "r2": "R²"}[score_kind]}, row=1)
    figure.update_xaxes(title={"text": f"from {first} to {second}"}, row=panels)
    figure.update_layout(
        height=260 + 220 * panels, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    )
    return figure
