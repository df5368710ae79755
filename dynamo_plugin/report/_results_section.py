"""Sections of a report on further results, those of plugins among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from dynamo_plugin.analyses import plain
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.report._html import Cell, facts, number, paragraph, plot, section, table

if TYPE_CHECKING:
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.registry.interfaces import AnalysisResult

__all__ = [
    "check_results",
    "plot_name",
    "result_cautions",
    "result_links",
    "result_section",
    "result_titles",
]

MOST_ROWS = 50
"""Rows of a table that are shown."""

LONGEST_CELL = 200
"""Characters of a text that are shown."""


def check_results(results: Sequence[Any]) -> None:
    """Raise unless all are results of analyses.

    Raises
    ------
    InvalidInput
        Names what is missing.
    """
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise InvalidInput(
            f"Expected a list of results of analyses, got {type(results).__name__}. Write "
            "results=[result]."
        )
    for result in results:
        lacking = [
            method
            for method in ("to_dataframe", "plot", "summary")
            if not callable(getattr(result, method, None))
        ]
        if lacking or not isinstance(getattr(result, "name", None), str):
            raise InvalidInput(
                f"Expected a result of an analysis, got {type(result).__name__}, which lacks "
                f"{', '.join([*lacking] or ['a name'])}. Pass what dynamo_plugin.analyse(...) "
                "returns."
            )


def result_titles(results: Sequence[AnalysisResult]) -> list[str]:
    """Return the titles of the sections, numbered where an analysis comes more than once."""
    names = [result.name for result in results]
    titles = []
    for place, name in enumerate(names):
        title = name.replace("_", " ").strip().capitalize() or "Result"
        again = names[: place + 1].count(name)
        titles.append(f"{title} ({again})" if names.count(name) > 1 else title)
    return titles


def result_links(titles: Sequence[str]) -> list[tuple[str, str]]:
    """Return id and title of every section."""
    return [(_section_name(place), title) for place, title in enumerate(titles)]


def plot_name(place: int) -> str:
    """Return the id of the plot of the result at a place."""
    return f"{_section_name(place)}-plot"


def result_section(result: AnalysisResult, title: str, place: int) -> str:
    """Return one result: its method, options and seed, headline figures, plot and table."""
    frame = result.to_dataframe()
    shown = frame.head(MOST_ROWS)
    if not isinstance(frame.index, pd.RangeIndex):
        shown = shown.set_axis([str(label) for label in shown.index]).reset_index(names="index")
    rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False, name=None)]
    name = _section_name(place)
    reference = getattr(result, "reference", None)
    figures = [(str(key), _text(value)) for key, value in plain(result.summary()).items()]
    more = (
        f"The first {MOST_ROWS:,} of {len(frame):,} rows; to_dataframe() has all of them."
        if len(frame) > MOST_ROWS
        else ""
    )
    return section(
        name,
        title,
        paragraph(f"Method: {reference}.", style="small") if reference else "",
        plot(plot_name(place), label=f"{title}: plot"),
        table(
            [str(column) for column in shown.columns],
            rows,
            caption=f"{title}: {len(frame):,} rows",
            name=f"{name}-table",
        )
        if rows
        else paragraph("The table is empty.", style="absent"),
        paragraph(more, style="small") if more else "",
        _details("Headline figures", figures),
        _origin(result),
    )


def result_cautions(
    embedding: ModelEmbedding, results: Sequence[AnalysisResult], titles: Sequence[str]
) -> list[str]:
    """Return a sentence for every result that is not of this embedding."""
    cautions = []
    for result, title in zip(results, titles, strict=True):
        origin = getattr(result, "origin", None)
        differs = [
            what
            for what, own, found in (
                ("inputs", embedding.provenance.inputs_hash, getattr(origin, "inputs_hash", None)),
                ("models", tuple(embedding.ids), getattr(origin, "models", None)),
                ("seed of the fit", embedding.config.seed, getattr(origin, "fit_seed", None)),
            )
            if found is not None and (tuple(found) if what == "models" else found) != own
        ]
        if differs:
            cautions.append(
                f"The section “{title}” was computed from another embedding than this one "
                f"({', '.join(differs)} differ); do not read it together with the others."
            )
    return cautions


def _section_name(place: int) -> str:
    return f"result-{place + 1}"


def _origin(result: AnalysisResult) -> str:
    origin = getattr(result, "origin", None)
    if origin is None:
        return paragraph("What this was computed from is not recorded.", style="small")
    pairs = [(str(name), _text(value)) for name, value in dict(origin.options).items()]
    pairs += [("population", str(origin.population)), ("seed of the fit", str(origin.fit_seed))]
    pairs.append(("models", f"{len(origin.models):,}"))
    return _details("Options and seeds", pairs)


def _details(title: str, pairs: list[tuple[str, str]]) -> str:
    return f"<details><summary>{title}</summary>{facts(pairs)}</details>"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 4 * LONGEST_CELL else f"{text[: 4 * LONGEST_CELL]}…"


def _cell(value: Any) -> Cell:
    if not isinstance(value, str | list | dict | tuple) and pd.api.types.is_scalar(value):
        if pd.isna(value):
            return Cell("-")
        if pd.api.types.is_bool(value):
            return Cell("yes" if value else "no")
        if pd.api.types.is_integer(value):
            return Cell(f"{int(value):,}", value=float(value))
        if pd.api.types.is_float(value):
            real = float(value)
            return Cell(number(real), value=real) if abs(real) < float("inf") else Cell(str(real))
    text = str(value)
    return Cell(text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…")
