"""The last solution of state maps and readouts, for what the meta-model does in the end."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dynamo_plugin.metamodels import SolvableStateMaps
from dynamo_plugin.training.evaluation import samples_per_batch
from dynamo_plugin.training.objective import Objective
from dynamo_plugin.training.readings import Readings
from dynamo_plugin.training.targets import Targets

__all__ = ["settle"]

ROWS_PER_FEATURE = 256
"""Rows of states that a map is solved from, for each number that goes into it. A regression on r
rows of d features explains what it has not seen worse by a factor of about 1 + d / r."""


@torch.no_grad()
def settle(
    objective: Objective, targets: Targets, samples: Tensor, *, readouts: bool = False
) -> None:
    """Solve all state maps for what the meta-model does on some samples, at least on enough rows.

    Moments are summed in double precision.

    Parameters
    ----------
    objective
        Its maps are changed, of those that are solved; there need not be any.
    targets
        Reads the stored states.
    samples
        (sample,) int64 indices, in random order; repeats are allowed.
    readouts
        Whether readouts are fitted too, see `Readings`.
    """
    rows = ROWS_PER_FEATURE * max(objective.meta_model.stage_units.values())
    thetas = objective.thetas.detach()
    settled = [
        (stage, maps, maps.new_moments(decay=None, dtype=torch.float64).to(thetas.device))
        for maps_of in objective.all_maps.values()
        for stage, maps in maps_of.items()
        if isinstance(maps, SolvableStateMaps) and maps.solver == "ridge"
    ]
    readings = Readings(objective)
    solved = len(targets.first_with_rows(samples, rows)) if settled else 0
    read = readings.samples_wanted(targets, samples) if readouts else 0
    numbers = _first_places(samples)
    with readings:
        for models in torch.arange(len(thetas)).split(64):
            here = models.to(thetas.device)
            size = samples_per_batch(targets, samples, models=len(models))
            bounds = sorted({0, solved, read})
            for start, stop in pairwise(bounds):
                for places in torch.arange(start, stop).split(size):
                    batch = targets.batch(models, samples[places], states=start < solved)
                    trajectory = objective.meta_model(
                        batch.inputs[None], thetas[here][:, None], batch.lengths[None]
                    )
                    if start < read:
                        readings.add(batch, trajectory, here, numbers[places])
                    for stage, maps, moments in settled if start < solved else ():
                        target = maps.normalise(batch.states[stage], here)
                        mask, states = batch.masks[stage], trajectory.states[stage]
                        maps.collect(moments, states, target, mask, here)
    everything = torch.arange(len(thetas), device=thetas.device)
    for _, maps, moments in settled:
        maps.solve_for(moments, everything, thetas, total=objective.ranks.total)
        maps.forget()
    if readouts:
        readings.fit()


def _first_places(samples: Tensor) -> Tensor:
    """Return (sample,): where each sample occurs first.

    What is repeated has one number, so that no copy of a sample judges what another was fitted to.
    """
    distinct, which = samples.unique(return_inverse=True)
    places = torch.arange(len(samples))
    first = places.new_full((len(distinct),), len(samples))
    return first.scatter_reduce(0, which, places, "amin")[which]
