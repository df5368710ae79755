"""The sections of a report, as HTML."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pandas as pd

from dynamo_plugin.report._attribution_section import SIGNIFICANT
from dynamo_plugin.report._html import Cell, facts, number, paragraph, plot, section, table

if TYPE_CHECKING:
    from dynamo_plugin.analyses import AverageResult, ClustersResult, ComponentsResult
    from dynamo_plugin.report._findings import Findings

__all__ = [
    "MOST_IN_MAP",
    "average_section",
    "cautions_box",
    "clusters_section",
    "distances_section",
    "embedding_section",
    "fidelity_section",
    "headline",
    "run_section",
    "title_of",
    "training_section",
]

_ESTIMATE = ("value", "low", "high")

MOST_IN_MAP = 600
"""Models up to which the map of distances is drawn."""


def headline(findings: Findings) -> str:
    """Return the figures that a reader looks for first."""
    embedding, faithful = findings.embedding, findings.fidelity.table
    tiles = [
        ("models", f"{len(embedding)}"),
        ("θ dimensions", f"{embedding.thetas.shape[1]}"),
        ("hidden R², held-out", number(faithful["hidden_r2"].mean(), digits=2)),
    ]
    for kind, agreement in faithful.groupby("output_kind")["output_agreement"]:
        name = "decisions that agree" if kind == "decisions" else "output R², held-out"
        shown = f"{agreement.mean():.0%}" if kind == "decisions" else f"{agreement.mean():.2f}"
        tiles.append((name, shown))
    if not isinstance(findings.components, str):
        tiles.append(("components for 95 %", f"{findings.components.components_for_95}"))
    return facts(tiles, style="tiles")


def cautions_box(cautions: list[str]) -> str:
    """Return the warnings, first thing on the page; nothing if there are none."""
    if not cautions:
        return ""
    return (
        '<aside class="cautions" role="note" aria-labelledby="cautions-title">'
        '<h2 id="cautions-title">Before you read on</h2>'
        f"{''.join(map(paragraph, cautions))}</aside>"
    )


def run_section(findings: Findings) -> str:
    """Return what was run: population, settings, versions, seed."""
    embedding = findings.embedding
    config, provenance = embedding.config, embedding.provenance
    losses = config.output_loss
    output_loss = (
        losses
        if isinstance(losses, str)
        else ", ".join(f"{loss} ({group})" for group, loss in (losses or {}).items())
    )
    held_out, training = len(embedding.held_out_samples), len(embedding.training_samples)
    pairs = [
        ("population", provenance.population),
        (
            "models",
            f"{len(embedding)}, output groups: {', '.join(sorted(set(embedding.output_groups)))}",
        ),
        ("samples", f"{training:,} for training, {held_out:,} held out"),
        ("meta-model", f"{config.family}, {_options(dict(config.family_options))}"),
        (
            "θ",
            f"{config.embedding_dim} dimensions, {config.leading_dim} of them leading, "
            f"decay {config.theta_decay:g}",
        ),
        (
            "losses",
            f"hidden {config.hidden_loss}, output {output_loss}, weight {config.output_weight:g}",
        ),
        ("training", f"{config.steps:,} steps of {config.batch_size} samples, seed {config.seed}"),
        ("versions", _options(dict(provenance.versions), joint=" ")),
        ("device", provenance.device),
        ("inputs", f"sha256 {provenance.inputs_hash[:16]}…"),
    ]
    settings = [
        (name, _options(value) if isinstance(value, dict) else str(value))
        for name, value in config.to_json().items()
    ]
    return section(
        "run",
        "What was run",
        facts(pairs),
        f"<details><summary>All settings</summary>{facts(settings)}</details>",
    )


def _options(options: dict[str, Any], *, joint: str = " = ") -> str:
    return ", ".join(f"{name}{joint}{value}" for name, value in options.items()) or "no options"


def embedding_section(findings: Findings) -> str:
    """Return the models in the plane of the first two components."""
    lead = (
        "Each point is a network, placed by its θ. Networks that compute alike lie close together."
    )
    if isinstance(findings.components, str):
        return section("embedding", "Embedding", paragraph(findings.components, style="absent"))
    control = (
        '<p class="control"><label for="colour-by">Colour by</label>'
        '<select id="colour-by"></select></p>'
    )
    needed = findings.components.components_for_95
    reach = "1 component reaches" if needed == 1 else f"{needed} components reach"
    shown = plot("variance", label=f"Explained variance; {reach} 95 %", tall=True)
    return section(
        "embedding",
        "Embedding",
        control,
        '<div class="columns wide-first">',
        plot("scatter", label="First two principal components of θ", tall=True),
        shown,
        "</div>",
        _dimensions(findings.components),
        lead=lead,
    )


def _dimensions(found: ComponentsResult) -> str:
    names = {
        "participation_ratio": "participation ratio",
        "two_nn": "intrinsic dimension, two-NN",
        "mle": "intrinsic dimension, maximum likelihood",
    }
    several = found.dimensions["of"].nunique() > 1
    rows = []
    for row in found.dimensions.to_dict(orient="records"):
        value, low, high = (None if pd.isna(row[key]) else row[key] for key in _ESTIMATE)
        cells = [
            Cell(names[row["estimator"]], note=f"{row['of']} dimensions" if several else ""),
            Cell(number(value, digits=2), value=value),
            Cell("-" if low is None else f"{number(low, digits=2)} to {number(high, digits=2)}"),
            Cell(f"{row['networks']:,}", value=float(row["networks"])),
        ]
        rows.append([*cells, Cell(row["note"])])
    return table(
        ["how many dimensions θ fills", "estimate", "95 % confidence", "networks", "note"],
        rows,
        caption="Dimensions that the thetas fill",
    )


def fidelity_section(findings: Findings) -> str:
    """Return the agreement of every network with its emulation."""
    frame = findings.fidelity.table
    several = frame["output_group"].nunique() > 1
    headers = [
        *("model", "hidden R²", "at the mean θ", "untrained", "output agreement"),
        *("output divergence", "θ may be interpreted"),
    ]
    rows = []
    for row in frame.to_dict(orient="records"):
        hidden, agreement = float(row["hidden_r2"]), float(row["output_agreement"])
        untrained, differ = float(row["hidden_r2_untrained"]), float(row["output_divergence"])
        cells = [
            Cell(str(row["model"])),
            Cell(
                number(hidden),
                value=hidden,
                bar=hidden,
                flag="" if row["interpretable"] else "poor",
            ),
            Cell(number(row["hidden_r2_mean_theta"]), value=float(row["hidden_r2_mean_theta"])),
            Cell(number(untrained), value=untrained),
            Cell(
                number(agreement),
                value=agreement,
                bar=agreement,
                note="of decisions" if row["output_kind"] == "decisions" else "R²",
            ),
            Cell(
                number(differ),
                value=differ,
                note="nats" if row["divergence_kind"] == "kl" else "mean squared error",
            ),
            Cell(
                "yes" if row["interpretable"] else "no",
                note=str(row["reason"] or row["note"]).replace("R2", "R²"),
                flag="" if row["interpretable"] else "poor",
            ),
        ]
        rows.append([*cells, Cell(str(row["output_group"]))] if several else cells)
    return section(
        "fidelity",
        "Fidelity",
        plot("fidelity-plot", label="Hidden R² and output agreement of every model"),
        table(
            [*headers, "output group"] if several else headers,
            rows,
            caption=f"Agreement on {findings.fidelity.sample_count:,} held-out samples",
            name="fidelity-table",
        ),
        lead="How well the meta-model, given a network's θ, reproduces its hidden states and its "
        "outputs on inputs that the fit never saw. “At the mean θ” runs it with the average θ "
        "instead: the difference is what θ carries. “Untrained” is a meta-model with random "
        "weights, whose state maps alone are fitted: what random features explain already.",
    )


def training_section(findings: Findings) -> str:
    """Return the training curves."""
    return section(
        "training",
        "Training",
        '<div class="columns">',
        plot("losses", label="Training losses"),
        plot("agreement", label="Held-out agreement"),
        "</div>",
    )


def clusters_section(findings: Findings) -> str:
    """Return k-means, and the agreement of the embedding with every column of the metadata."""
    body = []
    if isinstance(findings.clusters, str):
        body.append(paragraph(findings.clusters, style="absent"))
    else:
        silhouette = findings.clusters.table["value"].iloc[0]
        body.append(
            paragraph(
                f"k-means finds {findings.clusters.clusters} clusters, the number with the largest "
                f"silhouette ({number(silhouette, digits=2)}). They are among the columns to "
                "colour by."
            )
        )
    if findings.labelled:
        headers = ["labels", "values", "silhouette", "nearest neighbour", "nearest centroid"]
        body.append(
            table(
                [*headers, "k-means, adj. Rand", "relabellings"],
                [_label_row(name, result) for name, result in findings.labelled.items()],
                caption="Agreement of θ with the metadata",
            )
        )
        body.append(
            paragraph(
                "p is the share of relabellings of the models that do at least as well; it is not "
                "corrected for the number of columns. Silhouette: from -1 to 1, above 0 if models "
                "of one label lie together. Nearest neighbour: share of models whose nearest model "
                "has their label; nearest centroid: share whose nearest mean of a label, of the "
                "other models, is that of their own. Adjusted Rand index: 1 if k-means clusters "
                "are the labels, 0 by chance.",
                style="small",
            )
        )
    if findings.unlabelled:
        reasons = "; ".join(f"{name} ({why})" for name, why in findings.unlabelled.items())
        body.append(paragraph(f"Not compared: {reasons}.", style="small"))
    if not findings.labelled and not findings.unlabelled:
        body.append(paragraph("The models have no metadata to compare with.", style="absent"))
    return section(
        "clusters",
        "Clusters",
        *body,
        lead="Whether networks form groups, and whether these are groups that one knows of.",
    )


def _label_row(name: str, result: ClustersResult) -> list[Cell]:
    values = result.assignments["label"].nunique()
    figures: dict[str, Any] = result.summary()
    cells = [Cell(name), Cell(str(values), value=float(values))]
    for statistic in (
        "label_silhouette",
        "neighbour_accuracy",
        "centroid_accuracy",
        "adjusted_rand",
    ):
        value, p_value = figures[statistic], figures[f"{statistic}_p"]
        cells.append(
            Cell(
                number(value),
                value=value,
                note=f"p = {number(p_value)}",
                flag="good" if p_value < SIGNIFICANT else "",
            )
        )
    shown = f"{result.labellings:,} {'(all)' if result.exact else '(random)'}"
    return [*cells, Cell(shown, value=float(result.labellings))]


def average_section(findings: Findings) -> str:
    """Return the scores of rendered centroids beside those of their members."""
    title = "Average networks"
    lead = (
        "The meta-model at the mean θ of a group is a network of its own: its score on the task, "
        "beside the ensemble of its members, which runs them all, and the members themselves. "
        "± is the standard error over samples."
    )
    averaged = findings.average
    if isinstance(averaged, str):
        return section("average", title, paragraph(averaged, style="absent"), lead=lead)
    headers = [
        *("group", "members", "centroid", "ensemble of members", "weights averaged"),
        *("members, emulated", "members themselves"),
    ]
    return section(
        "average",
        title,
        plot("average-plot", label="Scores of centroids and members"),
        table(
            [*headers, "score"],
            _average_rows(averaged),
            caption=f"Task scores on {averaged.sample_count:,} held-out samples",
        ),
        paragraph(findings.average_note, style="small") if findings.average_note else "",
        lead=lead,
    )


def _average_rows(averaged: AverageResult) -> list[list[Cell]]:
    rows = []
    for row in averaged.table.to_dict(orient="records"):
        cells = [
            Cell(str(row["group"]), note=str(row["grouping"])),
            Cell(str(row["members"]), value=float(row["members"])),
        ]
        for who in ("centroid", "ensemble", "weights"):
            score, error = float(row[f"{who}_score"]), float(row[f"{who}_error"])
            if pd.isna(score):
                cells.append(Cell("-", note=str(row[f"{who}_reason"])))
            else:
                cells.append(Cell(number(score), value=score, note=f"± {number(error)}"))
        for who in ("members_emulated", "members"):
            low, high = number(row[f"{who}_min"]), number(row[f"{who}_max"])
            mean = float(row[f"{who}_mean"])
            cells.append(Cell(number(mean), value=mean, note=f"{low} to {high}"))
        kind = "R²" if row["score_kind"] == "r2" else str(row["score_kind"])
        rows.append([*cells, Cell(kind)])
    return rows


def distances_section(findings: Findings) -> str:
    """Return the map of distances between thetas."""
    models = len(findings.embedding)
    lead = "Euclidean distances between θ; models are ordered so that near ones stand together."
    if models > MOST_IN_MAP:
        reason = (
            f"{models:,} models are too many for a map that can be read; "
            "embedding.distances() has the numbers."
        )
        return section("distances", "Distances", paragraph(reason, style="absent"), lead=lead)
    return section(
        "distances",
        "Distances",
        plot("distance-map", label="Distances between thetas", tall=True),
        lead=lead,
    )


def title_of(findings: Findings) -> str:
    """Return what the report is called: the population's name."""
    return PurePath(findings.embedding.provenance.population).stem or "population"
