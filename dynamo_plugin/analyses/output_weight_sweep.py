"""What the dynamics of networks separate, and what their outputs separate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._reference_distances import (
    FEWEST,
    hidden_reference,
    output_reference,
)
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses._stability import rank_correlations
from dynamo_plugin.analyses._sweep_columns import (
    agreement_columns,
    mean_fidelity,
    separation_columns,
)
from dynamo_plugin.analyses.fidelity import fidelity
from dynamo_plugin.analyses.labels import LabelSource, read_groups
from dynamo_plugin.embedding.refitting import refit
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.metrics import PairwiseDistances
    from dynamo_plugin.types import JSON

__all__ = ["OutputWeightSweepResult", "output_weight_sweep"]

CURVES = {
    "hidden_r2": ("hidden R²", "solid"),
    "output_decisions": ("output agreement, decisions", "solid"),
    "output_r2": ("output agreement, R²", "solid"),
    "own_readout_agreement": ("agreement, own readouts", "solid"),
    "hidden_spearman": ("thetas and hidden states", "dash"),
    "output_spearman": ("thetas and outputs", "dash"),
    "label_silhouette": ("silhouette of the labels", "dot"),
    "neighbour_accuracy": ("label of the nearest neighbour", "dot"),
}
"""Column of the table to what the plot calls it, and how it draws it."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputWeightSweepResult(TableResult):
    """Embeddings of the same networks for a range of output weights; made by `output_weight_sweep`.

    The table has one row per weight, in order of size: `weight`, `fitted` (False for the embedding
    that was given), `hidden_r2`, `output_decisions` (share of equal decisions) and `output_r2`, the
    mean over the models whose outputs are compared that way, of held-out samples, and
    `own_readout_agreement` where networks' own readouts are known; `hidden_spearman` and
    `output_spearman`, rank correlations of the distances between thetas with those of hidden states
    and of outputs, each with a `_p`; with labels `label_silhouette` and `neighbour_accuracy`,
    each with a `_p`; and `note`. At the weight 0 the readout of the meta-model learns nothing, and
    its output agreement is that of chance.
    """

    fidelity: pd.DataFrame
    """One row per weight and model: `weight`, and what `fidelity` says."""
    correlations: pd.DataFrame
    """Square, labelled with the weights: Spearman's correlation of the distances between thetas."""
    embeddings: dict[float, ModelEmbedding]
    """The embedding for every weight, to be saved or analysed."""
    hidden_metric: str
    """What hidden states were compared by."""
    output_metric: str
    """What outputs were compared by."""
    labels_name: str | None
    """What the labels are; None without labels."""
    name: ClassVar[str] = "output_weight_sweep"
    reference: ClassVar[str] = "Cotler et al. 2023, arXiv:2302.14078"

    def summary(self) -> dict[str, JSON]:
        """Return the figures of every weight."""
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "models": len(next(iter(self.embeddings.values())).ids),
                "hidden_metric": self.hidden_metric,
                "output_metric": self.output_metric,
                "labels": self.labels_name,
                "weights": self.table.astype(object)
                .where(self.table.notna(), None)
                .to_dict(orient="records"),
                "rank_correlation_min": self.correlations.to_numpy().min(),
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return a curve over the weights for every figure."""
        import plotly.graph_objects as go

        places = np.arange(len(self.table))
        ticks = [
            f"{weight:g}" + ("" if fitted else " (given)")
            for weight, fitted in zip(self.table["weight"], self.table["fitted"], strict=True)
        ]
        figure = go.Figure()
        shown = []
        for column, (title, dash) in CURVES.items():
            if column not in self.table or self.table[column].isna().all():
                continue
            values = self.table[column].to_numpy(dtype=np.float64, na_value=np.nan)
            shown.append(values)
            name = title
            if column == "hidden_spearman":
                name += f" ({self.hidden_metric})"
            elif column == "output_spearman":
                name += f" ({self.output_metric})"
            tests = f"{column}_p" in self.table
            figure.add_trace(
                go.Scatter(
                    x=places,
                    y=values,
                    customdata=self.table[f"{column}_p"].to_numpy() if tests else None,
                    name=plot_text(name),
                    mode="lines+markers",
                    line={"dash": dash, "width": 2},
                    marker={"size": 8},
                    hovertemplate="%{fullData.name}<br>weight %{x}: %{y:.3f}"
                    + (", p = %{customdata:.2g}" if tests else "")
                    + "<extra></extra>",
                )
            )
        # An R2 can lie anywhere below 0, and would press all else together.
        lowest = max(float(np.nanmin(np.concatenate(shown))), -1.0)
        figure.update_yaxes(
            title={"text": "agreement"}, range=[min(lowest, 0.0) - 0.05, 1.05], zeroline=True
        )
        figure.update_xaxes(
            title={"text": "output weight"},
            tickmode="array",
            tickvals=places,
            ticktext=ticks,
        )
        return style_figure(figure)


@analysis
def output_weight_sweep(
    embedding: ModelEmbedding,
    *,
    weights: float | Sequence[float] = (0, 0.1, 1, 10),
    labels: LabelSource | None = None,
    hidden_metric: str | PairwiseDistances = "cka",
    output_metric: str | PairwiseDistances | None = None,
    site: str | Mapping[str, str] | None = None,
    rows: int | None = 5000,
    permutations: int = 999,
    max_exact: int = 20_000,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> OutputWeightSweepResult:
    """Fit the networks of an embedding for a range of output weights, and compare what comes out.

    The weight lambda of Cotler et al. 2023 (arXiv:2302.14078) says how much outputs count beside
    hidden states. At 0, thetas separate what dynamics separate; the larger it is, the more they
    separate what outputs do. Every other setting, the seed and the samples are those of the
    embedding, which itself stands for its own weight and is not fitted again.

    Thetas that start along the components of the networks' hidden states (`theta_init`) do so at
    every weight, and move from there. What a weight does without that is seen from an embedding
    that was fitted with `theta_init="random"`.

    Parameters
    ----------
    embedding
        At least four models. Its population is read.
    weights
        Output weights, at least 0. That of the embedding is added if it is not among them.
    labels
        A metadata column, a mapping from model id to label, or one label per model. Their mean
        silhouette (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7) and the leave-one-out accuracy
        of the nearest neighbour are then given, with p-values from permuted labels.
    hidden_metric
        A metric of hidden states, or a result of `pairwise` that holds the models.
    output_metric
        A metric of outputs, or a result of `pairwise`; None for `disagreement` where outputs are
        compared as decisions, and the root mean square difference where they are numbers. Pairs of
        one output group count.
    site, rows
        As in `pairwise`.
    permutations
        Random orders of the models for p-values (Mantel 1967, Cancer Research 27, 209; Phipson and
        Smyth 2010, doi:10.2202/1544-6115.1585), one-sided. They are not corrected for the number of
        weights.
    max_exact
        Largest number of orders or labellings that are enumerated instead; 0 never enumerates.
    seed
        Of the orders.
    device, progress
        As in `fit`.

    Returns
    -------
    OutputWeightSweepResult

    Raises
    ------
    InvalidInput
        If there are too few models, a weight is negative, not finite or there twice, all distances
        by a metric are equal, or an option does not fit.
    UnknownName
        If there is no such metric or label, or a comparison lacks a model.
    StoreNotFound
        If the population is no longer there.
    DivergedFit
        If a fit fails.
    """
    if len(embedding) < FEWEST:
        raise InvalidInput(
            f"Distances agree or not over pairs of models: {FEWEST} or more are needed, this "
            f"embedding has {len(embedding)}."
        )
    if permutations < 1 or max_exact < 0:
        raise InvalidInput(
            "permutations must be at least 1 and max_exact at least 0, got "
            f"{permutations} and {max_exact}."
        )
    own = float(embedding.config.output_weight)
    chosen = _read_weights(weights, own)
    # All that can be wrong is found before the fits, which take long.
    groups = None if labels is None else read_groups(embedding, labels)
    hidden = hidden_reference(embedding, hidden_metric, site=site, rows=rows)
    output = output_reference(embedding, output_metric, rows=rows)
    fitted = iter(
        refit(
            embedding,
            [
                dataclasses.replace(embedding.config, output_weight=weight)
                for weight in chosen
                if weight != own
            ],
            samples=[(embedding.training_samples, embedding.held_out_samples)] * (len(chosen) - 1),
            device=device,
            progress=progress,
        )
        if len(chosen) > 1
        else ()
    )
    embeddings = {weight: embedding if weight == own else next(fitted) for weight in chosen}
    faithful = {weight: fidelity(each).table for weight, each in embeddings.items()}
    distances = np.stack([each.distances().to_numpy() for each in embeddings.values()])
    correlations = rank_correlations(distances)
    options = {"permutations": permutations, "max_exact": max_exact, "seed": seed}
    columns: dict[str, Any] = {
        "weight": chosen,
        "fitted": [weight != own for weight in chosen],
        **mean_fidelity(list(faithful.values())),
        **agreement_columns("hidden", distances, hidden, **options),
        **agreement_columns("output", distances, output, **options),
        **(separation_columns(distances, groups, **options) if groups is not None else {}),
        "note": [
            "; ".join(
                filter(None, ["the readout is not trained" if weight == 0 else "", output.note])
            )
            for weight in chosen
        ],
    }
    return OutputWeightSweepResult(
        pd.DataFrame(columns),
        pd.concat(
            [frame.assign(weight=weight) for weight, frame in faithful.items()], ignore_index=True
        ).pipe(lambda frame: frame[["weight", *frame.columns.drop("weight")]]),
        pd.DataFrame(correlations, index=chosen, columns=chosen),
        embeddings,
        hidden.name,
        output.name,
        None if groups is None else groups.name,
    )


def _read_weights(weights: float | Sequence[float], own: float) -> list[float]:
    listed = list(weights) if isinstance(weights, Sequence | np.ndarray) else [weights]
    for weight in listed:
        real = isinstance(weight, int | float | np.integer | np.floating)
        if not real or isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
            raise InvalidInput(
                f"weights must be finite numbers, at least 0, got {weight!r}. Write [0, 1, 10]."
            )
    found = sorted({float(weight) for weight in listed} | {own})
    if len({float(weight) for weight in listed}) < len(listed):
        raise InvalidInput(f"Expected every weight once, got {listed}.")
    return found
