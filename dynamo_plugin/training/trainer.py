"""Fits a meta-model, its thetas and its state maps to a population."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dynamo_plugin.errors import DivergedFit, InvalidInput
from dynamo_plugin.metamodels import StageMaps
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.store import Population
from dynamo_plugin.training.building import build
from dynamo_plugin.training.config import FitConfig
from dynamo_plugin.training.evaluation import evaluate
from dynamo_plugin.training.objective import Objective
from dynamo_plugin.training.sampler import draw_batches, split_samples
from dynamo_plugin.training.settling import settle
from dynamo_plugin.training.targets import Targets

__all__ = ["FittedModels", "train"]

HISTORY_ROWS = 25
"""How often a fit looks at held-out samples and writes a line of history."""

ROWS_PER_PASS = 400_000
"""Rows of states, models x sequences x time steps (or positions of all stages), that go through
forward and backward at once. A step over more than that is made of several passes whose gradients
add up, which bounds its memory: a recurrent pass keeps about 50 bytes per meta unit and row."""

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


def train(
    population: Population, config: FitConfig, *, device: torch.device, progress: bool
) -> FittedModels:
    """Minimise the DYNAMO objective jointly over the meta-model, all thetas and all state maps.

    Cotler et al. 2023 (arXiv:2302.14078), section 2.2 and Algorithm 1, with every model of a step
    in one batched call.

    Parameters
    ----------
    population
        At least two complete models on at least two samples.
    config
        The settings; together with the population they determine the result on one machine.
    device
        Where to train.
    progress
        Whether to show a bar on stderr.

    Raises
    ------
    InvalidInput
        If there is too little to embed.
    UnknownName
        If the family or a loss is not registered.
    DivergedFit
        If the loss becomes NaN or infinite; names the step, the models and the samples.
    """
    if len(population.ids) < 2:
        raise InvalidInput(
            f"A model embedding compares networks: it needs at least 2, and this population has "
            f"{len(population.ids)}. Capture more models into it."
        )
    training, held_out = split_samples(
        len(population.sample_ids), held_out=config.held_out, seed=config.seed
    )
    objective, targets, config = build(population, training, config, device=device)
    objective.to(device)
    optimiser, schedule = _optimiser(objective, config)
    decisions = {group: term.logits for group, term in objective.outputs.items()}
    watched = held_out[:HISTORY_SAMPLES]
    generator = torch.Generator().manual_seed(config.seed + 1)
    batches = draw_batches(
        training,
        batch_size=config.batch_size,
        models=len(population.ids),
        models_per_step=config.models_per_step,
        generator=generator,
    )
    history: list[dict[str, float]] = []
    interval = max(config.steps // HISTORY_ROWS, 1)
    sums = torch.zeros(2, device=device)
    since = 0
    last_thetas = objective.thetas.detach().clone()
    bar = tqdm(
        islice(batches, config.steps),
        total=config.steps,
        desc="fit",
        unit="step",
        disable=not progress,
    )
    for step, (models, samples) in enumerate(bar, start=1):
        optimiser.zero_grad(set_to_none=True)
        losses = _accumulate(objective, targets, models, samples, config)
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), config.clip)
        if not torch.isfinite(norm):
            raise _diverged(population, step, models, samples, losses.sum(0))
        optimiser.step()
        schedule.step()
        sums += losses.mean(1)
        since += 1
        if step % interval == 0 or step == config.steps:
            objective.eval()
            looked = evaluate(
                objective.meta_model,
                objective.state_maps,
                objective.thetas,
                targets,
                watched,
                decisions=decisions,
            )
            objective.train()
            thetas = objective.thetas.detach()
            mean_hidden, mean_output = (sums / since).tolist()
            history.append(
                {
                    "step": step,
                    "hidden_loss": mean_hidden,
                    "output_loss": mean_output,
                    "loss": mean_hidden + config.output_weight * mean_output,
                    "held_out_hidden_r2": float(looked.hidden_r2.mean()),
                    "held_out_output_agreement": float(looked.output_agreement.mean()),
                    "theta_norm": float(thetas.norm(dim=1).mean()),
                    "theta_movement": float((thetas - last_thetas).norm(dim=1).mean()),
                    "learning_rate": float(schedule.get_last_lr()[0]),
                }
            )
            bar.set_postfix(
                refresh=False,
                hidden=f"{mean_hidden:.3f}",
                R2=f"{history[-1]['held_out_hidden_r2']:.3f}",
            )
            last_thetas = thetas.clone()
            sums.zero_()
            since = 0
    objective.requires_grad_(False).eval()  # noqa: FBT003
    if config.state_map_solver == "ridge":
        settle(objective, targets, training[torch.randperm(len(training), generator=generator)])
    objective.cpu()
    return FittedModels(
        objective.meta_model,
        objective.state_maps,
        objective.common_maps,
        objective.thetas.detach(),
        history,
        training,
        held_out,
        config,
    )


def _accumulate(
    objective: Objective, targets: Targets, models: Tensor, samples: Tensor, config: FitConfig
) -> Tensor:
    """Add the gradient of one step; return the hidden and output losses, (2, model)."""
    rows = len(samples) * targets.rows_per_sample(samples)
    per_pass = max(ROWS_PER_PASS // rows, 1)
    losses = []
    for part in models.split(per_pass):
        here = part.to(objective.thetas.device)
        terms = objective(targets.batch(part, samples), here)
        penalty = config.theta_decay / 2 * objective.thetas[here].square().sum(1)
        loss = terms.hidden + config.output_weight * terms.output + penalty
        loss = loss + config.alignment_weight * terms.aligned
        (loss.sum() / len(models)).backward()
        losses.append(torch.stack([terms.hidden.detach(), terms.output.detach()]))
    return torch.cat(losses, dim=1)


def _optimiser(
    objective: Objective, config: FitConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    shared = [*objective.meta_model.parameters(), *objective.state_maps.parameters()]
    optimiser = torch.optim.Adam(
        [
            {"params": shared, "lr": config.learning_rate},
            {
                "params": [objective.thetas],
                "lr": config.theta_learning_rate or config.learning_rate,
            },
        ]
    )

    def rate(step: int) -> float:
        if step < config.warmup:
            return (step + 1) / (config.warmup + 1)
        done = (step - config.warmup) / max(config.steps - config.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _diverged(
    population: Population, step: int, models: Tensor, samples: Tensor, losses: Tensor
) -> DivergedFit:
    broken = models[~torch.isfinite(losses.detach().cpu())].tolist()
    names = [population.ids[model] for model in (broken or models.tolist())]
    ids = [population.sample_ids[sample] for sample in samples[:4].tolist()]
    return DivergedFit(
        f"The loss or its gradient became NaN or infinite at step {step} (models "
        f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}; samples {', '.join(ids)}"
        f"{', ...' if len(samples) > 4 else ''}). Lower learning_rate, or verify the population."
    )
