"""Fits a meta-model, its thetas and its state maps to a population."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import DivergedFit, InvalidInput
from dynamo_plugin.metamodels import StageMaps
from dynamo_plugin.registry.copying import recycling
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.store import Population
from dynamo_plugin.training.building import build
from dynamo_plugin.training.callbacks import Callback
from dynamo_plugin.training.checkpoints import Checkpoint, CheckpointFolder
from dynamo_plugin.training.config import FitConfig
from dynamo_plugin.training.interrupts import DeferredInterrupt
from dynamo_plugin.training.looking import look
from dynamo_plugin.training.objective import Terms
from dynamo_plugin.training.phases import hold_thetas, learning_rate, phase_at, theta_units
from dynamo_plugin.training.ranks import Ranks
from dynamo_plugin.training.sampler import draw_batches, split_samples
from dynamo_plugin.training.settling import settle
from dynamo_plugin.training.snapshots import (
    objective_state,
    optimiser_state,
    restore_optimiser,
    under,
)
from dynamo_plugin.training.stacking import can_be_stacked, run_stacked
from dynamo_plugin.training.stopping import has_settled
from dynamo_plugin.training.targets import Targets

__all__ = ["FittedModels", "Trainer", "run_together"]

HISTORY_ROWS = 25
"""How often a fit looks at held-out samples, writes a line of history and a checkpoint."""

ROWS_PER_PASS = 400_000
"""Rows of states, models x sequences x time steps (or positions of all stages), that go through
forward and backward at once. A step over more than that is made of several passes whose gradients
add up, which bounds its memory: a recurrent pass keeps about 50 bytes per meta unit and row."""

KEPT_BYTES = 2**30
"""Most memory that is kept from one step to the next."""

HISTORY_SAMPLES = 16
"""Held-out samples of each such look; the figures of a finished fit use all of them."""


@dataclass(frozen=True, slots=True)
class FittedModels:
    """What training leaves."""

    meta_model: MetaModel
    state_maps: StageMaps
    common_maps: StageMaps | None
    """The maps that all models share, where there are some."""
    thetas: Tensor
    """(model, embedding_dim), detached, on the CPU."""
    history: list[dict[str, float]]
    """One row per look: step, losses since the last one, held-out figures, learning rate."""
    training_samples: Tensor
    """(sample,) int64 indices."""
    held_out_samples: Tensor
    """(sample,) int64 indices."""
    config: FitConfig
    """As given, with every None that stands for a default replaced by what was used."""
    step: int
    """The last step; less than `config.steps` if something stopped it."""
    stopped: str | None
    """What did; None if nothing."""


class Trainer:
    """One fit: minimises the DYNAMO objective jointly over meta-model, thetas and state maps.

    Cotler et al. 2023 (arXiv:2302.14078), section 2.2 and Algorithm 1, with every model of a step
    in one batched call.

    Where torch.distributed has a process group, all its processes make a `Trainer` and run it
    alike. Each keeps the thetas and state maps of some of the models; gradients of what all share
    are summed, so that the number of processes makes no difference but for rounding.

    Parameters
    ----------
    population
        At least two complete models on at least two samples.
    config
        The settings; together with the population they determine the result on one machine.
    device
        Where to train.
    callbacks
        Are told what happens.
    checkpoints
        Where the fit is kept while it runs, and what it goes on from.
    targets
        Those of another fit of the same population, with the same sites and processes, so that
        states are read once; None to make them.

    Raises
    ------
    InvalidInput
        If there is too little to embed.
    UnknownName
        If the family or a loss is not registered.
    """

    def __init__(
        self,
        population: Population,
        config: FitConfig,
        *,
        device: torch.device,
        callbacks: Sequence[Callback] = (),
        checkpoints: CheckpointFolder | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.ids = population.ids
        self.ranks = Ranks.current()
        if len(self.ids) < 2:
            raise InvalidInput(
                "A model embedding compares networks: it needs at least 2, and this population has "
                f"{len(self.ids)}. Capture more models into it."
            )
        if len(self.ids) < self.ranks.size:
            raise InvalidInput(
                f"Every process needs a model, and {self.ranks.size} processes share "
                f"{len(self.ids)}: start fewer."
            )
        self._population = population
        self._device = device
        self._callbacks = list(callbacks) if self.ranks.rank == 0 else []
        self._checkpoints = checkpoints
        self.training_samples, self.held_out_samples = split_samples(
            len(population.sample_ids), held_out=config.held_out, seed=config.seed
        )
        latest = None if checkpoints is None else checkpoints.latest
        if latest is not None:
            dim = latest.tensors["objective.thetas"].shape[1]
            config = replace(config, embedding_dim=dim, leading_dim=latest.notes["leading_dim"])
        self._whole, self._targets, self.config = build(
            population,
            self.training_samples,
            config,
            device=device,
            ranks=self.ranks,
            start=latest is None,
            targets=targets,
        )
        if latest is not None:
            self._whole.load_state_dict(under("objective.", latest.tensors))
        self._objective = objective = self._whole.share(self.ranks).to(device)
        self._own = self.ranks.own(len(self.ids))
        table = objective.meta_model.token_embedding
        tokens = [] if table is None else list(table.parameters())
        special = {objective.thetas, *tokens}
        others = [p for p in objective.parameters() if p not in special]
        groups = (others, [objective.thetas], tokens)
        self._optimiser = torch.optim.Adam([{"params": group} for group in groups])
        self.step = 0
        """Steps done."""
        self.stopped: str | None = None
        """Why the fit ended before its time, or None."""
        self.history: list[dict[str, float]] = []
        """See `FittedModels.history`."""
        self._losses = torch.zeros(2, device=device)
        self._last_thetas = objective.thetas.detach().clone()
        self._everyone = self._whole.thetas.detach().clone()
        if latest is not None:
            self._go_on_from(latest)
        batches = draw_batches(
            self.training_samples,
            batch_size=config.batch_size,
            models=len(self.ids),
            models_per_step=config.models_per_step,
            generator=torch.Generator().manual_seed(config.seed + 1),
            lengths=torch.tensor(population.lengths),
            buckets=config.length_buckets,
        )
        # Batches of steps that a checkpoint has behind it are drawn and passed over.
        self._batches = islice(batches, self.step, None)

    @property
    def targets(self) -> Targets:
        """What it learns from."""
        return self._targets

    @property
    def thetas(self) -> Tensor:
        """(model, embedding_dim): the thetas as they are now, a copy on the CPU.

        With several processes, of which callbacks run in one, as they were at the last look.
        """
        found = self._objective.thetas.detach() if self.ranks.size == 1 else self._everyone
        return found.cpu() * theta_units(self.config)

    def stop(self, reason: str) -> None:
        """End the fit after the step in hand; what it found so far is the result."""
        self.stopped = reason

    def run(self) -> FittedModels:
        """Make all steps that are left.

        The first Ctrl-C ends the fit after the step in hand.

        Raises
        ------
        DivergedFit
            If the loss becomes NaN or infinite; names the step, the models and the samples.
        """
        return run_together([self])[0]

    def _update(self, models: Tensor, samples: Tensor, losses: Tensor) -> None:
        """Change everything by the gradients that there are."""
        config, objective = self.config, self._objective
        hold_thetas(objective.thetas, self._optimiser, phase_at(self.step, config).dims)
        norm = self._norm()
        if not torch.isfinite(norm):
            raise self._diverged(models, samples, losses)
        nn.utils.clip_grads_with_norm_(objective.parameters(), config.clip, norm)
        everything, thetas, tokens = self._optimiser.param_groups
        rate = learning_rate(self.step, config)
        everything["lr"] = config.learning_rate * rate
        thetas["lr"] = (config.theta_learning_rate or config.learning_rate) * rate
        tokens["lr"] = (config.token_learning_rate or config.learning_rate) * rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._losses += losses.sum(1) / len(models)
        self.step += 1

    def _goes_on(self, *, interrupted: bool) -> bool:
        """Do what there is to do between steps; return whether there is another one."""
        steps = self.config.steps
        if interrupted and self.step < steps:
            self.stop("interrupted")
        for callback in self._callbacks:
            callback.step(self)
        looked = self.step % max(steps // HISTORY_ROWS, 1) == 0 or self.step == steps
        if looked:
            self._look()
        ended = self._agree_to_stop()
        if looked or ended:
            self._keep()
        return not ended and self.step < steps

    def _norm(self) -> Tensor:
        """Sum gradients of what processes share; return the norm of the gradient of all models."""
        parameters = dict(self._objective.named_parameters())
        if self.ranks.size == 1:
            return nn.utils.get_total_norm(
                [p.grad for p in parameters.values() if p.grad is not None]
            )
        own = self._objective.model_tensors
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in parameters.items()
        }
        square = nn.utils.get_total_norm([gradients[n] for n in parameters if n in own]).square()
        shared = [name for name in parameters if name not in own]
        square, *totals = self.ranks.total([square, *(gradients[name] for name in shared)])
        gradients |= dict(zip(shared, totals, strict=True))
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        return (nn.utils.get_total_norm(totals).square() + square).sqrt()

    def _agree_to_stop(self) -> bool:
        if self.ranks.size == 1:
            return self.stopped is not None
        asked = torch.tensor(float(self.stopped is not None), device=self._device)
        if float(self.ranks.total([asked])[0]) == 0:
            return False
        self.stopped = self.stopped or "another process"
        return True

    def _accumulate(self, models: Tensor, samples: Tensor) -> Tensor:
        """Add the gradient of one step to this process's; return its (2, own model) losses."""
        targets, objective = self._targets, self._objective
        per_pass = self._models_per_pass(samples)
        mine = models[(models >= self._own.start) & (models < self._own.stop)] - self._own.start
        # Solving maps that models share takes all processes, so all make as many passes.
        passes = -(-self.ranks.most(models, len(self.ids)) // per_pass)
        weight = phase_at(self.step, self.config).alignment_weight
        losses = []
        for part in mine.tensor_split(passes):
            if not len(part):
                objective.solve_with_others(aligned=weight > 0)
                continue
            here = part.to(self._device)
            terms = objective(targets.batch(part, samples), here, aligned=weight > 0)
            (self._loss(terms, here).sum() / len(models)).backward()
            losses.append(torch.stack([terms.hidden.detach(), terms.output.detach()]))
        return torch.cat([torch.zeros(2, 0, device=self._device), *losses], dim=1)

    def _loss(self, terms: Terms, models: Tensor) -> Tensor:
        """Return (model,): what is minimised."""
        config = self.config
        penalty = config.theta_decay / 2 * self._objective.thetas[models].square().sum(1)
        weight = phase_at(self.step, config).alignment_weight
        return terms.hidden + config.output_weight * terms.output + penalty + weight * terms.aligned

    def _models_per_pass(self, samples: Tensor) -> int:
        rows = len(samples) * self._targets.rows_per_sample(samples)
        return max(ROWS_PER_PASS // rows, 1)

    def _look(self) -> None:
        """Add a row to the history, and stop if nothing changes any more."""
        config, models = self.config, len(self.ids)
        since = self.step - int(self.history[-1]["step"] if self.history else 0)
        hidden, output = (self.ranks.total([self._losses])[0] / since).tolist()
        row = {
            "step": self.step,
            "hidden_loss": hidden,
            "output_loss": output,
            "loss": hidden + config.output_weight * output,
            **look(
                self._objective,
                self._targets,
                self.held_out_samples[:HISTORY_SAMPLES],
                models=models,
                last_thetas=self._last_thetas,
                output_weight=config.output_weight,
            ),
            "learning_rate": config.learning_rate * learning_rate(self.step, config),
        }
        if not math.isfinite(row["held_out_loss"]):
            raise DivergedFit(
                f"The loss on held-out samples became NaN or infinite by step {self.step}. Lower "
                "learning_rate, or verify the population."
            )
        self.history.append(row)
        self._losses.zero_()
        self._last_thetas = self._objective.thetas.detach().clone()
        self._everyone = self.ranks.gather(self._last_thetas, models)
        for callback in self._callbacks:
            callback.look(self, row)
        phase = phase_at(self.step - 1, config)
        if (
            config.patience is not None
            and phase.stop == config.steps
            and has_settled(
                [row for row in self.history if row["step"] > phase.start],
                patience=config.patience,
                min_improvement=config.min_improvement,
                min_theta_movement=config.min_theta_movement,
            )
        ):
            self.stop("settled")

    def _finish(self) -> FittedModels:
        self._objective.requires_grad_(False).eval()  # noqa: FBT003
        self._objective.rescale_theta(theta_units(self.config))
        generator = torch.Generator().manual_seed(self.config.seed + 4)
        order = torch.randperm(len(self.training_samples), generator=generator)
        settle(self._objective, self._targets, self.training_samples[order])
        whole = self._whole
        if self.ranks.size > 1:
            whole.requires_grad_(False).eval()  # noqa: FBT003
            whole.forget()  # moments of a checkpoint
            whole.load_state_dict(objective_state(self._objective, len(self.ids)))
        whole.cpu()
        return FittedModels(
            whole.meta_model,
            whole.state_maps,
            whole.common_maps,
            whole.thetas.detach(),
            self.history,
            self.training_samples,
            self.held_out_samples,
            self.config,
            self.step,
            self.stopped,
        )

    def _keep(self) -> None:
        """Write a checkpoint, if there is a place for it."""
        if self._checkpoints is None:
            return
        objective, models = self._objective, len(self.ids)
        state = objective_state(objective, models)
        moments = optimiser_state(objective, self._optimiser, models)
        tensors = {f"objective.{name}": tensor for name, tensor in state.items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in moments.items()}
        tensors["losses"] = self.ranks.total([self._losses])[0].cpu()
        tensors["last_thetas"] = self.ranks.gather(self._last_thetas, models).cpu()
        if self.ranks.rank == 0:
            # An interrupted fit is to go on; one that has settled is not.
            stopped = None if self.stopped == "interrupted" else self.stopped
            notes = {
                "history": self.history,
                "stopped": stopped,
                "leading_dim": self.config.leading_dim,
            }
            self._checkpoints.write(Checkpoint(self.step, tensors, notes))

    def _go_on_from(self, latest: Checkpoint) -> None:
        self.step = latest.step
        self.history = list(latest.notes["history"])
        self.stopped = latest.notes["stopped"]
        moments = under("optimiser.", latest.tensors)
        restore_optimiser(self._objective, self._optimiser, moments, len(self.ids))
        if self.ranks.rank == 0:  # they are sums over processes
            self._losses = latest.tensors["losses"].to(self._device, copy=True)
        last = latest.tensors["last_thetas"][self._own.start : self._own.stop]
        self._last_thetas = last.to(self._device, copy=True)

    def _diverged(self, models: Tensor, samples: Tensor, losses: Tensor) -> DivergedFit:
        named = self._population.ids
        broken = torch.zeros(len(self.ids))
        mine = models[(models >= self._own.start) & (models < self._own.stop)]
        broken[mine] = (~torch.isfinite(losses.sum(0))).float().cpu()
        (broken,) = self.ranks.total([broken.to(self._device)])
        names = [named[model] for model in (broken.nonzero()[:, 0].tolist() or models.tolist())]
        ids = [self._population.sample_ids[sample] for sample in samples[:4].tolist()]
        return DivergedFit(
            f"The loss or its gradient became NaN or infinite at step {self.step + 1} (models "
            f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}; samples {', '.join(ids)}"
            f"{', ...' if len(samples) > 4 else ''}). Lower learning_rate, or verify the "
            "population."
        )


def run_together(trainers: Sequence[Trainer]) -> list[FittedModels]:
    """Make all steps of several fits; see `Trainer.run`.

    Meta-models that differ in their values alone run in one call.

    Parameters
    ----------
    trainers
        Of one population; their seeds differ, and other settings may.
    """
    for trainer in trainers:
        for callback in trainer._callbacks:
            callback.begin(trainer)
    try:
        going = [t for t in trainers if t.stopped is None and t.step < t.config.steps]
        with DeferredInterrupt() as interrupt, recycling(KEPT_BYTES):
            while going:
                _advance_together(going)
                going = [t for t in going if t._goes_on(interrupted=interrupt.requested)]
    finally:
        for trainer in trainers:
            for callback in trainer._callbacks:
                callback.end(trainer)
    return [trainer._finish() for trainer in trainers]


def _advance_together(trainers: Sequence[Trainer]) -> None:
    """Make one step of each."""
    drawn = [next(trainer._batches) for trainer in trainers]
    one_pass = all(
        len(models) <= trainer._models_per_pass(samples) and trainer.ranks.size == 1
        for trainer, (models, samples) in zip(trainers, drawn, strict=True)
    )
    alike = len({(len(models), len(samples)) for models, samples in drawn}) == 1
    stacked = len(trainers) > 1 and one_pass and alike
    if not (stacked and can_be_stacked([t._objective.meta_model for t in trainers])):
        for trainer, (models, samples) in zip(trainers, drawn, strict=True):
            trainer._update(models, samples, trainer._accumulate(models, samples))
        return
    here = [models.to(t._device) for t, (models, _) in zip(trainers, drawn, strict=True)]
    batches = [t._targets.batch(*some) for t, some in zip(trainers, drawn, strict=True)]
    trajectories = run_stacked(
        [trainer._objective.meta_model for trainer in trainers],
        [batch.inputs for batch in batches],
        [t._objective.thetas[models] for t, models in zip(trainers, here, strict=True)],
        [batch.lengths for batch in batches],
    )
    losses, total = [], torch.zeros((), device=trainers[0]._device)
    for trainer, trajectory, batch, models in zip(
        trainers, trajectories, batches, here, strict=True
    ):
        aligned = phase_at(trainer.step, trainer.config).alignment_weight > 0
        terms = trainer._objective.compare(trajectory, batch, models, aligned=aligned)
        total = total + trainer._loss(terms, models).sum() / len(models)
        losses.append(torch.stack([terms.hidden.detach(), terms.output.detach()]))
    total.backward()
    for trainer, (models, samples), own in zip(trainers, drawn, losses, strict=True):
        trainer._update(models, samples, own)
