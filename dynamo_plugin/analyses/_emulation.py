"""What emulations and networks differ in, sample by sample, step by step and site by site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynamo_plugin.losses import kl
from dynamo_plugin.training import Evaluation, Targets, evaluate
from dynamo_plugin.training.evaluation import decide

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dynamo_plugin.metamodels import StageMaps, StateMaps
    from dynamo_plugin.registry.interfaces import MetaModel
    from dynamo_plugin.training import OwnReadouts
    from dynamo_plugin.training.stages import Stage
    from dynamo_plugin.training.targets import TargetBatch
    from dynamo_plugin.types import OutputSpec, Trajectory

__all__ = ["Emulated", "StepAgreement", "emulate"]

ROUNDING = 1e-12
"""Share of the squares below which the spread of numbers in single precision is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class StepAgreement:
    """Agreement at every time step; NaN where nothing was recorded or nothing varies."""

    samples: NDArray[np.int64]
    """(model, step): samples that have a state of this step."""
    hidden_r2: NDArray[np.float64]
    """(model, step): about the mean of the step, the mean over stages."""
    hidden_error: NDArray[np.float64]
    """(model, step): mean squared error, in units of the variance over all steps."""
    output_agreement: NDArray[np.float64]
    """(model, step); NaN for outputs of whole samples."""
    output_divergence: NDArray[np.float64]
    """(model, step), likewise."""


@dataclass(frozen=True, slots=True, eq=False)
class Emulated:
    """How well the networks at some thetas, one per model, emulate the models."""

    evaluation: Evaluation
    """Hidden R2 and output agreement."""
    errors: NDArray[np.float64]
    """(model, sample): squared error as a share of the sum of squares about the mean of all
    samples, the mean over stages; they add up to 1 - hidden R2."""
    divergence: NDArray[np.float64]
    """(model,): mean Kullback-Leibler divergence of outputs that are logits, else mean squared
    error."""
    sites: NDArray[np.float64]
    """(model, site): hidden R2 of each recorded site, in order; NaN past a model's own."""
    steps: StepAgreement | None
    """None where nothing is recorded per step."""


def emulate(
    meta_model: MetaModel,
    state_maps: StageMaps,
    thetas: Tensor,
    targets: Targets,
    samples: Tensor,
    *,
    decisions: Mapping[str, bool],
    own_readouts: OwnReadouts | None = None,
) -> Emulated:
    """Run every theta on some samples and compare with what its model did; see `evaluate`."""
    watch = _Watch(meta_model, state_maps, targets, samples, decisions)
    evaluation = evaluate(
        meta_model,
        state_maps,
        thetas,
        targets,
        samples,
        decisions=decisions,
        observe=watch,
        own_readouts=own_readouts,
    )
    return watch.result(evaluation)


class _Watch:
    """Sums what there is to know of every batch of an evaluation."""

    def __init__(
        self,
        meta_model: MetaModel,
        state_maps: StageMaps,
        targets: Targets,
        samples: Tensor,
        decisions: Mapping[str, bool],
    ) -> None:
        models, steps = len(targets.ids), int(targets.lengths[samples].max())
        self._samples = len(samples)
        self._layered = meta_model.layered
        self._maps = dict(state_maps.items())
        self._stages = {
            stage.name: _StageSums(stage, models, len(samples), steps) for stage in targets.stages
        }
        self._outputs = {
            output.group: _OutputSums(output, models, steps, decisions=decisions[output.group])
            for output in meta_model.spec.outputs
        }
        (first, *_) = targets.stages
        self._sites = None
        if not meta_model.layered and max(map(len, first.sites)) > 1:
            self._sites = _SiteSums(first, self._maps[first.name].widest)
        self._place = 0

    def __call__(
        self, batch: TargetBatch, trajectory: Trajectory, mapped: Mapping[str, Tensor], here: Tensor
    ) -> None:
        """Join a batch; see `training.evaluation.Observer`."""
        models, start = here.cpu(), self._place
        stop = start + len(batch.lengths)
        for stage, sums in self._stages.items():
            maps, mask = self._maps[stage], batch.masks[stage]
            target = maps.normalise(batch.states[stage], here)
            weight = mask[..., None] & maps.target_units[here].view(len(models), 1, 1, -1)
            sums.add(models, slice(start, stop), target, mapped[stage], weight, mask)
            if stop == self._samples:
                sums.close(models)
            if self._sites is not None:
                self._sites.add(models, here, maps, batch.states[stage], mapped[stage], mask)
        for group, (positions, target) in batch.outputs.items():
            emulated = trajectory.outputs[group][positions]
            self._outputs[group].add(models[positions.cpu()], target, emulated, batch.real_steps)
        self._place = stop % self._samples

    def result(self, evaluation: Evaluation) -> Emulated:
        """Return what was found, all models being through."""
        stages = list(self._stages.values())
        stepped = [sums for sums in stages if sums.per_step]
        if self._sites is not None:
            sites = self._sites.r2()
        elif self._layered:
            sites = torch.stack([evaluation.stage_r2[stage] for stage in self._stages], 1)
        else:
            sites = evaluation.hidden_r2[:, None]
        return Emulated(
            evaluation,
            torch.stack([sums.shares() for sums in stages]).mean(0).numpy(),
            sum((sums.divergence() for sums in self._outputs.values()), torch.zeros(())).numpy(),
            sites.numpy(),
            self._steps(stepped) if stepped else None,
        )

    def _steps(self, stages: list[_StageSums]) -> StepAgreement:
        own = [sums.steps() for sums in self._outputs.values() if sums.per_step]
        nowhere = torch.full_like(stages[0].residual, torch.nan)
        agreement, divergence = nowhere.clone(), nowhere.clone()
        for members, agree, diverge in own:
            agreement[members], divergence[members] = agree[members], diverge[members]
        return StepAgreement(
            torch.stack([sums.count for sums in stages]).amin(0).long().numpy(),
            torch.stack([sums.step_r2() for sums in stages]).mean(0).numpy(),
            torch.stack([sums.step_error() for sums in stages]).mean(0).numpy(),
            agreement.numpy(),
            divergence.numpy(),
        )


