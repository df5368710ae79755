"""The embedded networks themselves: averaged weight by weight, and run on the same inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest
from dynamo_plugin.recording import live_population
from dynamo_plugin.registry.fingerprint import model_hash

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.recording.recorder import ModelSource

__all__ = ["made_networks", "mix_weights", "run_networks"]


def made_networks(
    embedding: ModelEmbedding, models: Mapping[str, ModelSource], wanted: Sequence[str]
) -> dict[str, nn.Module]:
    """Return the networks of some embedded models, made by their factories where need be.

    Raises
    ------
    InvalidInput
        If one is missing, is no PyTorch network, or is not the one that was embedded.
    UnknownName
        If `models` has one that the embedding does not have.
    """
    for model in models:
        if model not in embedding.ids:
            raise UnknownName(
                f"models has {model!r}, which the embedding does not have. "
                f"{suggest(str(model), embedding.ids)}"
            )
    networks = {}
    for model in wanted:
        if model not in models:
            raise InvalidInput(f"models lacks {model!r}. Give the network of every model needed.")
        source = models[model]
        made = source if isinstance(source, nn.Module) else source()
        if not isinstance(made, nn.Module):
            raise InvalidInput(
                f"Weights are averaged of PyTorch networks; model {model!r} is of type "
                f"{type(made).__name__}."
            )
        if model_hash(made) != embedding.population.model_hash(model):
            raise InvalidInput(
                f"The network {model!r} in models is not the one that was embedded: class or "
                "weights differ. Load the checkpoint that was captured."
            )
        networks[model] = made
    return networks


def mix_weights(networks: Mapping[str, nn.Module], coefficients: ArrayLike) -> nn.Module:
    """Return a network whose parameters and buffers are a combination of those of some networks.

    Parameters
    ----------
    networks
        By name, of one class, with parameters of the same names and shapes. Nothing is changed.
    coefficients
        (network,), which should add up to 1. What is not floating point, such as counters, is that
        of the first network.

    Raises
    ------
    InvalidInput
        If the networks do not match; names what differs.
    """
    weights = np.asarray(coefficients, dtype=np.float64)
    (first, network), *others = networks.items()
    mixed = copy.deepcopy(network)
    own = mixed.state_dict()
    states = {first: own, **{name: other.state_dict() for name, other in others}}
    for name, other in others:
        difference = _difference(network, other, own, states[name])
        if difference:
            raise InvalidInput(
                f"Weights of {first!r} and {name!r} cannot be averaged: {difference}. Only "
                "networks of one architecture and size have weights that correspond."
            )
    with torch.no_grad():
        found = {
            key: sum(
                (
                    weight * state[key].double()
                    for weight, state in zip(weights.tolist(), states.values(), strict=True)
                ),
                torch.zeros((), dtype=torch.float64),
            ).to(value.dtype)
            for key, value in own.items()
            if value.is_floating_point()
        }
    mixed.load_state_dict(own | found)
    return mixed


def run_networks(
    embedding: ModelEmbedding,
    networks: Mapping[str, nn.Module],
    samples: NDArray[np.int64],
    *,
    capture_options: Mapping[str, Any] | None = None,
) -> dict[str, NDArray[Any]]:
    """Return what networks answer to some samples of the embedded population.

    Parameters
    ----------
    networks
        By any names.
    samples
        (sample,) indices, each once.
    capture_options
        Keyword arguments of `live_population` that say how the networks are read, as they were
        given to `capture`: adapter, adapter_options, layers, forward, output, batch_size, device.

    Returns
    -------
    dict
        Name to (sample or row, *shape) outputs.

    Raises
    ------
    InvalidInput, UnsupportedModel, CaptureError
        As `live_population`.
    NonFiniteStates
        If a network computes NaN or infinity.
    """
    inputs = embedding.population.inputs.take(samples)
    population = live_population(dict(networks), inputs, **(capture_options or {}))
    return {name: population.outputs(name) for name in networks}


def _difference(
    first: nn.Module,
    second: nn.Module,
    own: Mapping[str, torch.Tensor],
    others: Mapping[str, torch.Tensor],
) -> str:
    """Return what keeps two networks from being averaged; empty if nothing does."""
    if type(first) is not type(second):
        return f"they are a {type(first).__name__} and a {type(second).__name__}"
    unmatched = sorted(own.keys() ^ others.keys())
    if unmatched:
        return f"only one of them has {unmatched[0]!r}"
    for key, value in own.items():
        if value.shape != others[key].shape:
            return f"{key!r} is {tuple(value.shape)} and {tuple(others[key].shape)}"
    return ""
