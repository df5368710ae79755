"""How faithfully the meta-model emulates each network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import pandas as pd
import torch

from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import LONGEST_TICK, TableResult, plain, plot_text, style_figure
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.training import OwnReadouts, Targets, compares_decisions, evaluate

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["FidelityResult", "fidelity"]


@dataclass(frozen=True, slots=True, eq=False)
class FidelityResult(TableResult):
    """Agreement of every network with its emulation; made by `fidelity`.

    The table has one row per model: `model`, `hidden_r2`, `hidden_r2_mean_theta`,
    `output_agreement`, `output_kind` (`decisions` or `r2`), `output_group`, `interpretable`.
    """

    samples: Literal["held_out", "all"]
    """Which samples the figures are computed on."""
    sample_count: int
    """Number of those samples."""
    threshold: float
    """Hidden R2 from which a model counts as interpretable."""
    name: ClassVar[str] = "fidelity"
    reference: ClassVar[str] = "Cotler et al. 2023, arXiv:2302.14078"

    @property
    def below_threshold(self) -> tuple[str, ...]:
        """Models whose hidden R2 is below the threshold, worst first."""
        low = self.table[~self.table["interpretable"]].sort_values("hidden_r2")
        return tuple(low["model"])

    def summary(self) -> dict[str, JSON]:
        """Return the headline figures."""
        hidden = self.table["hidden_r2"]
        agreement = {
            str(kind): {"mean": values.mean(), "min": values.min()}
            for kind, values in self.table.groupby("output_kind")["output_agreement"]
        }
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "models": len(self.table),
                "samples": self.samples,
                "sample_count": self.sample_count,
                "hidden_r2": {
                    "mean": hidden.mean(),
                    "median": hidden.median(),
                    "min": hidden.min(),
                },
                "hidden_r2_mean_theta": {"mean": self.table["hidden_r2_mean_theta"].mean()},
                "output_agreement": agreement,
                "threshold": self.threshold,
                "below_threshold": self.below_threshold,
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return a dot plot: models in order of hidden R2, with their baseline and agreement."""
        import plotly.graph_objects as go

        ordered = self.table.sort_values("hidden_r2", kind="stable")
        names = [plot_text(model) for model in ordered["model"]]
        rank = list(range(len(ordered)))
        figure = go.Figure()
        for column, title, symbol, outline in (
            ("hidden_r2_mean_theta", "hidden R² at the mean theta", "line-ns-open", 2),
            ("output_agreement", "output agreement", "diamond-open", 1.5),
            ("hidden_r2", "hidden R²", "circle", 0),
        ):
            figure.add_trace(
                go.Scatter(
                    x=ordered[column].to_numpy(),
                    y=rank,
                    text=names,
                    name=title,
                    mode="markers",
                    marker={"symbol": symbol, "size": 9, "line": {"width": outline}},
                    hovertemplate="%{text}<br>" + title + " %{x:.3f}<extra></extra>",
                )
            )
        figure.add_vline(x=self.threshold, line={"dash": "dot", "width": 1})
        axis: dict[str, object] = {"title": {"text": "model"}, "showgrid": False, "zeroline": False}
        if len(names) <= 40:
            ticks = [plot_text(model, longest=LONGEST_TICK) for model in ordered["model"]]
            axis |= {"tickmode": "array", "tickvals": rank, "ticktext": ticks, "title": None}
        figure.update_layout(
            yaxis=axis,
            xaxis={"title": {"text": f"agreement on {self.sample_count} samples"}},
            height=max(320, 120 + 18 * min(len(names), 40)),
        )
        figure = style_figure(figure)
        return figure.update_layout(
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"}, margin={"l": 24}
        ).update_yaxes(automargin=True)


