"""The last solution of the state maps: for many training samples, summed in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from dynamo_plugin.metamodels import SolvableStateMaps
from dynamo_plugin.training.evaluation import samples_per_batch
from dynamo_plugin.training.objective import Objective
from dynamo_plugin.training.targets import Targets

__all__ = ["settle"]

ROWS_PER_FEATURE = 256
"""Rows of states that a map is solved from, for each number that goes into it. A regression on r
rows of d features explains what it has not seen worse by a factor of about 1 + d / r."""


@torch.no_grad()
def settle(objective: Objective, targets: Targets, samples: Tensor) -> None:
    """Solve all state maps for what the meta-model does on some samples, at least on enough rows.

    Parameters
    ----------
    objective
        Its maps are changed, of those that are solved; there need not be any.
    targets
        Reads the stored states.
    samples
        (sample,) int64 indices, in random order.
    """
    rows = ROWS_PER_FEATURE * max(objective.meta_model.stage_units.values())
    samples = targets.first_with_rows(samples, rows)
    thetas = objective.thetas.detach()
    settled = [
        (stage, maps, maps.new_moments(decay=None, dtype=torch.float64).to(thetas.device))
        for maps_of in objective.all_maps.values()
        for stage, maps in maps_of.items()
        if isinstance(maps, SolvableStateMaps) and maps.solver == "ridge"
    ]
    if not settled:
        return
    for models in torch.arange(len(thetas)).split(64):
        here = models.to(thetas.device)
        for chunk in samples.split(samples_per_batch(targets, samples, models=len(models))):
            batch = targets.batch(models, chunk)
            trajectory = objective.meta_model(
                batch.inputs[None], thetas[here][:, None], batch.lengths[None]
            )
            for stage, maps, moments in settled:
                target = maps.normalise(batch.states[stage], here)
                mask, states = batch.masks[stage], trajectory.states[stage]
                maps.collect(moments, states, target, mask, here)
    everything = torch.arange(len(thetas), device=thetas.device)
    for _, maps, moments in settled:
        maps.solve_for(moments, everything, thetas, total=objective.ranks.total)
        maps.forget()
