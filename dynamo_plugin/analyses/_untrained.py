"""What the states of a meta-model that never learned anything explain of those of the networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dynamo_plugin.metamodels import AffineStateMaps, SolvableStateMaps, StageMaps
from dynamo_plugin.registry import get_registry
from dynamo_plugin.training.building import choose_output_losses, output_terms
from dynamo_plugin.training.objective import Objective
from dynamo_plugin.training.settling import settle

if TYPE_CHECKING:
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.registry.interfaces import MetaModel
    from dynamo_plugin.training import Targets

__all__ = ["untrained_networks"]


@torch.no_grad()
def untrained_networks(
    embedding: ModelEmbedding, targets: Targets, *, seed: int
) -> tuple[MetaModel, StageMaps, bool]:
    """Return a meta-model with its first random weights, and the best maps from its states.

    Maps are solved on training samples, as a fit solves them after its last step, and so are the
    readouts, where the family has some that can be fitted alone.

    Parameters
    ----------
    embedding
        Says which family, of which size, at which thetas, with which kind of maps.
    targets
        Reads the states of all its models.
    seed
        Decides the weights.

    Returns
    -------
    tuple
        The meta-model; the maps, affine where those of the fit have no closed form; and whether
        readouts were fitted.
    """
    config, spec = embedding.config, embedding.meta_model.spec
    registry = get_registry()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        meta_model: MetaModel = registry.load("meta_model", config.family)(
            spec, **embedding.meta_model.options()
        )
    maps = _solvable(embedding)
    losses = choose_output_losses(spec.outputs, config.output_loss)
    objective = Objective(
        meta_model,
        maps,
        embedding.thetas,
        hidden_loss=registry.load("loss", config.hidden_loss),
        outputs=output_terms(spec, losses, targets, embedding.training_samples),
    )
    objective.requires_grad_(False).eval()  # noqa: FBT003
    read = getattr(meta_model, "readouts", None) is not None
    # The samples in the order in which the maps of the fit were solved.
    generator = torch.Generator().manual_seed(config.seed + 4)
    samples = embedding.training_samples
    order = torch.randperm(len(samples), generator=generator)
    settle(objective, targets, samples[order], readouts=read)
    return meta_model, maps, read


def _solvable(embedding: ModelEmbedding) -> StageMaps:
    """Return copies of the maps that are solved in closed form, or affine ones in their place."""
    maps_of = embedding.state_maps
    chosen = maps_of.select(range(len(embedding)))
    for stage, maps in maps_of.items():
        own = chosen[stage]
        if not isinstance(own, SolvableStateMaps):
            own = AffineStateMaps(maps.source_units, maps.units, solver="ridge")
            own.mean.copy_(maps.mean)
            own.scale.copy_(maps.scale)
            chosen[stage] = own
        own.solver = "ridge"
    return chosen
