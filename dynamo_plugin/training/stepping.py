"""One step of a fit: losses, gradients, and what Adam makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import DivergedFit
from dynamo_plugin.store import Population
from dynamo_plugin.training.config import FitConfig
from dynamo_plugin.training.objective import Objective, Terms
from dynamo_plugin.training.phases import hold_thetas, learning_rate, phase_at
from dynamo_plugin.training.stacking import can_be_stacked, run_stacked
from dynamo_plugin.training.targets import Targets

__all__ = ["ROWS_PER_PASS", "Stepper", "step_together"]

ROWS_PER_PASS = 400_000
"""Rows of states, models x sequences x time steps (or positions of all stages), that go through
forward and backward at once. A step over more than that is made of several passes whose gradients
add up, which bounds its memory: a recurrent pass keeps about 50 bytes per meta unit and row."""


class Stepper:
    """Makes the steps of one fit.

    Parameters
    ----------
    population
        What is embedded.
    objective
        Of the models of this process; everything that is trained.
    targets
        What they learn from.
    config
        The settings, with every default spelled out.
    device
        Where to train.
    """

    def __init__(
        self,
        population: Population,
        objective: Objective,
        targets: Targets,
        config: FitConfig,
        device: torch.device,
    ) -> None:
        self._population = population
        self.objective = objective
        self.targets = targets
        self.config = config
        self.device = device
        self.ranks = objective.ranks
        self.models = len(population.ids)
        self._own = self.ranks.own(self.models)
        self.step = 0
        """Steps done."""
        self.losses = torch.zeros(2, device=device)
        """Hidden and output loss of the models of this process, summed over steps."""
        table = objective.meta_model.token_embedding
        tokens = [] if table is None else list(table.parameters())
        special = {objective.thetas, *tokens}
        others = [p for p in objective.parameters() if p not in special]
        groups = (others, [objective.thetas], tokens)
        self.optimiser = torch.optim.Adam([{"params": group} for group in groups])

    def accumulate(self, models: Tensor, samples: Tensor) -> Tensor:
        """Add the gradient of one step to this process's; return its (2, own model) losses.

        Parameters
        ----------
        models, samples
            (model,) and (sample,) indices.
        """
        targets, objective = self.targets, self.objective
        parts = self._parts(models, samples)
        weight = phase_at(self.step, self.config).alignment_weight
        losses = []
        for number, part in enumerate(parts):
            if not len(part):
                objective.solve_with_others(aligned=weight > 0)
                continue
            batch, here = targets.batch(part, samples), part.to(self.device)
            for following in parts[number + 1 : number + 2]:
                targets.prefetch(following, samples)
            terms = objective(batch, here, aligned=weight > 0)
            (self.loss(terms, here).sum() / len(models)).backward()
            losses.append(torch.stack([terms.hidden.detach(), terms.output.detach()]))
        return torch.cat([torch.zeros(2, 0, device=self.device), *losses], dim=1)

    def prefetch(self, models: Tensor, samples: Tensor) -> None:
        """Begin to read what the next step needs first; arguments as for `accumulate`."""
        self.targets.prefetch(self._parts(models, samples)[0], samples)

    def _parts(self, models: Tensor, samples: Tensor) -> tuple[Tensor, ...]:
        """Return the models of each pass, among those of this process."""
        per_pass = self.models_per_pass(samples)
        # Solving maps that models share takes all processes, so all make as many passes.
        passes = -(-self.ranks.most(models, self.models) // per_pass)
        return (self._mine(models) - self._own.start).tensor_split(passes)

    def loss(self, terms: Terms, models: Tensor) -> Tensor:
        """Return (model,): what is minimised, of some of the models."""
        config = self.config
        penalty = config.theta_decay / 2 * self.objective.thetas[models].square().sum(1)
        weight = phase_at(self.step, config).alignment_weight
        return terms.hidden + config.output_weight * terms.output + penalty + weight * terms.aligned

    def models_per_pass(self, samples: Tensor) -> int:
        """Return how many models go through forward and backward at once."""
        rows = len(samples) * self.targets.rows_per_sample(samples)
        return max(ROWS_PER_PASS // rows, 1)

    def update(self, models: Tensor, samples: Tensor, losses: Tensor) -> None:
        """Change everything by the gradients that there are.

        Parameters
        ----------
        models, samples
            (model,) and (sample,) indices of the step.
        losses
            (2, own model): hidden and output loss of the models of this process.

        Raises
        ------
        DivergedFit
            If a gradient is NaN or infinite.
        """
        config, objective = self.config, self.objective
        hold_thetas(objective.thetas, self.optimiser, phase_at(self.step, config).dims)
        norm = self._norm()
        if not torch.isfinite(norm):
            raise self._diverged(models, samples, losses)
        nn.utils.clip_grads_with_norm_(objective.parameters(), config.clip, norm)
        everything, thetas, tokens = self.optimiser.param_groups
        rate = learning_rate(self.step, config)
        everything["lr"] = config.learning_rate * rate
        thetas["lr"] = (config.theta_learning_rate or config.learning_rate) * rate
        tokens["lr"] = (config.token_learning_rate or config.learning_rate) * rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.losses += losses.sum(1) / len(models)
        self.step += 1

    def _norm(self) -> Tensor:
        """Sum gradients of what processes share; return the norm of the gradient of all models."""
        parameters = dict(self.objective.named_parameters())
        if self.ranks.size == 1:
            return nn.utils.get_total_norm(
                [p.grad for p in parameters.values() if p.grad is not None]
            )
        own = self.objective.model_tensors
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

    def _mine(self, models: Tensor) -> Tensor:
        """Return those of some models that are of this process."""
        return models[(models >= self._own.start) & (models < self._own.stop)]

    def _diverged(self, models: Tensor, samples: Tensor, losses: Tensor) -> DivergedFit:
        named = self._population.ids
        broken = torch.zeros(self.models)
        broken[self._mine(models)] = (~torch.isfinite(losses.sum(0))).float().cpu()
        (broken,) = self.ranks.total([broken.to(self.device)])
        names = [named[model] for model in (broken.nonzero()[:, 0].tolist() or models.tolist())]
        ids = [self._population.sample_ids[sample] for sample in samples[:4].tolist()]
        return DivergedFit(
            f"The loss or its gradient became NaN or infinite at step {self.step + 1} (models "
            f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}; samples {', '.join(ids)}"
            f"{', ...' if len(samples) > 4 else ''}). Lower learning_rate, or verify the "
            "population."
        )


def step_together(steppers: Sequence[Stepper], drawn: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Make one step of each of several fits, in one call of all meta-models where that can be.

    Parameters
    ----------
    steppers
        Of one population.
    drawn
        Indices of the models and samples of the step of each.
    """
    one_pass = all(
        len(models) <= stepper.models_per_pass(samples) and stepper.ranks.size == 1
        for stepper, (models, samples) in zip(steppers, drawn, strict=True)
    )
    alike = len({(len(models), len(samples)) for models, samples in drawn}) == 1
    stacked = len(steppers) > 1 and one_pass and alike
    if not (stacked and can_be_stacked([t.objective.meta_model for t in steppers])):
        for stepper, (models, samples) in zip(steppers, drawn, strict=True):
            stepper.update(models, samples, stepper.accumulate(models, samples))
        return
    here = [models.to(t.device) for t, (models, _) in zip(steppers, drawn, strict=True)]
    batches = [t.targets.batch(*some) for t, some in zip(steppers, drawn, strict=True)]
    trajectories = run_stacked(
        [stepper.objective.meta_model for stepper in steppers],
        [batch.inputs for batch in batches],
        [t.objective.thetas[models] for t, models in zip(steppers, here, strict=True)],
        [batch.lengths for batch in batches],
    )
    losses, total = [], torch.zeros((), device=steppers[0].device)
    for stepper, trajectory, batch, models in zip(
        steppers, trajectories, batches, here, strict=True
    ):
        aligned = phase_at(stepper.step, stepper.config).alignment_weight > 0
        terms = stepper.objective.compare(trajectory, batch, models, aligned=aligned)
        total = total + stepper.loss(terms, models).sum() / len(models)
        losses.append(torch.stack([terms.hidden.detach(), terms.output.detach()]))
    total.backward()
    for stepper, (models, samples), own in zip(steppers, drawn, losses, strict=True):
        stepper.update(models, samples, own)
