"""The plots of a report, as plain data; the page's script draws and colours them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.cluster.hierarchy import leaves_list, linkage

from dynamo_plugin.analyses import (
    ClustersResult,
    ComponentsResult,
    FidelityResult,
    plain,
    plot_text,
)

if TYPE_CHECKING:
    from dynamo_plugin.embedding import ModelEmbedding

__all__ = [
    "agreement_curves",
    "distance_map",
    "embedding_points",
    "figure_data",
    "loss_curves",
    "variance_bars",
]

MOST_NAMED = 40
"""Models up to which the axes of the map of distances name them."""

CONTINUOUS_FROM = 9
"""Distinct numbers from which a column is shown on a colour scale."""


def figure_data(figure: go.Figure) -> dict[str, Any]:
    """Return a figure without its template: fonts and colours are the page's."""
    data: dict[str, Any] = json.loads(figure.to_json())
    data["layout"].pop("template", None)
    return data


def embedding_points(
    embedding: ModelEmbedding,
    components: ComponentsResult,
    fidelity: FidelityResult,
    clusters: ClustersResult | str,
    *,
    labels: str | None,
) -> dict[str, Any]:
    """Return the models in the first two components, with every column they can be coloured by.

    Every string is ready for Plotly, which reads HTML in all of them.
    """
    scores, ratio = components.scores, components.table["explained_variance_ratio"]
    second = scores["pc_2"].tolist() if len(ratio) > 1 else [0.0] * len(scores)
    columns = {str(name): embedding.metadata[name].tolist() for name in embedding.metadata.columns}
    computed: dict[str, list[Any]] = {"hidden R²": fidelity.table["hidden_r2"].tolist()}
    if not isinstance(clusters, str):
        computed["k-means cluster"] = clusters.assignments["cluster"].astype(str).tolist()
    if len(set(embedding.output_groups)) > 1:
        computed["output group"] = list(embedding.output_groups)
    every = {**columns, **{f"{name} (computed)": values for name, values in computed.items()}}
    known = [(name, [plain(value) for value in values]) for name, values in every.items()]
    first = next((place for place, (name, _) in enumerate(known) if name == labels), 0)
    return {
        "x": scores["pc_1"].tolist(),
        "y": second,
        "x_title": f"component 1 ({ratio[0]:.0%} of the variance)",
        "y_title": f"component 2 ({ratio[1]:.0%})" if len(ratio) > 1 else "there is no component 2",
        "hover": [
            "<br>".join(
                [
                    f"<b>{plot_text(model)}</b>",
                    *(f"{plot_text(name)}: {_shown(values[row])}" for name, values in known),
                ]
            )
            for row, model in enumerate(embedding.ids)
        ],
        "columns": [_column(name, values) for name, values in known],
        "first": first,
    }


def _column(name: str, values: list[Any]) -> dict[str, Any]:
    numbers = [value for value in values if isinstance(value, int | float)]
    real = numbers and not any(isinstance(value, str | bool | list | dict) for value in values)
    if real and len(set(numbers)) >= CONTINUOUS_FROM:
        return {"name": name, "title": plot_text(name), "kind": "number", "values": values}
    order = {_shown(value): value for value in values}
    categories = sorted(order, key=lambda text: _sort_key(text, order[text]))
    codes = [categories.index(_shown(value)) for value in values]
    return {
        "name": name,
        "title": plot_text(name),
        "kind": "category",
        "values": codes,
        "categories": categories,
    }


def _shown(value: Any) -> str:
    if value is None:
        return "(missing)"
    return f"{value:.4g}" if isinstance(value, float) else plot_text(value)


def _sort_key(text: str, value: Any) -> tuple[int, float, str]:
    real = isinstance(value, int | float)
    return (0, float(value), text) if real else (2 if value is None else 1, 0.0, text)


def variance_bars(components: ComponentsResult) -> go.Figure:
    """Explained variance of every component, and its running sum."""
    table = components.table
    figure = go.Figure()
    figure.add_bar(
        x=table["component"].to_numpy(),
        y=table["explained_variance_ratio"].to_numpy(),
        name="component",
        hovertemplate="component %{x}: %{y:.1%}<extra></extra>",
    )
    figure.add_scatter(
        x=table["component"].to_numpy(),
        y=table["cumulative_ratio"].to_numpy(),
        name="together",
        mode="lines+markers",
        hovertemplate="first %{x}: %{y:.1%}<extra></extra>",
    )
    figure.add_hline(y=0.95, line={"dash": "dot", "width": 1})
    figure.update_xaxes(title={"text": "component"}, dtick=max(1, len(table) // 8))
    figure.update_yaxes(title={"text": "share of the variance"}, tickformat=".0%", range=[0, 1.03])
    return figure


def loss_curves(history: pd.DataFrame) -> go.Figure:
    """Training losses against steps, on a logarithmic scale."""
    # Named one by one, since Plotly cuts 0.05 down to 5 between the powers of ten.
    ticks = [step * 10.0**power for power in range(-8, 9) for step in (1, 2, 5)]
    axis = {
        "title": {"text": "loss (training)"},
        "type": "log",
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [f"{tick:.6g}" for tick in ticks],
    }
    return _curves(history, {"hidden_loss": "hidden loss", "output_loss": "output loss"}, axis=axis)


def agreement_curves(history: pd.DataFrame) -> go.Figure:
    """Held-out figures against steps."""
    return _curves(
        history,
        {
            "held_out_hidden_r2": "hidden R²",
            "held_out_output_agreement": "output agreement",
        },
        axis={"title": {"text": "held-out, mean over models"}},
    )


def _curves(history: pd.DataFrame, columns: dict[str, str], *, axis: dict[str, Any]) -> go.Figure:
    figure = go.Figure()
    for column, title in columns.items():
        figure.add_scatter(
            x=history["step"].to_numpy(),
            y=history[column].to_numpy(),
            name=title,
            mode="lines+markers" if len(history) < 3 else "lines",
            hovertemplate=title + " %{y:.3f} at step %{x}<extra></extra>",
        )
    figure.update_xaxes(title={"text": "step"})
    return figure.update_layout(yaxis=axis)


def distance_map(embedding: ModelEmbedding) -> go.Figure:
    """Distances between thetas, models ordered so that near ones stand side by side."""
    distances = embedding.distances("theta").to_numpy()
    condensed = distances[np.triu_indices(len(distances), 1)]
    order = leaves_list(linkage(condensed, method="average"))
    names = [plot_text(embedding.ids[index]) for index in order]
    if len(set(names)) < len(names):  # cut names may collide; categories must not
        names = [f"{name} ({index + 1})" for name, index in zip(names, order, strict=True)]
    figure = go.Figure(
        go.Heatmap(
            z=distances[np.ix_(order, order)].astype(np.float32),
            x=names,
            y=names,
            colorscale="Viridis",
            reversescale=True,
            colorbar={"title": {"text": "distance"}, "thickness": 12},
            hovertemplate="%{x}<br>%{y}<br>distance %{z:.3f}<extra></extra>",
        )
    )
    ticks = [plot_text(embedding.ids[index], longest=24) for index in order]
    named = {
        "type": "category",
        "tickmode": "array",
        "tickvals": names,
        "ticktext": ticks,
        "showticklabels": len(names) <= MOST_NAMED,
        "ticks": "",
    }
    figure.update_xaxes(named, tickangle=-90)
    return figure.update_yaxes(named, autorange="reversed")
