"""What results share: a table, plain numbers for JSON, names that Plotly shows as they are."""

from __future__ import annotations

import abc
import html
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dynamo_plugin.analyses._origin import Origin
    from dynamo_plugin.types import JSON

__all__ = ["LONGEST_TICK", "TableResult", "plain", "plot_text", "style_figure"]

LONGEST_TEXT = 80
"""Characters of a name that a hover label shows."""

LONGEST_TICK = 24
"""Characters of a name that an axis shows."""


@dataclass(frozen=True, slots=True, eq=False)
class TableResult(abc.ABC):
    """Base of the results: frozen, around one tidy table."""

    table: pd.DataFrame
    """The result, one fact per column; `to_dataframe` gives a copy."""
    origin: Origin | None = field(default=None, kw_only=True)
    """What it was computed from: embedding, options, seeds."""
    name: ClassVar[str]
    """Registered name of the analysis."""
    reference: ClassVar[str]
    """Where the method comes from: papers and their DOI."""

    def to_dataframe(self) -> pd.DataFrame:
        """Return the table; changing it does not change the result."""
        return self.table.copy()

    @abc.abstractmethod
    def summary(self) -> dict[str, JSON]:
        """Return the headline figures, ready for JSON."""

    @abc.abstractmethod
    def plot(self) -> go.Figure:
        """Return the result as a Plotly figure."""

    def to_json(self) -> dict[str, JSON]:
        """Return all of it, ready for JSON: method, origin, headline figures, and the table."""
        return {
            "analysis": self.name,
            "reference": self.reference,
            "origin": None if self.origin is None else self.origin.to_json(),
            "summary": self.summary(),
            "table": json.loads(self.table.to_json(orient="records", double_precision=15)),
        }


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: no NumPy types; what is missing or infinite is None.

    >>> plain({"score": np.float64(0.5), "worst": float("nan"), "ids": ("a",)})
    {'score': 0.5, 'worst': None, 'ids': ['a']}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return None if value is pd.NA or value is pd.NaT else str(value)


def plot_text(value: object, *, longest: int = LONGEST_TEXT) -> str:
    """Return text that Plotly shows as it is; Plotly reads HTML in every label.

    >>> plot_text("<b>bold</b>")
    '&lt;b&gt;bold&lt;/b&gt;'
    """
    text = " ".join(str(value).split())
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return html.escape(text, quote=False)


def style_figure(figure: go.Figure) -> go.Figure:
    """Give a figure the look that all of ours have, and return it."""
    return figure.update_layout(
        template="plotly_white",
        colorway=["#4269d0", "#e8820c", "#3ca951", "#ff725c", "#a463f2", "#6cc5b0", "#9c6b4e"],
        margin={"l": 64, "r": 24, "t": 24, "b": 56},
        hoverlabel={"namelength": -1, "align": "left"},
        legend={"title": {"side": "top"}},
    )
