"""The state of a fit as named tensors that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynamo_plugin.training.objective import Objective

__all__ = ["objective_state", "optimiser_state", "restore_optimiser", "under"]


def objective_state(objective: Objective, models: int) -> dict[str, Tensor]:
    """Return the state of the objective of all models, on the CPU.

    Parameters
    ----------
    objective
        The part of this process.
    models
        Number of models of all processes.
    """
    learned = {name for name, _ in objective.named_parameters()}
    own, ranks = objective.model_tensors, objective.ranks
    state = {}
    for name, tensor in objective.state_dict().items():
        joined = ranks.gather(tensor, models) if name in own else tensor
        if name not in learned | own and tensor.is_floating_point():
            # Statistics of batches, which every process has its own of.
            joined = ranks.total([tensor])[0] / ranks.size
        state[name] = joined.detach().cpu()
    return state


def optimiser_state(
    objective: Objective, optimiser: torch.optim.Optimizer, models: int
) -> dict[str, Tensor]:
    """Return the state of Adam, as `parameter.quantity`, on the CPU; parameters as above."""
    own = objective.model_tensors
    state = {}
    for name, parameter in objective.named_parameters():
        for key, value in optimiser.state[parameter].items():
            whole = name not in own or value.shape != parameter.shape
            joined = value if whole else objective.ranks.gather(value, models)
            state[f"{name}.{key}"] = joined.cpu()
    return state


def restore_optimiser(
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    models: int,
) -> None:
    """Undo `optimiser_state`."""
    mine = objective.ranks.own(models)
    own = objective.model_tensors
    for name, parameter in objective.named_parameters():
        for key, value in under(f"{name}.", state).items():
            if value.ndim == 0:  # the number of steps, which Adam keeps on the CPU
                optimiser.state[parameter][key] = value.clone()
                continue
            part = value[mine.start : mine.stop] if name in own else value
            optimiser.state[parameter][key] = part.to(parameter.device, copy=True)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without the beginning."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
