"""HTML from values: every string that is not ours passes through `html.escape` here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["Cell", "facts", "json_block", "number", "paragraph", "plot", "section", "table"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    """What it shows."""
    value: float | None = None
    """What it is sorted by; None to sort by the text."""
    bar: float | None = None
    """Length of a bar under the number, from 0 to 1; None for no bar."""
    note: str = ""
    """Small print after the text."""
    flag: str = ""
    """`good` or `poor`, for its colour."""


def number(value: float | None, *, digits: int = 3) -> str:
    """Return a figure as readers expect it; what is missing is a dash.

    >>> number(0.12345), number(None), number(0.00004), number(1234.5)
    ('0.123', '-', '4.0e-05', '1,234.500')
    """
    if value is None or value != value:
        return "-"
    if value != 0 and abs(value) < 10**-digits / 2:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def section(name: str, title: str, *body: str, lead: str = "") -> str:
    """Return a section with its heading; `body` is HTML, the rest is text."""
    described = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return (
        f'<section id="{escape(name)}" aria-labelledby="{escape(name)}-title">'
        f'<h2 id="{escape(name)}-title">{escape(title)}</h2>{described}{"".join(body)}</section>'
    )


def paragraph(text: str, *, style: str = "") -> str:
    """Return a paragraph of text; `style` is a class of the style sheet."""
    return f'<p class="{escape(style)}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def facts(pairs: Sequence[tuple[str, str]], *, style: str = "facts") -> str:
    """Return names and values as a description list; `style` is a class of the style sheet."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs
    )
    return f'<dl class="{escape(style)}">{rows}</dl>'


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str, name: str = ""
) -> str:
    """Return a table whose first column names the rows; sorted by the reader if it has a `name`."""
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(head)}</button></th>'
        if name
        else f'<th scope="col">{escape(head)}</th>'
        for head in headers
    )
    body = "".join(
        "<tr>" + "".join(_cell(cell, first=not index) for index, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    attributes = f' id="{escape(name)}" class="sortable"' if name else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{attributes}><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def plot(name: str, *, label: str, tall: bool = False) -> str:
    """Return the place of a plot; its data come in the block `<name>-data`."""
    return (
        f'<figure class="plot{" tall" if tall else ""}"><figcaption>{escape(label)}</figcaption>'
        f'<div id="{escape(name)}" class="canvas" role="img" aria-label="{escape(label)}"></div>'
        "</figure>"
    )


def json_block(name: str, value: Any) -> str:
    """Return data that no HTML parser can read as anything else.

    All but ASCII is escaped by JSON (U+2028 and U+2029 among it), and the characters that could
    end the block or begin a tag by hand.

    >>> json_block("data", "</script>")
    '<script type="application/json" id="data">"\\\\u003c/script\\\\u003e"</script>'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


def _cell(cell: Cell, *, first: bool) -> str:
    tag, scope = ("th", ' scope="row"') if first else ("td", "")
    kind = " ".join(filter(None, ["number" if cell.value is not None else "", cell.flag]))
    attributes = f' class="{escape(kind)}"' if kind else ""
    if cell.value is not None:
        attributes += f' data-value="{cell.value:.12g}"'
    note = f' <span class="note">{escape(cell.note)}</span>' if cell.note else ""
    bar = ""
    if cell.bar is not None:
        length = 100 * min(max(cell.bar, 0.0), 1.0)
        bar = f'<span class="bar" style="--length:{length:.1f}%"></span>'
    return f"<{tag}{scope}{attributes}>{escape(cell.text)}{note}{bar}</{tag}>"
