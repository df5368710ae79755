"""The page of a report: sections, data blocks, style sheet and scripts in one document."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

from dynamo_plugin.report import _figures, _sections
from dynamo_plugin.report._attribution_section import attribution_section
from dynamo_plugin.report._html import json_block
from dynamo_plugin.report._results_section import (
    plot_name,
    result_links,
    result_section,
    result_titles,
)

if TYPE_CHECKING:
    from dynamo_plugin.report._findings import Findings

__all__ = ["build_page"]


def build_page(findings: Findings) -> str:
    """Return the whole document."""
    style, script, plotly = _asset("report.css"), _asset("report.js"), get_plotlyjs()
    # Only the two scripts of ours run, whatever else might ever get into the page; styles have no
    # hash because Plotly writes its own.
    policy = (
        f"default-src 'none'; script-src {_digest(plotly)} {_digest(script)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    name = _sections.title_of(findings)
    embedding = findings.embedding
    titles = result_titles(findings.results)
    sections = [
        _sections.embedding_section(findings),
        _sections.fidelity_section(findings),
        _sections.clusters_section(findings),
        attribution_section(findings),
        _sections.average_section(findings),
        _sections.distances_section(findings),
        *(
            result_section(result, title, place)
            for place, (result, title) in enumerate(zip(findings.results, titles, strict=True))
        ),
        _sections.training_section(findings),
        _sections.run_section(findings),
    ]
    subtitle = (
        f"{len(embedding)} networks, one meta-model ({embedding.config.family}) and one vector "
        f"θ per network"
    )
    return Template(_asset("page.html")).substitute(
        policy=escape(policy),
        title=escape(name),
        subtitle=escape(subtitle),
        links="\n".join(
            f'<a href="#{escape(link)}">{escape(title)}</a>' for link, title in result_links(titles)
        ),
        style=style,
        cautions=_sections.cautions_box(findings.cautions),
        headline=_sections.headline(findings),
        sections="\n".join(sections),
        data="\n".join(json_block(f"{key}-data", value) for key, value in _data(findings).items()),
        plotly=plotly,
        script=script,
    )


def _data(findings: Findings) -> dict[str, Any]:
    """Return the data of every plot that the sections have a place for, by its name."""
    embedding = findings.embedding
    figures = {
        "fidelity-plot": findings.fidelity.plot(),
        "losses": _figures.loss_curves(embedding.history),
        "agreement": _figures.agreement_curves(embedding.history),
    }
    if not isinstance(findings.components, str):
        figures["variance"] = _figures.variance_bars(findings.components)
    if not isinstance(findings.attribution, str):
        figures["attribution-plot"] = findings.attribution.plot()
    if not isinstance(findings.average, str):
        figures["average-plot"] = findings.average.plot()
    if len(embedding) <= _sections.MOST_IN_MAP:
        figures["distance-map"] = _figures.distance_map(embedding)
    for place, result in enumerate(findings.results):
        figures[plot_name(place)] = result.plot()
    data: dict[str, Any] = {name: _figures.figure_data(figure) for name, figure in figures.items()}
    if not isinstance(findings.components, str):
        data["scatter"] = _figures.embedding_points(
            embedding,
            findings.components,
            findings.fidelity,
            findings.clusters,
            labels=findings.labels,
        )
    return data


def _asset(name: str) -> str:
    return (resources.files("dynamo_plugin.report") / "assets" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
