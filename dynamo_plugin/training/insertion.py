"""Thetas and state maps of new networks, for a meta-model that stays as it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dynamo_plugin.errors import DivergedFit
from dynamo_plugin.metamodels import (
    STATE_MAPS,
    AmortisedStateMaps,
    OrthogonalStateMaps,
    SharedStateMaps,
    SolvableStateMaps,
    StageMaps,
    aligned_units,
)
from dynamo_plugin.registry import get_registry
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.training.alignment import rotation_onto
from dynamo_plugin.training.building import choose_output_losses, output_terms
from dynamo_plugin.training.config import FitConfig
from dynamo_plugin.training.evaluation import samples_per_batch
from dynamo_plugin.training.objective import Objective
from dynamo_plugin.training.phases import hold_thetas, learning_rate, phase_at, theta_units
from dynamo_plugin.training.sampler import draw_batches
from dynamo_plugin.training.settling import settle
from dynamo_plugin.training.stepping import ROWS_PER_PASS
from dynamo_plugin.training.targets import Targets

__all__ = ["Inserted", "insert"]

FASTER = 3
"""How many times faster than in a fit thetas are learned, since the meta-model is there already."""

ALIGNED_SAMPLES = 128
"""Samples on which new networks are rotated onto what the meta-model does."""


@dataclass(frozen=True, slots=True)
class Inserted:
    """What was found for new networks."""

    thetas: Tensor
    """(model, embedding_dim), on the CPU."""
    state_maps: StageMaps
    """Theirs; what models share is that of the embedding."""
    common_maps: StageMaps | None
    """Likewise."""


def insert(
    meta_model: MetaModel,
    state_maps: StageMaps,
    common_maps: StageMaps | None,
    thetas: Tensor,
    targets: Targets,
    samples: Tensor,
    config: FitConfig,
    *,
    device: torch.device,
    progress: bool,
) -> Inserted:
    """Minimise the objective of a fit over the thetas and state maps of new networks alone.

    State maps that each model has for itself are solved in closed form where they have one; maps
    that models share stay as they are, and new networks are rotated onto what these predict.

    Parameters
    ----------
    meta_model, state_maps, common_maps, thetas
        Of the embedding; none of them is changed.
    targets
        Reads the states of the new networks.
    samples
        (sample,) int64 indices of the training samples.
    config
        Of the fit, with the number of steps and the batch size to take.
    device
        Where to compute.
    progress
        Whether to show a bar on stderr.

    Raises
    ------
    DivergedFit
        If a theta becomes NaN or infinite.
    """
    meta_model = copy.deepcopy(meta_model)
    frozen = all(not parameter.requires_grad for parameter in meta_model.parameters())
    assert frozen, "the meta-model of an embedding learns nothing"
    new = {
        name: None if maps_of is None else _new_maps(maps_of, targets, samples, config)
        for name, maps_of in (("state_maps", state_maps), ("common_maps", common_maps))
    }
    assert new["state_maps"] is not None
    losses = choose_output_losses(meta_model.spec.outputs, config.output_loss)
    start = thetas.mean(0).expand(len(targets.ids), -1).clone()
    objective = Objective(
        meta_model,
        new["state_maps"],
        start,
        hidden_loss=get_registry().load("loss", config.hidden_loss),
        outputs=output_terms(meta_model.spec, losses, targets, samples),
        common_maps=new["common_maps"],
    ).to(device)
    objective.train()
    meta_model.eval()
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    maps = [parameter for parameter in learned if parameter is not objective.thetas]
    units = theta_units(config)
    objective.rescale_theta(1 / units)
    optimiser = torch.optim.Adam([{"params": [objective.thetas]}, {"params": maps}])
    config = replace(config, theta_init="random")  # none waits for a meta-model that can do nothing
    peaks = (FASTER * (config.theta_learning_rate or config.learning_rate), config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed + 5)
    batches = draw_batches(
        samples,
        batch_size=config.batch_size,
        models=len(targets.ids),
        models_per_step=None,
        generator=generator,
    )
    bar = tqdm(
        islice(batches, config.steps),
        total=config.steps,
        desc="insert",
        unit="step",
        disable=not progress,
    )
    for step, (models, some) in enumerate(bar):
        phase = phase_at(step, config)
        if step - phase.start in (0, (phase.stop - phase.start) // 2):
            order = torch.randperm(len(samples), generator=generator)
            _align(objective, targets, samples[order[:ALIGNED_SAMPLES]], first=step == 0)
        optimiser.zero_grad(set_to_none=True)
        rows = len(some) * targets.rows_per_sample(some)
        for part in models.split(max(ROWS_PER_PASS // rows, 1)):
            here = part.to(device)
            weight = phase.alignment_weight
            terms = objective(targets.batch(part, some), here, aligned=weight > 0)
            loss = terms.hidden + config.output_weight * terms.output + weight * terms.aligned
            penalty = config.theta_decay / 2 * objective.thetas[here].square().sum(1)
            (loss + penalty).sum().backward()
        hold_thetas(objective.thetas, optimiser, phase.dims)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate(step, config)
        optimiser.step()
    if not bool(objective.thetas.isfinite().all()):
        broken = (~objective.thetas.isfinite().all(1)).nonzero()[:, 0].tolist()
        raise DivergedFit(
            f"The thetas of {', '.join(targets.ids[model] for model in broken)} became NaN or "
            "infinite. Verify the population."
        )
    objective.requires_grad_(False).eval()  # noqa: FBT003
    objective.rescale_theta(units)
    settle(objective, targets, samples[torch.randperm(len(samples), generator=generator)])
    objective.cpu()
    return Inserted(objective.thetas.detach(), objective.state_maps, objective.common_maps)


def _new_maps(
    maps_of: StageMaps, targets: Targets, samples: Tensor, config: FitConfig
) -> StageMaps:
    """Return maps for the models of the targets, of the kind of some that there are."""
    kind = STATE_MAPS[maps_of.kind]
    shared = issubclass(kind, AmortisedStateMaps | SharedStateMaps)
    solved = issubclass(kind, SolvableStateMaps) and not shared
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 6)
        new = StageMaps(
            maps_of.kind,
            {stage: maps.source_units for stage, maps in maps_of.items()},
            {stage.name: stage.units for stage in targets.stages},
            embedding_dim=maps_of.embedding_dim,
            solver=next(iter(maps_of.items()))[1].solver,
        )
    for stage, old in maps_of.items():
        mean, scales = targets.state_statistics(samples, stage)
        joined = old.join(new[stage])
        maps = joined.select(range(len(old), len(joined)))
        if isinstance(maps, AmortisedStateMaps):
            # As the others were: all of one size in the space that they share.
            scales = scales * (torch.tensor(maps.units) / aligned_units(old.units)).sqrt()
        maps.mean.copy_(mean)
        if config.hidden_scale == "variance":
            maps.scale.copy_(scales)
        maps.solver = "ridge" if solved else "gradient"
        new[stage] = maps.requires_grad_(not shared and not solved)
    return new


@torch.no_grad()
def _align(objective: Objective, targets: Targets, samples: Tensor, *, first: bool) -> None:
    """Rotate the states of new models onto what the shared maps predict of them.

    Orthogonal maps, which are learned, start from the rotation of the meta-model's states onto
    those of the new models.
    """
    models = torch.arange(len(targets.ids)).to(objective.thetas.device)
    for maps_of in objective.all_maps.values():
        for stage, maps in maps_of.items():
            if isinstance(maps, AmortisedStateMaps):
                products, _ = _products(objective, targets, samples, stage, maps)
                maps.rotation.copy_(rotation_onto(products))
            elif isinstance(maps, OrthogonalStateMaps) and first:
                products, squares = _products(objective, targets, samples, stage, None)
                maps.start_from(models, products.mT, squares)


def _products(
    objective: Objective,
    targets: Targets,
    samples: Tensor,
    stage: str,
    shared: AmortisedStateMaps | None,
) -> tuple[Tensor, Tensor]:
    """Sum p^T h and |p|^2 over rows, p what a shared map predicts, or else the meta-model's state.

    Returns
    -------
    tuple of Tensor
        (model, width of p, max units) and (model,).
    """
    maps = objective.state_maps[stage] if shared is None else shared
    everything = torch.arange(len(targets.ids))
    products, squares = [], []
    for models in everything.split(64):
        here = models.to(objective.thetas.device)
        thetas = objective.thetas[here]
        product, square = objective.thetas.new_zeros(()), objective.thetas.new_zeros(())
        for chunk in samples.split(samples_per_batch(targets, samples, models=len(models))):
            batch = targets.batch(models, chunk)
            states = objective.meta_model(
                batch.inputs[None], thetas[:, None], batch.lengths[None]
            ).states[stage]
            rows = states if shared is None else shared(states, here, thetas)
            rows = (rows * batch.masks[stage][..., None]).flatten(1, 2)
            standardise = maps.normalise if shared is None else shared.standardise
            own = standardise(batch.states[stage], here).flatten(1, 2)
            product = product + rows.mT @ own
            square = square + rows.square().sum((1, 2))
        products.append(product)
        squares.append(square)
    return torch.cat(products), torch.cat(squares)
