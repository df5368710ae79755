"""How well a meta-model emulates each base model, on samples of one's choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dynamo_plugin.metamodels import StageMaps
from dynamo_plugin.registry import get_registry
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.training.own_readouts import OwnReadouts
from dynamo_plugin.training.stages import HIDDEN
from dynamo_plugin.training.targets import TargetBatch, Targets
from dynamo_plugin.types import OutputSpec, Trajectory

__all__ = [
    "Evaluation",
    "Observer",
    "compares_decisions",
    "decide",
    "evaluate",
    "samples_per_batch",
]

PAIRS_PER_BATCH = 2048
"""Most pairs of a model and a sample that run at once."""

ROWS_PER_BATCH = 400_000
"""Most rows of states that they have together, over all stages: feature maps have many."""


Observer: TypeAlias = Callable[[TargetBatch, Trajectory, Mapping[str, Tensor], Tensor], None]
"""Takes a batch, what the meta-model did on it, stage to the normalised states that the maps make
of that, (model, sample, row, max units), and the indices of the models, (model,)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Agreement of every base model with its emulation."""

    hidden_r2: Tensor
    """(model,) float64: 1 - sum |h - V(h~)|^2 / sum |h - mean h|^2 over stored rows and units, the
    mean over stages where there are several."""
    stage_r2: Mapping[str, Tensor]
    """Stage to the same of that stage alone."""
    output_agreement: Tensor
    """(model,) float64. Logits: share of outputs where base model and emulation decide alike.
    Real outputs: the coefficient of determination of the emulated outputs."""
    own_agreement: Tensor | None
    """The same of outputs that the base models' own readouts give from V(h~); None without."""