@analysis
def fidelity(
    embedding: ModelEmbedding,
    *,
    samples: Literal["held_out", "all"] = "held_out",
    threshold: float = 0.5,
) -> FidelityResult:
    """Compare every network with its emulation, on inputs that the fit never saw.

    The coefficient of determination of the hidden states, 1 - sum |h - V(h~)|^2 / sum |h - mean|^2
    over steps and units, and the agreement of the outputs: the share of equal decisions where
    outputs are logits, R2 where they are numbers. The check that a model embedding stands on
    (Cotler et al. 2023, arXiv:2302.14078): thetas of networks that are not emulated
    say nothing about them.

    The outputs of the meta-model come from one readout, which does not see theta. Where recurrent
    networks were recorded at every step, `own_readout_agreement` is the agreement of what each
    network's own readout makes of the emulated states V(h~), and `own_readout_r2` how much of the
    network's outputs an affine readout explains: 1 where it is affine.

    Beside it stands a baseline: the same figure when all models of an output group are run at
    their mean theta, with their own state maps. What is above the baseline is what theta carries.

    Parameters
    ----------
    embedding
        Its population is read.
    samples
        `held_out`, the samples kept aside by the fit, or `all`.
    threshold
        Hidden R2 from which a model counts as `interpretable`.

    Returns
    -------
    FidelityResult

    Raises
    ------
    InvalidInput
        If an option is out of range, or an emulation is not finite.
    StoreNotFound
        If the population is no longer there.
    """
    if samples not in ("held_out", "all"):
        raise InvalidInput(f"samples must be 'held_out' or 'all', got {samples!r}.")
    if not -1e9 < threshold <= 1:
        raise InvalidInput(f"threshold must be an R2, at most 1, got {threshold!r}.")
    population, config = embedding.population, embedding.config
    chosen = (
        embedding.held_out_samples
        if samples == "held_out"
        else torch.arange(len(population.sample_ids))
    )
    targets = Targets(
        population,
        sites=config.sites,
        models=embedding.ids,
        device=embedding.thetas.device,
        layered=embedding.meta_model.layered,
    )
    losses = config.output_loss
    decisions = {
        output.group: compares_decisions(
            losses if isinstance(losses, str) else (losses or {})[output.group]
        )
        for output in embedding.meta_model.spec.outputs
    }
    readouts = OwnReadouts.find(targets, embedding.training_samples)
    own, shared = (
        evaluate(
            embedding.meta_model,
            embedding.state_maps,
            thetas,
            targets,
            chosen,
            decisions=decisions,
            own_readouts=read_by,
        )
        for thetas, read_by in ((embedding.thetas, readouts), (_group_means(embedding), None))
    )
    finite = own.hidden_r2.isfinite() & own.output_agreement.isfinite()
    if not bool((finite & shared.hidden_r2.isfinite()).all()):
        broken = [m for m, fine in zip(embedding.ids, finite.tolist(), strict=True) if not fine]
        raise InvalidInput(
            f"The emulation is not finite (models {', '.join(broken[:5]) or 'at the mean theta'}). "
            "Fit again with a lower learning_rate."
        )
    table = pd.DataFrame(
        {
            "model": embedding.ids,
            "hidden_r2": own.hidden_r2.numpy(),
            "hidden_r2_mean_theta": shared.hidden_r2.numpy(),
            "output_agreement": own.output_agreement.numpy(),
            "output_kind": [
                "decisions" if decisions[group] else "r2" for group in embedding.output_groups
            ],
            "output_group": embedding.output_groups,
            "interpretable": own.hidden_r2.numpy() >= threshold,
        }
    )
    if readouts is not None and own.own_agreement is not None:
        table["own_readout_agreement"] = own.own_agreement.numpy()
        table["own_readout_r2"] = readouts.r2.numpy()
    if len(own.stage_r2) > 1:
        for stage, values in own.stage_r2.items():
            table[f"hidden_r2_{stage}"] = values.numpy()
    return FidelityResult(table, samples, len(chosen), float(threshold))


def _group_means(embedding: ModelEmbedding) -> torch.Tensor:
    """(model, embedding_dim): the mean theta of each model's output group."""
    groups = sorted(set(embedding.output_groups))
    codes = torch.tensor([groups.index(group) for group in embedding.output_groups])
    members = torch.nn.functional.one_hot(codes, len(groups)).to(embedding.thetas.dtype)
    means = (members.T @ embedding.thetas) / members.sum(0)[:, None]
    return means[codes]
