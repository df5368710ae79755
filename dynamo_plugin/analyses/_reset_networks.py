"""Networks as they were before they learned anything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn

from dynamo_plugin.analyses._networks import made_networks
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest
from dynamo_plugin.recording import live_population

if TYPE_CHECKING:
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.recording.recorder import ModelSource
    from dynamo_plugin.store import Population

__all__ = ["UntrainedFactory", "reinitialised", "untrained_population"]

UntrainedFactory: TypeAlias = "Callable[[int], nn.Module]"
"""From a seed to a network that was never trained."""


def untrained_population(
    embedding: ModelEmbedding,
    models: Mapping[str, ModelSource] | None,
    untrained: Mapping[str, UntrainedFactory] | None,
    *,
    seed: int,
    capture_options: Mapping[str, Any] | None = None,
) -> Population:
    """Return the embedded networks with initial weights, run on the inputs of the population.

    Parameters
    ----------
    embedding
        Its population says inputs, metadata and output groups.
    models
        Id to network or factory: those that were embedded. They are copied and reset.
    untrained
        Id to a function from a seed to an untrained network; the networks of other ids are reset.
    seed
        Of the weights.
    capture_options
        As in `run_networks`.

    Raises
    ------
    InvalidInput, UnknownName
        If a network is missing, is not the one that was embedded, or cannot be reset.
    """
    given = dict(untrained or {})
    for model in given:
        if model not in embedding.ids:
            raise UnknownName(
                f"untrained has {model!r}, which the embedding does not have. "
                f"{suggest(str(model), embedding.ids)}"
            )
    trained = made_networks(
        embedding, models or {}, [model for model in embedding.ids if model not in given]
    )
    networks = {}
    for place, model in enumerate(embedding.ids):
        own_seed = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
        if model in given:
            made = given[model](own_seed)
            if not isinstance(made, nn.Module):
                raise InvalidInput(
                    f"Untrained networks must be PyTorch modules; that of {model!r} is of type "
                    f"{type(made).__name__}."
                )
            networks[model] = made.eval()
        else:
            networks[model] = reinitialised(trained[model], seed=own_seed, name=model)
    population = embedding.population
    return live_population(
        networks,
        population.inputs,
        metadata=embedding.metadata,
        output_groups={model: population.output_group(model) for model in embedding.ids},
        **(capture_options or {}),
    )


def reinitialised(network: nn.Module, *, seed: int, name: str) -> nn.Module:
    """Return a copy of a network with new initial weights.

    Every submodule that has `reset_parameters` resets itself, parents before children.

    Parameters
    ----------
    network
        Is not changed.
    seed
        Of the weights; the global generators stay as they are.
    name
        What to call it where that fails.

    Raises
    ------
    InvalidInput
        If a parameter is reached by no reset; names the module.
    """
    fresh = copy.deepcopy(network)
    devices = sorted({p.device.index or 0 for p in fresh.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        # Whatever is not reset stays what no initialisation gives.
        for parameter in fresh.parameters():
            parameter.fill_(torch.nan)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset) and isinstance(module, nn.MultiheadAttention):
                reset = module._reset_parameters
            if callable(reset):
                reset()
    for owner, module in fresh.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if not bool(parameter.isfinite().all()):
                kind = type(module).__name__
                where = f"{owner!r} ({kind})" if owner else f"the network itself ({kind})"
                raise InvalidInput(
                    f"The parameter {own!r} of {where} in model {name!r} is reached by no "
                    "reset_parameters(), so that its initial values are unknown. Give untrained="
                    "{id: function of a seed that makes an untrained network}."
                )
    return fresh