def samples_per_batch(targets: Targets, samples: Tensor, *, models: int) -> int:
    """Return how many of some samples so many models can run on at once in bounded memory."""
    rows = targets.rows_per_sample(samples)
    return max(min(PAIRS_PER_BATCH, ROWS_PER_BATCH // rows) // models, 1)


def compares_decisions(output_loss: str) -> bool:
    """Return whether outputs under this loss are logits, of which decisions are compared.

    Parameters
    ----------
    output_loss
        Registered name of an output loss; its attribute `domain` is `logits` if so.

    Raises
    ------
    UnknownName
        If there is no such loss.
    """
    return get_registry().registration("loss", output_loss).attributes.get("domain") == "logits"


@torch.no_grad()
def evaluate(
    meta_model: MetaModel,
    state_maps: StageMaps,
    thetas: Tensor,
    targets: Targets,
    samples: Tensor,
    *,
    decisions: Mapping[str, bool],
    observe: Observer | None = None,
    own_readouts: OwnReadouts | None = None,
) -> Evaluation:
    """Run every theta on some samples and compare with what the base models did.

    Parameters
    ----------
    meta_model, state_maps
        The fitted networks; maps by stage.
    thetas
        (model, embedding_dim), in the order of the targets' population.
    targets
        Reads the stored states and outputs.
    samples
        (sample,) int64 indices on the CPU.
    decisions
        Output group to whether its outputs are logits, whose decisions are compared, or real
        numbers.
    observe
        Is shown every batch: all samples of some models, then those of the next ones.
    own_readouts
        Those of the base models, whose outputs from emulated states are compared too.

    Returns
    -------
    Evaluation
        Sums over samples are kept in float64.
    """
    outputs = {output.group: output for output in meta_model.spec.outputs}
    hidden = {stage: _Residuals(len(maps), maps.widest) for stage, maps in state_maps.items()}
    answers = {
        group: _Answers(len(thetas), spec, decisions[group]) for group, spec in outputs.items()
    }
    own = {group: _Answers(len(thetas), spec, decisions[group]) for group, spec in outputs.items()}
    for models in torch.arange(len(thetas)).split(64):
        for chunk in samples.split(samples_per_batch(targets, samples, models=len(models))):
            batch = targets.batch(models, chunk)
            here = models.to(thetas.device)
            trajectory = meta_model(batch.inputs[None], thetas[here][:, None], batch.lengths[None])
            mapped = {}
            for stage, maps in state_maps.items():
                units = maps.target_units[here].view(len(models), 1, 1, -1)
                mapped[stage] = maps(trajectory.states[stage], here, thetas[here])
                hidden[stage].add(
                    models,
                    maps.normalise(batch.states[stage], here),
                    mapped[stage],
                    batch.masks[stage][..., None] & units,
                )
            if observe is not None:
                observe(batch, trajectory, mapped, here)
            for group, (positions, target) in batch.outputs.items():
                emulated = trajectory.outputs[group][positions]
                answers[group].add(models[positions.cpu()], target, emulated, batch.real_steps)
            if own_readouts is not None:
                states = state_maps[HIDDEN].restore(mapped[HIDDEN], here)
                for group, emulated in own_readouts.read(states, batch, here).items():
                    positions, target = batch.outputs[group]
                    own[group].add(models[positions.cpu()], target, emulated, batch.real_steps)
    stages = {stage: residuals.r2() for stage, residuals in hidden.items()}
    return Evaluation(
        torch.stack(list(stages.values())).mean(0),
        stages,
        sum((one.agreement() for one in answers.values()), torch.zeros(())),
        sum((one.agreement() for one in own.values()), torch.zeros(()))
        if own_readouts is not None
        else None,
    )


class _Answers:
    """Compares the outputs of one output group, those of each model apart."""

    def __init__(self, models: int, spec: OutputSpec, decisions: bool) -> None:  # noqa: FBT001
        self.spec = spec
        self.decisions = decisions
        self.agree = torch.zeros(models, dtype=torch.float64)
        self.decided = torch.zeros(models, dtype=torch.float64)
        self.residuals = _Residuals(models, math.prod(spec.shape))

    def add(self, models: Tensor, target: Tensor, emulated: Tensor, steps: Tensor) -> None:
        """Join a batch: (model, sample, time, size) targets, emulated outputs as they come."""
        if self.spec.axis == "time":
            emulated, mask = emulated.flatten(3), steps
        else:
            emulated, mask = emulated.flatten(2)[:, :, None], torch.ones_like(steps[:, :1])
        if self.decisions:
            same = (decide(emulated) == decide(target)) & mask
            self.agree[models] += same.sum((1, 2)).cpu().double()
            self.decided[models] += float(mask.sum())
        else:
            self.residuals.add(models, target, emulated, mask[None, ..., None])

    def agreement(self) -> Tensor:
        """Return (model,); zero for models of other groups."""
        if self.decisions:
            return self.agree / self.decided.clamp(min=1)
        seen = self.residuals.count.sum(-1) > 0
        return self.residuals.r2().where(seen, 0.0)


class _Residuals:
    """Streams the sums that a coefficient of determination is made of, per model and unit."""

    def __init__(self, models: int, units: int) -> None:
        self.count = torch.zeros(models, units, dtype=torch.float64)
        self.mean = torch.zeros(models, units, dtype=torch.float64)
        self.total = torch.zeros(models, units, dtype=torch.float64)
        self.residual = torch.zeros(models, units, dtype=torch.float64)

    def add(self, models: Tensor, target: Tensor, prediction: Tensor, mask: Tensor) -> None:
        """Join a batch: (model, sample, time, unit) values, of which those under mask count."""
        weight = mask.to(target.dtype).expand_as(target)
        count = weight.sum((1, 2), dtype=torch.float64)
        kept = target * weight
        mean = kept.sum((1, 2), dtype=torch.float64) / count.clamp(min=1)
        deviation = (kept - mean.to(target.dtype)[:, None, None] * weight).square()
        residual = (kept - prediction * weight).square().sum((1, 2), dtype=torch.float64)
        count, mean, residual = count.cpu(), mean.cpu(), residual.cpu()
        joined = (self.count[models] + count).clamp(min=1)
        shift = mean - self.mean[models]
        self.total[models] += deviation.sum((1, 2), dtype=torch.float64).cpu()
        self.total[models] += shift.square() * self.count[models] * count / joined
        self.mean[models] += shift * count / joined
        self.count[models] += count
        self.residual[models] += residual

    def r2(self) -> Tensor:
        """Return (model,): 1 - residual / total, both summed over units.

        A model whose target never changes is emulated perfectly (1) or not at all (0).
        """
        total, residual = self.total.sum(-1), self.residual.sum(-1)
        constant = total <= 0
        return torch.where(
            constant, (residual <= 0).double(), 1 - residual / total.masked_fill(constant, 1.0)
        )


def decide(logits: Tensor) -> Tensor:
    """Return the class that logits (..., class) choose; a single logit by its sign."""
    if logits.shape[-1] == 1:
        return logits.squeeze(-1) > 0
    return logits.argmax(-1)
