"""The figure of a landscape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from dynamo_plugin.analyses._result import plot_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses.landscape import LandscapeResult

__all__ = ["plot_landscape"]

MANY = 40
"""Networks from which on their marks are small."""


def plot_landscape(result: LandscapeResult) -> go.Figure:
    """Return a heat map of the held-out score, with the hull, the networks and the best point."""
    x, y = result.table["x"].unique(), result.table["y"].unique()

    def square(column: str) -> NDArray[np.float64]:
        return result.table[column].to_numpy(dtype=np.float64).reshape(len(y), len(x))

    kind = {"accuracy": "accuracy", "r2": "R²"}[result.score_kind]
    figure = go.Figure(
        go.Heatmap(
            x=x,
            y=y,
            z=square("held_out_score"),
            customdata=np.stack([square("held_out_se"), square("chosen_score")], axis=-1),
            colorscale="Viridis",
            colorbar={"title": {"text": f"{kind} on<br>{result.sample_counts[1]} samples"}},
            hovertemplate="%{z:.3f} ± %{customdata[0]:.3f}<br>where it was chosen "
            "%{customdata[1]:.3f}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Contour(
            x=x,
            y=y,
            z=square("in_hull"),
            contours={"coloring": "lines", "start": 0.5, "end": 0.5, "size": 1},
            colorscale=[[0, "white"], [1, "white"]],
            line={"dash": "dot", "width": 2},
            showscale=False,
            hoverinfo="skip",
            name="hull of the thetas",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=result.networks["x"],
            y=result.networks["y"],
            text=[plot_text(model) for model in result.networks["model"]],
            customdata=result.networks[
                ["emulated_held_out_score", "own_held_out_score", "plane_distance"]
            ],
            mode="markers",
            name="networks",
            marker={
                "size": 9 if len(result.networks) <= MANY else 6,
                "color": "white",
                "line": {"color": "black", "width": 1},
            },
            hovertemplate="%{text}<br>itself %{customdata[1]:.3f}, emulated "
            "%{customdata[0]:.3f}<br>%{customdata[2]:.3g} from the plane<extra></extra>",
        )
    )
    row = result.table.iloc[result.best]
    figure.add_trace(
        go.Scatter(
            x=[row["x"]],
            y=[row["y"]],
            mode="markers",
            name="best point",
            marker={
                "symbol": "star",
                "size": 17,
                "color": "#ff725c",
                "line": {"color": "white", "width": 1},
            },
            hovertemplate=f"best point<br>{row['held_out_score']:.3f} ± "
            f"{row['held_out_se']:.3f}<br>where it was chosen "
            f"{row['chosen_score']:.3f}<extra></extra>",
        )
    )
    for axis, values, name in (("xaxis", x, 0), ("yaxis", y, 1)):
        half = (values[1] - values[0]) / 2
        figure.update_layout(
            {
                axis: {
                    "title": {"text": plot_text(result.plane.names[name])},
                    "range": [values[0] - half, values[-1] + half],
                    "showgrid": False,
                    "zeroline": False,
                }
            }
        )
    return figure
