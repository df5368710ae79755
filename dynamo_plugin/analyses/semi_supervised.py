"""Thetas found from few labels, with the meta-model frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from dynamo_plugin.analyses._few_labels import Losses, SearchOptions, choose_thetas
from dynamo_plugin.analyses._label_baselines import METHODS, Baselines
from dynamo_plugin.analyses._label_task import LabelTask, draw_labels
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import TableResult, plain, style_figure
from dynamo_plugin.analyses._scoring import TargetSource, TaskScorer
from dynamo_plugin.analyses._semi_supervised_options import (
    check_options,
    checked_counts,
    checked_starts,
    checked_strengths,
    split_samples,
)
from dynamo_plugin.analyses._theta_search import Subspace

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["SemiSupervisedResult", "semi_supervised"]


@dataclass(frozen=True, slots=True, eq=False)
class SemiSupervisedResult(TableResult):
    """Learning curves of theta and of what it is compared with; made by `semi_supervised`.

    The table has one row per label count, draw and method: `label_count`, `repeat`, `method`,
    `test_score`, `test_standard_error` (over test samples), `validation_loss` (cross-validated on
    the labels; of `mean_theta` and `ensemble`, which choose nothing, simply the loss on them) and
    `chosen` (the network or the start, None where the method chooses none).

    Methods: `optimised_theta`, `mean_theta`, `best_network` and `best_emulated` (the base network,
    and the emulated one, that do best on the labels), `ensemble` (all base networks together),
    `probe_mean_theta` (a linear probe of the states at the mean theta), `probe_best_network` (of
    the recorded states of the best network).
    """

    curve: pd.DataFrame
    """One row per label count and method: `label_count`, `method`, `mean` and `sd` of the test
    score over the draws, `above_mean_theta` (the mean difference in the same draws) and
    `above_mean_theta_standard_error`, `theta_above` (how much better the optimised theta is, in the
    same draws) and `theta_above_standard_error`. Draws share their pool and the test samples: these
    errors are about which samples were labelled, tell nothing of other test samples, and are too
    small where draws overlap much, as those do that take most of the pool."""
    choices: pd.DataFrame
    """One row per label count and draw: `label_count`, `repeat`, `start`, `prior_strength`,
    `steps`, `kept` (whether the start was not left), `moved` (in standard deviations of the
    population), `validation_loss`, and `start_validation_loss`, the lowest of all starts."""
    thetas: pd.DataFrame
    """(repeat, embedding_dim): the thetas chosen with most labels, to be rendered."""
    score_kind: Literal["accuracy", "r2"]
    """What scores are."""
    pool_samples: NDArray[np.int64]
    """(sample,): those that labels were drawn from."""
    test_samples: NDArray[np.int64]
    """(sample,): those that were scored, and used for nothing else."""
    name: ClassVar[str] = "semi_supervised"
    reference: ClassVar[str] = "Cotler et al. 2023, arXiv:2302.14078"

    def summary(self) -> dict[str, JSON]:
        """Return the curve, and whether the optimised theta beats each method.

        `better` and `worse` mean that the mean difference over draws is more than two of its
        standard errors from 0, which are too small where draws overlap; see `curve`.
        """
        verdicts: dict[str, dict[str, str]] = {}
        others = self.curve[self.curve["method"] != METHODS[0]]
        for row in others.to_dict(orient="records"):
            difference, error = row["theta_above"], row["theta_above_standard_error"]
            clear = abs(difference) > max(2 * error, 1e-9)
            verdict = (
                "no clear difference" if not clear else "better" if difference > 0 else "worse"
            )
            verdicts.setdefault(row["method"], {})[str(row["label_count"])] = verdict
        kept = self.choices.groupby("label_count")["kept"].mean()
        moved = self.choices.groupby("label_count")["moved"].mean()
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "score_kind": self.score_kind,
                "pool_samples": len(self.pool_samples),
                "test_samples": len(self.test_samples),
                "optimised_theta_is": verdicts,
                "start_kept": kept.to_dict(),
                "distance_moved": moved.to_dict(),
                "curve": self.curve.to_dict(orient="records"),
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return the learning curves; bars are standard deviations over the draws."""
        import plotly.graph_objects as go

        figure = go.Figure()
        counts = sorted(set(self.curve["label_count"]))
        methods = [method for method in METHODS if (self.curve["method"] == method).any()]
        for place, method in enumerate(methods):
            rows = self.curve[self.curve["method"] == method]
            # Side by side, so that the bars can be told apart.
            shift = 1.03 ** (place - (len(methods) - 1) / 2)
            title = method.replace("_", " ")
            figure.add_trace(
                go.Scatter(
                    x=rows["label_count"].to_numpy() * shift,
                    y=rows["mean"].to_numpy(),
                    error_y={"type": "data", "array": rows["sd"].to_numpy(), "thickness": 1},
                    customdata=rows["label_count"].to_numpy(),
                    name=title,
                    mode="lines+markers",
                    line={
                        "width": 3 if method == METHODS[0] else 1.5,
                        "dash": "dot" if method in ("mean_theta", "ensemble") else "solid",
                    },
                    hovertemplate="%{customdata} labels: %{y:.3f}<extra>" + title + "</extra>",
                )
            )
        figure.update_xaxes(
            type="log",
            tickmode="array",
            tickvals=counts,
            ticktext=[str(count) for count in counts],
            title={"text": "labelled samples"},
        )
        figure.update_yaxes(
            title={"text": f"{self.score_kind} on {len(self.test_samples)} test samples"}
        )
        return style_figure(figure)


