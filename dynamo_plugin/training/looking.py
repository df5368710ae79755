"""A look at held-out samples while a fit runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynamo_plugin.training.evaluation import evaluate
from dynamo_plugin.training.objective import Objective
from dynamo_plugin.training.targets import TargetBatch, Targets
from dynamo_plugin.types import Trajectory

__all__ = ["look"]


def look(
    objective: Objective,
    targets: Targets,
    samples: Tensor,
    *,
    models: int,
    last_thetas: Tensor,
    output_weight: float,
) -> dict[str, float]:
    """Return what there is to say of a fit, the mean over models, on samples that it does not see.

    Parameters
    ----------
    objective, targets
        Those of this process.
    samples
        (sample,) int64 indices.
    models
        Number of models of all processes.
    last_thetas
        (own model, embedding_dim): the thetas at the last look, in the units in which they are
        learned, as all that is said of thetas here.
    output_weight
        Of the output loss.
    """
    thetas = objective.thetas.detach()
    sums = torch.zeros(2, dtype=torch.float64, device=thetas.device)

    def observe(
        batch: TargetBatch, trajectory: Trajectory, _: Mapping[str, Tensor], here: Tensor
    ) -> None:
        terms = objective.compare(trajectory, batch, here, aligned=False)
        sums.add_(torch.stack([terms.hidden.sum(), terms.output.sum()]), alpha=len(batch.lengths))

    objective.eval()
    seen = evaluate(
        objective.meta_model,
        objective.state_maps,
        thetas,
        targets,
        samples,
        decisions={group: term.logits for group, term in objective.outputs.items()},
        observe=observe,
    )
    objective.train()
    everyone = objective.ranks.gather(thetas, models)
    own = torch.stack(
        [
            *(sums / len(samples)).cpu(),
            seen.hidden_r2.sum(),
            seen.output_agreement.sum(),
            (thetas - last_thetas).double().square().sum().cpu(),
            thetas.double().norm(dim=1).sum().cpu(),
        ]
    ).to(thetas.device)
    means = objective.ranks.total([own])[0] / models
    hidden, output, r2, agreement, movement, size = means.tolist()
    return {
        "held_out_loss": hidden + output_weight * output,
        "held_out_hidden_r2": r2,
        "held_out_output_agreement": agreement,
        "theta_norm": size,
        "theta_spread": float((everyone - everyone.mean(0)).square().sum(1).mean().sqrt()),
        "theta_movement": movement**0.5,
    }