class _StageSums:
    """Squared errors of one stage by sample and by step, and the squares that they are shares of.

    The means of units at every step are kept for the models that run at the moment alone.
    """

    def __init__(self, stage: Stage, models: int, samples: int, steps: int) -> None:
        self.per_step = stage.spec.axis == "time"
        shape = (models, steps if self.per_step else 1)
        self.by_sample = torch.zeros(models, samples, dtype=torch.float64)
        self.residual, self.count, self.spread = torch.zeros(3, *shape, dtype=torch.float64)
        self.total = torch.zeros(models, dtype=torch.float64)
        self._square = torch.zeros(shape, dtype=torch.float64)
        self._units: Tensor | None = None

    def add(
        self,
        models: Tensor,
        places: slice,
        target: Tensor,
        emulated: Tensor,
        weight: Tensor,
        mask: Tensor,
    ) -> None:
        kept = target.where(weight, 0.0)
        error = (kept - emulated.where(weight, 0.0)).square().sum(-1, dtype=torch.float64)
        self.by_sample[models, places] = error.sum(-1).cpu()
        mask = mask.expand(len(models), -1, -1)
        if not self.per_step:
            kept, error, mask = (x.flatten(1, 2)[:, :, None] for x in (kept, error, mask))
        rows = kept.shape[2]
        if self._units is None:
            shape = (len(models), self.residual.shape[1], kept.shape[-1])
            self._units = torch.zeros(shape, dtype=torch.float64, device=kept.device)
        self._units[:, :rows] += kept.sum(1, dtype=torch.float64)
        self._square[models, :rows] += kept.double().square().sum((1, 3)).cpu()
        self.residual[models, :rows] += error.sum(1).cpu()
        self.count[models, :rows] += mask.sum(1).cpu()

    def close(self, models: Tensor) -> None:
        """All samples of these models are through."""
        assert self._units is not None
        units, count = self._units.cpu(), self.count[models]
        own = self._square[models] - units.square().sum(-1) / count.clamp(min=1)
        self.spread[models] = own.where(own > ROUNDING * self._square[models], 0.0)
        square, number = self._square[models].sum(1), count.sum(1).clamp(min=1)
        whole = square - units.sum(1).square().sum(-1) / number
        self.total[models] = whole.where(whole > ROUNDING * square, 0.0)
        self._units = None

    def shares(self) -> Tensor:
        """Return (model, sample): squared errors as a share of all squares about the mean.

        States that never change are emulated perfectly or not at all, as `evaluate` has it.
        """
        shares: Tensor = self.by_sample / self._all()[:, None]
        return shares

    def step_r2(self) -> Tensor:
        """Return (model, step): about the mean of the step; NaN where samples are all alike."""
        r2: Tensor = 1 - self.residual / self.spread.where(self.spread > 0, torch.nan)
        return r2

    def step_error(self) -> Tensor:
        """Return (model, step): mean squared errors in units of the variance over all steps."""
        variance = self._all() / self.count.sum(1).clamp(min=1)
        mean = self.residual / self.count.where(self.count > 0, torch.nan)
        error: Tensor = mean / variance[:, None]
        return error

    def _all(self) -> Tensor:
        errors = self.by_sample.sum(1)
        return self.total.where(self.total > 0, errors.where(errors > 0, 1.0))