@analysis
def semi_supervised(
    embedding: ModelEmbedding,
    *,
    targets: TargetSource | None = None,
    output_group: str | None = None,
    samples: Literal["held_out", "all"] = "held_out",
    test_fraction: float = 0.5,
    label_counts: Sequence[int] | int = (4, 8, 16, 32, 64),
    repeats: int = 10,
    starts: Sequence[str] | str = ("mean", "best"),
    subspace: int | None = None,
    prior_strengths: Sequence[float] | float = (0.01, 0.1, 1.0),
    steps: int = 50,
    learning_rate: float = 0.1,
    probes: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> SemiSupervisedResult:
    """Search the space of thetas for a network that does a task, given few labels.

    The semi-supervised use of a model embedding (Cotler et al. 2023, arXiv:2302.14078): meta-model
    and readout stay as they are, and only theta is fitted to the labels. Samples are split at
    random into a pool, which labels are drawn from, and a test set, on which everything is scored
    and which nothing else uses. Each draw is stratified by class where classes come per sample,
    and smaller draws are contained in larger ones.

    In coordinates z that count standard deviations along the principal axes of the networks'
    thetas, Adam minimises mean loss + strength |z|^2 / 2: cross entropy of classes, or the squared
    error by the variance of the labelled targets. Losses are means over the steps of a sample.

    Start, strength and number of steps are chosen together, by the loss in cross-validation on the
    labels (five folds, or one per label where there are fewer). Every start with no step at all is
    among the candidates, so that in validation the choice is never worse than any start; ties go
    to fewer steps, then to the stronger prior. Theta is then fitted to all labels with what was
    chosen. The network that is best on the labels is found anew within each fold, so that its
    validation is honest.

    Scores are accuracy for classes and R2 for real targets.

    Parameters
    ----------
    embedding
        At least two models of the output group; its population is read.
    targets
        Right answers as in `average`; by default those captured with the inputs.
    output_group
        Which readout answers; may be left out where there is only one.
    samples
        `held_out`, the samples kept aside by the fit, or `all`.
    test_fraction
        Share of these that is for testing; at least two samples.
    label_counts
        How many samples carry a label, at least 2. Those larger than the pool are left out.
    repeats
        Draws of each count, at least 2.
    starts
        `mean` (the mean theta of the networks), `best` (the emulated network with the lowest loss
        on the labels), `all` (every network), or ids of models.
    subspace
        Number of leading principal axes that theta may move along; None for all.
    prior_strengths
        Candidates for the strength of the prior; 0 for none.
    steps
        Most steps of Adam.
    learning_rate
        Its step, in standard deviations of the population.
    probes
        Whether to fit linear probes too: logistic regression with an L2 penalty, or ridge for real
        targets, the penalty chosen by the same folds, on states standardised over the pool. Last
        states for recurrent networks, mean of the last stage for layered ones, all steps for
        outputs per step. A class without a label gets a probability of 0.001. The probe of
        recorded states is left out where outputs come per step and states do not.
    seed
        Of the split and of the draws.
    progress
        Whether to show a bar on stderr.

    Returns
    -------
    SemiSupervisedResult

    Raises
    ------
    InvalidInput
        If an option is out of range, no label count fits, all thetas are equal, targets are missing
        or do not fit, or losses are not finite.
    UnknownName
        If there is no such model or output group.
    StoreNotFound
        If the population is no longer there.
    """
    check_options(samples, test_fraction, repeats, subspace, steps, learning_rate)
    strengths = checked_strengths(prior_strengths)
    generator = np.random.default_rng(seed)
    pool, test = split_samples(embedding, samples, test_fraction, generator)
    counts = checked_counts(label_counts, len(pool))
    task = LabelTask(embedding, pool, targets=targets, output_group=output_group)
    scorer = TaskScorer(embedding, targets=targets, output_group=output_group, samples=test)
    places = [
        place for place, group in enumerate(embedding.output_groups) if group == task.output.group
    ]
    members = [embedding.ids[place] for place in places]
    start_names, start_codes = checked_starts(starts, members)
    options = SearchOptions(start_codes, strengths, steps, float(learning_rate))
    own = embedding.thetas[places].double().cpu().numpy()
    axes = Subspace.of(own, subspace)
    thetas = np.concatenate([axes.mean[None], own])
    losses = Losses(thetas, task.emulated_losses(_float(thetas)), task.recorded_losses(members))
    baselines = Baselines.of(task, scorer, members, losses, probes=probes)
    draws = draw_labels(task.strata, counts[-1], repeats, generator)

    tables, choices, last = [], [], thetas[:0]
    problems = sum(repeats * len(strengths) * len(start_codes) * min(5, n) for n in counts)
    with tqdm(
        desc="search theta", unit="step", total=problems * steps, disable=not progress
    ) as bar:
        for count in counts:
            chosen = choose_thetas(task, axes, losses, draws[:, :count], options, bar.update)
            scores, last = scorer.thetas(_float(chosen.thetas)), chosen.thetas
            rows = {
                "label_count": count,
                "repeat": np.arange(repeats),
            }
            choices.append(
                pd.DataFrame(
                    {
                        **rows,
                        "start": [start_names[place] for place in chosen.start],
                        "prior_strength": chosen.strength,
                        "steps": chosen.steps,
                        "kept": chosen.steps == 0,
                        "moved": chosen.moved,
                        "validation_loss": chosen.validation,
                        "start_validation_loss": chosen.start_validation,
                    }
                )
            )
            optimised = pd.DataFrame(
                {
                    **rows,
                    "method": METHODS[0],
                    "test_score": scores.values,
                    "test_standard_error": scores.standard_errors,
                    "validation_loss": chosen.validation,
                    "chosen": [start_names[place] for place in chosen.start],
                }
            )
            tables += [optimised, *baselines.tables(draws[:, :count])]
    records = [row for part in tables for row in part.to_dict(orient="records")]
    table = pd.DataFrame(records)
    # Told apart from text, None stays None.
    table["chosen"] = pd.Series([row["chosen"] for row in records], dtype=object)
    frame = pd.DataFrame(
        last,
        index=pd.Index(np.arange(repeats), name="repeat"),
        columns=[f"theta_{dimension}" for dimension in range(last.shape[1])],
    )
    return SemiSupervisedResult(
        table, _curve(table), pd.concat(choices, ignore_index=True), frame, scorer.kind, pool, test
    )


def _curve(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for count, part in table.groupby("label_count"):
        wide = part.pivot(index="repeat", columns="method", values="test_score")
        draws = np.sqrt(len(wide))
        for method in METHODS:
            if method not in wide:
                continue
            above = wide[method] - wide["mean_theta"]
            theta = wide[METHODS[0]] - wide[method]
            rows.append(
                {
                    "label_count": count,
                    "method": method,
                    "mean": wide[method].mean(),
                    "sd": wide[method].std(),
                    "above_mean_theta": above.mean(),
                    "above_mean_theta_standard_error": above.std() / draws,
                    "theta_above": theta.mean(),
                    "theta_above_standard_error": theta.std() / draws,
                }
            )
    return pd.DataFrame(rows)


def _float(thetas: NDArray[np.float64]) -> torch.Tensor:
    return torch.as_tensor(thetas, dtype=torch.float32)
