"""The picture of `novelty`: members and new networks in the plane of the members."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dynamo_plugin.analyses._result import LONGEST_TICK, plot_text, style_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["plot_novelty"]

MOST_NAMED = 20
"""New networks that are named in the picture; more would lie on each other."""


def plot_novelty(
    table: pd.DataFrame, coordinates: pd.DataFrame, ratios: tuple[float, ...]
) -> go.Figure:
    """Return members as dots, new networks as diamonds, flagged ones as crosses.

    Parameters
    ----------
    table, coordinates
        Of the result.
    ratios
        Share of the variance of the members on each component.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    second = "pc_2" if "pc_2" in coordinates else None
    members = coordinates[coordinates["member"]]
    groups = (
        [("members", members)]
        if "label" not in coordinates
        else [(str(label), part) for label, part in members.groupby("label", sort=False)]
    )
    for name, part in groups:
        figure.add_trace(_points(part, second, name, symbol="circle", size=8, opacity=0.6))
    new = coordinates.loc[table["model"]]
    named = len(new) <= MOST_NAMED
    flags = table["flagged"].to_numpy()
    hover = [
        f"{plot_text(row['model'])}<br>p of its place {row['place_p']:.2g}<br>"
        f"p of its fidelity {row['fidelity_p']:.2g}<br>hidden R² {row['hidden_r2']:.3f}"
        for row in table.to_dict(orient="records")
    ]
    for flagged, title, symbol, colour in (
        (False, "new", "diamond", "#333333"),
        (True, "new, flagged", "x", "#d62728"),
    ):
        chosen = flags == flagged
        if chosen.any():
            trace = _points(new[chosen], second, title, symbol=symbol, size=12, opacity=1.0)
            trace.update(
                marker_color=colour,
                mode="markers+text" if named else "markers",
                text=[plot_text(model, longest=LONGEST_TICK) for model in new.index[chosen]],
                textposition="top center",
                hovertext=[text for text, here in zip(hover, chosen, strict=True) if here],
                hovertemplate="%{hovertext}<extra></extra>",
            )
            figure.add_trace(trace)
    figure.update_xaxes(title={"text": f"component 1 ({ratios[0]:.0%} of the members' variance)"})
    shown = f" ({ratios[1]:.0%})" if second else " (there is only one)"
    figure.update_yaxes(title={"text": f"component 2{shown}"})
    return style_figure(figure)


def _points(
    part: pd.DataFrame, second: str | None, name: str, *, symbol: str, size: int, opacity: float
) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=part["pc_1"].to_numpy(),
        y=(part[second] if second else 0 * part["pc_1"]).to_numpy(),
        text=[plot_text(model) for model in part.index],
        name=plot_text(name),
        mode="markers",
        marker={"symbol": symbol, "size": size, "opacity": opacity},
        hovertemplate="%{text}<extra></extra>",
    )