class _SiteSums:
    """Squared errors and squares of every unit of states that are several sites side by side."""

    def __init__(self, stage: Stage, widest: int) -> None:
        most = max(map(len, stage.sites))
        self._site = torch.zeros(len(stage.sites), widest, most, dtype=torch.float64)
        for model, sites in enumerate(stage.sites):
            bounds = np.cumsum([0, *(math.prod(site.shape) for site in sites)])
            for number, (start, stop) in enumerate(pairwise(bounds)):
                self._site[model, start:stop, number] = 1
        shape = (3, len(stage.sites), widest)
        self._residual, self._sum, self._square = torch.zeros(shape, dtype=torch.float64)
        self._count = torch.zeros(len(stage.sites), dtype=torch.float64)

    def add(
        self,
        models: Tensor,
        here: Tensor,
        maps: StateMaps,
        states: Tensor,
        mapped: Tensor,
        mask: Tensor,
    ) -> None:
        # In the units of the networks, since aligned states mix the sites.
        mean = maps.mean[here][:, None, None]
        target = (states - mean).where(mask[..., None], 0.0)
        emulated = (maps.restore(mapped, here) - mean).where(mask[..., None], 0.0)
        rows, kind = (1, 2), torch.float64
        self._residual[models] += (target - emulated).square().sum(rows, dtype=kind).cpu()
        self._square[models] += target.square().sum(rows, dtype=kind).cpu()
        self._sum[models] += target.sum(rows, dtype=kind).cpu()
        self._count[models] += mask.expand(len(models), -1, -1).sum(rows).cpu()

    def r2(self) -> Tensor:
        """Return (model, site); NaN past a model's own sites and where a site never changes."""
        spread = self._square - self._sum.square() / self._count.clamp(min=1)[:, None]
        spread = spread.where(spread > ROUNDING * self._square, 0.0)
        residual, total = (
            torch.einsum("mu,mus->ms", part, self._site) for part in (self._residual, spread)
        )
        return 1 - residual / total.where(total > 0, torch.nan)


class _OutputSums:
    """Agreement and divergence of the outputs of one group, by step where there is one each."""

    def __init__(self, spec: OutputSpec, models: int, steps: int, *, decisions: bool) -> None:
        self.per_step = spec.axis == "time"
        self._decisions = decisions
        self._numbers = math.prod(spec.shape)
        shape = (models, steps if self.per_step else 1)
        self._divergence, self._count, self._agree = torch.zeros(3, *shape, dtype=torch.float64)
        width = 0 if decisions else self._numbers
        self._sum = torch.zeros(*shape, width, dtype=torch.float64)
        self._square = torch.zeros(shape, dtype=torch.float64)

    def add(self, models: Tensor, target: Tensor, emulated: Tensor, real_steps: Tensor) -> None:
        """Join a batch: (member, sample, time, number) targets, emulated outputs as they come."""
        if self.per_step:
            emulated, mask = emulated.flatten(3), real_steps
        else:
            emulated, mask = emulated.flatten(2)[:, :, None], torch.ones_like(real_steps[:, :1])
        rows = slice(target.shape[2])
        if self._decisions:
            once = torch.ones(1, 1, dtype=torch.bool, device=target.device)
            differ = kl(emulated.unsqueeze(-2), target.unsqueeze(-2), once)
            same = (decide(emulated) == decide(target)) & mask
            self._agree[models, rows] += same.sum(1).double().cpu()
        else:
            differ = (target - emulated).double().square().sum(-1)
            kept = target.where(mask[None, ..., None], 0.0).double()
            self._sum[models, rows] += kept.sum(1).cpu()
            self._square[models, rows] += kept.square().sum((1, 3)).cpu()
        self._divergence[models, rows] += differ.where(mask, 0.0).sum(1, dtype=torch.float64).cpu()
        self._count[models, rows] += mask.sum(0).double().cpu()

    def divergence(self) -> Tensor:
        """Return (model,); zero for models of other groups."""
        mean: Tensor = self._divergence.sum(1) / self._comparisons(self._count.sum(1)).clamp(min=1)
        return mean

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (model,) which belong to the group; agreement and divergence (model, step)."""
        count = self._count.where(self._count > 0, torch.nan)
        if self._decisions:
            agreement = self._agree / count
        else:
            spread = self._square - self._sum.square().sum(-1) / count
            spread = spread.where(spread > ROUNDING * self._square, torch.nan)
            agreement = 1 - self._divergence / spread
        return self._count.sum(1) > 0, agreement, self._divergence / self._comparisons(count)

    def _comparisons(self, count: Tensor) -> Tensor:
        return count if self._decisions else count * self._numbers
