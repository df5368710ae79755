"""How faithfully the meta-model emulates each network."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from dynamo_plugin.analyses._emulation import Emulated, emulate
from dynamo_plugin.analyses._fidelity_tables import model_table, site_table, step_table
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import LONGEST_TICK, TableResult, plain, plot_text, style_figure
from dynamo_plugin.analyses._untrained import untrained_networks
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.training import OwnReadouts, Targets, compares_decisions

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["FidelityResult", "fidelity"]


@dataclass(frozen=True, slots=True, eq=False)
class FidelityResult(TableResult):
    """Agreement of every network with its emulation; made by `fidelity`.

    The table has one row per model: `model`, `hidden_r2`, `hidden_r2_mean_theta` and
    `hidden_r2_untrained` (the baselines), `output_agreement`, `output_kind` (`decisions` or `r2`),
    `output_divergence`, `divergence_kind` (`kl`, in nats, or `mse`), `output_group`,
    `interpretable`, `reason` (why it is not; empty if it is), `note`; `above_mean_theta` and
    `above_untrained` with their standard errors, `_error`; and, of the outputs, `_mean_theta` and
    `_untrained`. Columns `own_readout_*` and `hidden_r2_<stage>` are there where they apply.
    """

    samples: Literal["held_out", "all"]
    """Which samples the figures are computed on."""
    sample_count: int
    """Number of those samples."""
    threshold: float
    """Hidden R2 from which a model counts as interpretable."""
    by_site: pd.DataFrame = field(default_factory=pd.DataFrame, kw_only=True)
    """One row per model and recorded site: `model`, `site`, `hidden_r2` and its baselines. R2 is
    about the mean of the site; missing, with a `note`, where a site never changes."""
    by_step: pd.DataFrame = field(default_factory=pd.DataFrame, kw_only=True)
    """One row per model and time step: `model`, `step`, `samples` (that have a state of it),
    `hidden_r2` about the mean of that step (what is known of a sample beyond what step it is),
    `hidden_error` (mean squared error in units of the variance over all steps: its mean over steps,
    weighted by `samples`, is 1 - hidden R2 of the table), both with their baselines, and, where
    outputs come per step, `output_agreement` and `output_divergence`, with theirs. Where several
    stages are recorded per step, means over them. What is missing, since all samples are alike at
    that step or have no output there, has a `note`. Empty for states without time."""
    name: ClassVar[str] = "fidelity"
    reference: ClassVar[str] = "Cotler et al. 2023, arXiv:2302.14078"

    @property
    def below_threshold(self) -> tuple[str, ...]:
        """Models whose hidden R2 is below the threshold, worst first."""
        low = self.table[self.table["hidden_r2"] < self.threshold].sort_values("hidden_r2")
        return tuple(low["model"])

    @property
    def not_interpretable(self) -> dict[str, str]:
        """Models whose theta should not be interpreted, and why."""
        flagged = self.table[~self.table["interpretable"]]
        return dict(zip(flagged["model"], flagged["reason"], strict=True))

    def summary(self) -> dict[str, JSON]:
        """Return the headline figures."""
        hidden = self.table["hidden_r2"]
        outputs = {
            column: {
                str(kind): {"mean": values.mean(), worst: getattr(values, worst)()}
                for kind, values in self.table.groupby(by)[column]
            }
            for column, by, worst in (
                ("output_agreement", "output_kind", "min"),
                ("output_divergence", "divergence_kind", "max"),
            )
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
                **{
                    baseline: {"mean": self.table[baseline].mean()}
                    for baseline in ("hidden_r2_mean_theta", "hidden_r2_untrained")
                    if baseline in self.table
                },
                **outputs,
                "threshold": self.threshold,
                "below_threshold": self.below_threshold,
                "not_interpretable": self.not_interpretable,
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
        shown = (
            ("hidden_r2_untrained", "hidden R², untrained", "x-thin-open", 1.5),
            ("hidden_r2_mean_theta", "hidden R² at the mean theta", "line-ns-open", 2),
            ("output_agreement", "output agreement", "diamond-open", 1.5),
            ("hidden_r2", "hidden R²", "circle", 0),
        )
        reasons = [f"<br>{plot_text(text)}" if text else "" for text in ordered["reason"]]
        for column, title, symbol, outline in shown:
            if column not in ordered:
                continue
            figure.add_trace(
                go.Scatter(
                    x=ordered[column].to_numpy(),
                    y=rank,
                    text=names,
                    customdata=reasons,
                    name=title,
                    mode="markers",
                    marker={"symbol": symbol, "size": 9, "line": {"width": outline}},
                    hovertemplate=f"%{{text}}<br>{title} %{{x:.3f}}%{{customdata}}<extra></extra>",
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
    untrained: bool = True,
    seed: int = 0,
) -> FidelityResult:
    """Compare every network with its emulation, on inputs that the fit never saw.

    The coefficient of determination of the hidden states, 1 - sum |h - V(h~)|^2 / sum |h - mean|^2
    over steps and units, and the agreement of the outputs: the share of equal decisions where
    outputs are logits, R2 where they are numbers. The check that a model embedding stands on
    (Cotler et al. 2023, arXiv:2302.14078): thetas of networks that are not emulated
    say nothing about them. `output_divergence` is the mean Kullback-Leibler divergence from the
    network's class probabilities to its emulation's where outputs are logits, in nats; where they
    are numbers, whose R2 says already how the error compares with their variance, the mean squared
    error in their own units.

    The outputs of the meta-model come from one readout, which does not see theta. Where recurrent
    networks were recorded at every step, `own_readout_agreement` is the agreement of what each
    network's own readout makes of the emulated states V(h~), and `own_readout_r2` how much of the
    network's outputs an affine readout explains: 1 where it is affine.

    Beside it stand two baselines. `_mean_theta`: the same figures when all models of an output
    group are run at their mean theta, with their own state maps. What is above it is what theta
    carries. `_untrained`: those of a meta-model of the same family and size with its first random
    weights, at the same thetas, whose state maps (and readouts) are solved on training samples:
    what an affine map of random features explains already, as in a reservoir.

    A theta should not be interpreted, and has a `reason`, where

    - hidden R2 is below the threshold;
    - it is not above that of the untrained meta-model by more than noise;
    - the thetas of the output group, taken together, give no more than their mean by more than
      noise: then none of them says anything about its network;
    - the network is emulated worse at its own theta than at the mean, by more than noise; or no
      better, although theta is far from the mean: then its place claims a difference that the
      emulation does not have.

    Noise is the 95 % confidence interval of the difference (Student), paired over samples. Far is
    more than half the root mean square distance of the group's thetas from their mean. A network
    whose theta is near the mean is rightly emulated by the mean: that is a `note`, not a reason.

    Parameters
    ----------
    embedding
        Its population is read.
    samples
        `held_out`, the samples kept aside by the fit, or `all`.
    threshold
        Hidden R2 from which a model counts as `interpretable`.
    untrained
        Whether the untrained baseline is computed, which takes as long as all else or longer.
        Without it, its columns are not there and its part of the rule is left out.
    seed
        Decides the weights of the untrained meta-model.

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
    run = partial(emulate, targets=targets, samples=chosen, decisions=decisions)
    readouts = OwnReadouts.find(targets, embedding.training_samples)
    networks = (embedding.meta_model, embedding.state_maps)
    own = run(*networks, embedding.thetas, own_readouts=readouts)
    _require_finite(embedding, own, "at their own theta")
    baselines = {"mean_theta": run(*networks, _group_means(embedding))}
    read = {"mean_theta"}
    if untrained:
        meta_model, maps, fitted = untrained_networks(embedding, targets, seed=seed)
        baselines["untrained"] = run(meta_model, maps, embedding.thetas)
        read |= {"untrained"} if fitted else set()
    for name, baseline in baselines.items():
        _require_finite(embedding, baseline, name.replace("_", " "))
    table = model_table(embedding, own, baselines, read, decisions, threshold)
    if readouts is not None and own.evaluation.own_agreement is not None:
        table["own_readout_agreement"] = own.evaluation.own_agreement.numpy()
        table["own_readout_r2"] = readouts.r2.numpy()
    if len(own.evaluation.stage_r2) > 1:
        for stage, values in own.evaluation.stage_r2.items():
            table[f"hidden_r2_{stage}"] = values.numpy()
    return FidelityResult(
        table,
        samples,
        len(chosen),
        float(threshold),
        by_site=site_table(targets, own, baselines),
        by_step=step_table(targets.ids, own, baselines, read),
    )


def _require_finite(embedding: ModelEmbedding, found: Emulated, where: str) -> None:
    evaluation = found.evaluation
    finite = evaluation.hidden_r2.isfinite() & evaluation.output_agreement.isfinite()
    finite &= torch.from_numpy(np.isfinite(found.divergence))
    if not bool(finite.all()):
        broken = [m for m, fine in zip(embedding.ids, finite.tolist(), strict=True) if not fine]
        raise InvalidInput(
            f"The emulation ({where}) is not finite for the models {', '.join(broken[:5])}. Fit "
            "again with a lower learning_rate; where only the untrained meta-model is not, leave "
            "it out with untrained=False."
        )


def _group_means(embedding: ModelEmbedding) -> torch.Tensor:
    """(model, embedding_dim): the mean theta of each model's output group."""
    groups = sorted(set(embedding.output_groups))
    codes = torch.tensor([groups.index(group) for group in embedding.output_groups])
    members = torch.nn.functional.one_hot(codes, len(groups)).to(embedding.thetas.dtype)
    means = (members.T @ embedding.thetas) / members.sum(0)[:, None]
    return means[codes]
