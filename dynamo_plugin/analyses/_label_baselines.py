"""What a theta found from few labels is compared with, on the same draws and test samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from dynamo_plugin.analyses._few_labels import Losses, cross_validated_best
from dynamo_plugin.analyses._label_task import LabelTask, fold_numbers
from dynamo_plugin.analyses._probes import (
    fit_probe,
    recorded_features,
    rendered_features,
    standardise,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._scoring import Scores, TaskScorer

__all__ = ["METHODS", "Baselines"]

METHODS = (
    "optimised_theta",
    "mean_theta",
    "best_network",
    "best_emulated",
    "ensemble",
    "probe_mean_theta",
    "probe_best_network",
)
"""In the order in which they are shown."""


@dataclass(slots=True, eq=False)
class Baselines:
    """Scores and losses that do not depend on the draw, and the features of probes."""

    task: LabelTask
    scorer: TaskScorer
    members: Sequence[str]
    losses: Losses
    emulated: Scores
    """On the test samples: the mean theta, then the emulated networks."""
    recorded: Scores
    ensemble: Scores
    ensemble_losses: NDArray[np.float64]
    """(sample,) on the pool."""
    probes: bool
    features: dict[str | None, tuple[NDArray[np.float64], NDArray[np.float64]] | None]
    """Of the pool and of the test samples; of a base network, or None for the mean theta."""

    @classmethod
    def of(
        cls,
        task: LabelTask,
        scorer: TaskScorer,
        members: Sequence[str],
        losses: Losses,
        *,
        probes: bool,
    ) -> Baselines:
        """Score what needs no labels."""
        everything = np.concatenate([task.pool, scorer.samples])
        outputs = _ensemble(task, members, everything)
        pool_rows = len(task.rows)
        return cls(
            task,
            scorer,
            members,
            losses,
            scorer.thetas(torch.as_tensor(losses.thetas, dtype=torch.float32)),
            scorer.recorded(members),
            scorer.outputs(outputs[None, pool_rows:]),
            task.losses_of_rows(outputs[None, :pool_rows])[0],
            probes,
            {},
        )

    def tables(self, draws: NDArray[np.int64]) -> list[pd.DataFrame]:
        """Return the rows of every baseline for some draws (draw, label) of one size."""
        task, repeats = self.task, np.arange(len(draws))
        folds = fold_numbers(task.strata[draws], min(5, draws.shape[1]))
        scales = task.scales(draws)
        network, network_loss = cross_validated_best(self.losses.recorded, draws, folds)
        emulated, emulated_loss = cross_validated_best(self.losses.emulated[1:], draws, folds)
        none = np.zeros(len(draws), np.int64)
        parts: list[tuple[str, Scores, NDArray[np.int64], NDArray[np.float64], Any]] = [
            ("mean_theta", self.emulated, none, self.losses.emulated[0][draws].mean(1), None),
            ("best_network", self.recorded, network, network_loss, self._names(network)),
            ("best_emulated", self.emulated, 1 + emulated, emulated_loss, self._names(emulated)),
            ("ensemble", self.ensemble, none, self.ensemble_losses[draws].mean(1), None),
        ]
        tables = [
            pd.DataFrame(
                {
                    "label_count": draws.shape[1],
                    "repeat": repeats,
                    "method": method,
                    "test_score": scores.values[which],
                    "test_standard_error": scores.standard_errors[which],
                    "validation_loss": loss / scales,
                    "chosen": names,
                }
            )
            for method, scores, which, loss, names in parts
        ]
        if self.probes:
            tables.append(self._probed("probe_mean_theta", None, draws, folds, scales))
            tables.append(
                self._probed("probe_best_network", self._names(network), draws, folds, scales)
            )
        return tables

    def _names(self, places: NDArray[np.int64]) -> list[str]:
        return [self.members[place] for place in places]

    def _probed(
        self,
        method: str,
        models: Sequence[str] | None,
        draws: NDArray[np.int64],
        folds: NDArray[np.int64],
        scales: NDArray[np.float64],
    ) -> pd.DataFrame:
        """Fit a probe for every draw; scikit-learn takes one at a time."""
        task, rows = self.task, []
        counts = task.mask.sum(1).numpy()
        stops = np.cumsum(counts)
        for repeat, places in enumerate(draws):
            model = None if models is None else models[repeat]
            features = self._features(model)
            if features is None:
                continue
            lengths = counts[places]
            chosen = np.concatenate(
                [np.arange(stop - n, stop) for stop, n in zip(stops[places], lengths, strict=True)]
            )
            targets = task.targets[places][task.mask[places]].numpy()
            probe = fit_probe(
                task,
                features[0][chosen],
                targets,
                np.repeat(np.arange(len(places)), lengths),
                folds[repeat],
                features[1],
                scale=float(scales[repeat]),
            )
            scores = self.scorer.outputs(probe.outputs[None])
            rows.append(
                {
                    "label_count": len(places),
                    "repeat": repeat,
                    "method": method,
                    "test_score": scores.values[0],
                    "test_standard_error": scores.standard_errors[0],
                    "validation_loss": probe.validation_loss,
                    "chosen": model,
                }
            )
        return pd.DataFrame(rows)

    def _features(
        self, model: str | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        if model not in self.features:
            samples = np.concatenate([self.task.pool, self.scorer.samples])
            found = (
                rendered_features(self.task, self.losses.thetas[0], samples)
                if model is None
                else recorded_features(self.task, model, samples)
            )
            self.features[model] = (
                None if found is None else standardise(found, len(self.task.rows))
            )
        return self.features[model]


def _ensemble(
    task: LabelTask, members: Sequence[str], samples: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (row, channel) outputs of all base networks together.

    The logarithm of mean probabilities (log odds for one channel), or the mean of real outputs.
    """
    total = torch.zeros((), dtype=torch.float64)
    for model in members:
        outputs = torch.as_tensor(
            task.embedding.population.outputs(model, samples=samples), dtype=torch.float64
        ).reshape(-1, task.channels)
        if task.classes:
            outputs = outputs.sigmoid() if task.channels == 1 else outputs.softmax(-1)
        total = total + outputs
    mean = total / len(members)
    if task.classes:
        mean = mean.clamp(1e-12, 1 - 1e-12)
        mean = mean.logit() if task.channels == 1 else mean.log()
    found: NDArray[np.float64] = mean.numpy()
    return found
