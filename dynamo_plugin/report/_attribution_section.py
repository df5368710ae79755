"""The section of a report on what explains the thetas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo_plugin.report._html import Cell, number, paragraph, plot, section, table

if TYPE_CHECKING:
    from dynamo_plugin.analyses import AttributionResult
    from dynamo_plugin.report._findings import Findings

__all__ = ["SIGNIFICANT", "attribution_section"]

SIGNIFICANT = 0.05

MOST_DIMENSIONS = 8
"""Dimensions of theta that are named for a column."""


def attribution_section(findings: Findings) -> str:
    """Return the share of the variance of theta that every column of the metadata explains."""
    title = "What explains θ"
    lead = "The share of the variance of θ that each column of the metadata explains, by itself."
    found = findings.attribution
    if isinstance(found, str):
        return section("attribution", title, paragraph(found, style="absent"), lead=lead)
    headers = ["column", "models", "R²", "adjusted", "pseudo-F", "p", "dimensions"]
    body = [
        plot("attribution-plot", label="Share of the variance of θ that columns explain"),
        table(headers, _rows(found), caption="What explains θ", name="attribution-table"),
        paragraph(
            "Columns that go together explain the same variance, so shares do not add up. "
            "Adjusted: R² less what as many values explain by chance. p: share of permutations "
            "that explain as much, corrected for the number of columns (Holm). Dimensions: those "
            f"of θ in which the column differs, p below {SIGNIFICANT:g} after correction for their "
            "number. Groups that differ in spread, not in place, may have a small p too.",
            style="small",
        ),
    ]
    if found.omitted:
        reasons = "; ".join(f"{name} ({why})" for name, why in found.omitted.items())
        body.append(paragraph(f"Left out: {reasons}.", style="small"))
    return section("attribution", title, *body, lead=lead)


def _rows(found: AttributionResult) -> list[list[Cell]]:
    clear = found.dimensions[found.dimensions["p_adjusted"] < SIGNIFICANT]
    rows = []
    for row in found.table.to_dict(orient="records"):
        kind = "number" if row["kind"] == "number" else f"{row['values']} groups"
        p_value = float(row["p_adjusted"])
        named = clear["dimension"][clear["column"] == row["column"]].tolist()
        shown = ", ".join(name.removeprefix("theta_") for name in named[:MOST_DIMENSIONS])
        more = f" and {len(named) - MOST_DIMENSIONS} more" if len(named) > MOST_DIMENSIONS else ""
        missing = f"{row['missing']} without a value" if row["missing"] else ""
        rows.append(
            [
                Cell(str(row["column"]), note=kind),
                Cell(f"{row['models']:,}", value=float(row["models"]), note=missing),
                Cell(number(row["r2"]), value=float(row["r2"]), bar=float(row["r2"])),
                Cell(number(row["adjusted_r2"]), value=float(row["adjusted_r2"])),
                _ratio(float(row["pseudo_f"])),
                Cell(
                    number(p_value),
                    value=p_value,
                    flag="good" if p_value < SIGNIFICANT else "",
                    note=f"of {row['labellings']:,} {'(all)' if row['exact'] else '(random)'}",
                ),
                Cell(shown + more or "none"),
            ]
        )
    return rows


def _ratio(pseudo_f: float) -> Cell:
    if pseudo_f == float("inf"):
        return Cell("infinite")
    return Cell(number(pseudo_f, digits=2), value=pseudo_f)
