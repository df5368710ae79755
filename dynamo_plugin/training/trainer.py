"""Fits a meta-model, its thetas and its state maps to a population."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

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
from dynamo_plugin.training.phases import learning_rate, phase_at, theta_units
from dynamo_plugin.training.ranks import Ranks
from dynamo_plugin.training.sampler import draw_batches, split_samples
from dynamo_plugin.training.settling import settle
from dynamo_plugin.training.snapshots import (
    objective_state,
    optimiser_state,
    restore_optimiser,
    under,
)
from dynamo_plugin.training.stepping import Stepper, step_together
from dynamo_plugin.training.stopping import has_settled
from dynamo_plugin.training.targets import Targets

__all__ = ["FittedModels", "Trainer", "run_together"]

HISTORY_ROWS = 25
"""How often a fit looks at held-out samples, writes a line of history and a checkpoint."""

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
    samples
        (sample,) indices of the training samples, repeats allowed, and of those that are kept
        aside; None to split all as the settings say.

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
        samples: tuple[Tensor, Tensor] | None = None,
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
        self.training_samples, self.held_out_samples = samples or split_samples(
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
        self._stepper = Stepper(population, objective, self._targets, self.config, device)
        self.stopped: str | None = None
        """Why the fit ended before its time, or None."""
        self.history: list[dict[str, float]] = []
        """See `FittedModels.history`."""
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
        self._upcoming = next(self._batches)

    @property
    def step(self) -> int:
        """Steps done."""
        return self._stepper.step

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

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return models and samples of the step to make, and have those of the next one read."""
        drawn, self._upcoming = self._upcoming, next(self._batches)
        if self.step + 1 < self.config.steps:
            self._stepper.prefetch(*self._upcoming)
        return drawn

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

    def _agree_to_stop(self) -> bool:
        if self.ranks.size == 1:
            return self.stopped is not None
        asked = [self.stopped is not None, self.stopped == "interrupted"]
        flags = torch.tensor(asked, dtype=torch.float32, device=self._device)
        stopped, interrupted = self.ranks.total([flags])[0].tolist()
        if interrupted:  # on all processes alike: it is what a resumed fit goes on from
            self.stopped = "interrupted"
        elif stopped:
            self.stopped = self.stopped or "another process"
        return bool(stopped)

    def _look(self) -> None:
        """Add a row to the history, and stop if nothing changes any more."""
        config, models = self.config, len(self.ids)
        since = self.step - int(self.history[-1]["step"] if self.history else 0)
        hidden, output = (self.ranks.total([self._stepper.losses])[0] / since).tolist()
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
        self._stepper.losses.zero_()
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
        settle(
            self._objective,
            self._targets,
            self.training_samples[order],
            readouts=self.config.settle_readouts and self.config.output_weight > 0,
        )
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
        moments = optimiser_state(objective, self._stepper.optimiser, models)
        tensors = {f"objective.{name}": tensor for name, tensor in state.items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in moments.items()}
        tensors["losses"] = self.ranks.total([self._stepper.losses])[0].cpu()
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
        self._stepper.step = latest.step
        self.history = list(latest.notes["history"])
        self.stopped = latest.notes["stopped"]
        moments = under("optimiser.", latest.tensors)
        restore_optimiser(self._objective, self._stepper.optimiser, moments, len(self.ids))
        if self.ranks.rank == 0:  # they are sums over processes
            self._stepper.losses = latest.tensors["losses"].to(self._device, copy=True)
        last = latest.tensors["last_thetas"][self._own.start : self._own.stop]
        self._last_thetas = last.to(self._device, copy=True)


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
                step_together([t._stepper for t in going], [t._draw() for t in going])
                going = [t for t in going if t._goes_on(interrupted=interrupt.requested)]
    finally:
        for trainer in trainers:
            for callback in trainer._callbacks:
                callback.end(trainer)
    return [trainer._finish() for trainer in trainers]
