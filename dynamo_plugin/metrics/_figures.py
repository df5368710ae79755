"""Plotly figures of distances between models."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import dendrogram, leaves_list

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

__all__ = ["dendrogram_figure", "embedding_figure", "heatmap_figure"]

_LONGEST = 24  # characters of a name that an axis shows
_COLOURS = ["#4269d0", "#e8820c", "#3ca951", "#ff725c", "#a463f2", "#6cc5b0", "#9c6b4e"]


def heatmap_figure(
    values: NDArray[np.float64], tree: NDArray[np.float64], names: Sequence[str], title: str
) -> go.Figure:
    """Return a heat map whose rows and columns are in the order of a hierarchical clustering."""
    import plotly.graph_objects as go

    order = leaves_list(tree).tolist()
    shown = [_text(names[place]) for place in order]
    places = list(range(len(order)))
    figure = go.Figure(
        go.Heatmap(
            z=values[np.ix_(order, order)],
            x=places,
            y=places,
            customdata=[[[row, column] for column in shown] for row in shown],
            colorscale="Viridis",
            colorbar={"title": {"text": _text(title)}},
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{z:.4g}<extra></extra>",
        )
    )
    ticks = {"tickvals": places, "ticktext": [_short(name) for name in shown]}
    figure.update_xaxes(**ticks, tickangle=-45)
    figure.update_yaxes(**ticks, autorange="reversed", scaleanchor="x")
    return _styled(figure)


def dendrogram_figure(tree: NDArray[np.float64], names: Sequence[str]) -> go.Figure:
    """Return a dendrogram: at which distance which models come together."""
    import plotly.graph_objects as go

    drawn = dendrogram(tree, no_plot=True)
    x: list[float | None] = []
    y: list[float | None] = []
    for across, up in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        x += [*across, None]
        y += [*up, None]
    figure = go.Figure(
        go.Scatter(x=x, y=y, mode="lines", line={"color": _COLOURS[0]}, hoverinfo="y")
    )
    order = drawn["leaves"] or []
    figure.update_xaxes(
        tickvals=[10 * place + 5 for place in range(len(order))],
        ticktext=[_short(_text(names[place])) for place in order],
        tickangle=-45,
    )
    figure.update_yaxes(title={"text": "distance"}, rangemode="tozero")
    return _styled(figure).update_layout(showlegend=False)


def embedding_figure(places: pd.DataFrame, labels: Sequence[str] | None) -> go.Figure:
    """Return a plane of models; colour and symbol are labels."""
    import plotly.graph_objects as go

    figure = go.Figure()
    of_models = np.array(["models"] * len(places) if labels is None else labels, dtype=object)
    for value in dict.fromkeys(of_models):
        shown = of_models == value
        figure.add_trace(
            go.Scatter(
                x=places["x1"].to_numpy()[shown],
                y=places["x2"].to_numpy()[shown],
                name=_text(value),
                text=[_text(model) for model in places.index[shown]],
                mode="markers",
                marker={"size": 10},
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_xaxes(title={"text": "axis 1"})
    figure.update_yaxes(title={"text": "axis 2"}, scaleanchor="x")
    return _styled(figure).update_layout(showlegend=labels is not None)


def _text(value: object) -> str:
    """Return text that Plotly, which reads HTML in every label, shows as it is."""
    return html.escape(" ".join(str(value).split()), quote=False)


def _short(text: str) -> str:
    plain = html.unescape(text)
    return text if len(plain) <= _LONGEST else html.escape(plain[: _LONGEST - 1] + "…", quote=False)


def _styled(figure: go.Figure) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        colorway=_COLOURS,
        margin={"l": 64, "r": 24, "t": 24, "b": 56},
        hoverlabel={"namelength": -1, "align": "left"},
    )
