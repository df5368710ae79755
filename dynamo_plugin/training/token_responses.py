"""A token embedding to start from: what each token does to the states of the base models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamo_plugin.training.stages import HIDDEN
from dynamo_plugin.training.targets import SAMPLES_PER_READ, Targets

__all__ = ["embed_token_responses"]

RESPONSE_DIMS = 1024
"""Responses wider than that, over all models together, are projected at random first."""


MODELS_PER_READ = 16
"""Models whose states are held at once."""

RMS = 0.3
"""Size of the result. It was chosen on one population; 0.1 does nearly as well."""


def embed_token_responses(
    targets: Targets,
    samples: Tensor,
    scale: Tensor,
    *,
    vocabulary: int,
    token_dim: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the principal components of the mean state change that follows each token.

    The response of a recurrent model to a token is the mean of h_t - h_(t-1), with h_(-1) = 0, over
    the training steps at which the token is read, in units of the model's state scale. Where only
    every k-th state was stored, a change between two of them is shared equally by the tokens read
    since the first. The response of a layered model is the mean of its first recorded state. The
    responses of all models, side by side, are centred and reduced to their leading components,
    tokens weighted by their counts.

    Parameters
    ----------
    targets
        Reads the stored states of a population whose inputs are ids.
    samples
        (sample,) int64 indices of the training samples.
    scale
        (model,) standard deviation of every model's states at the first stage; of this process's
        own models, where several share them.
    vocabulary
        Number of distinct ids.
    token_dim
        Number of components; those beyond the rank of the responses are zero.
    generator
        Of the random projection.

    Returns
    -------
    Tensor
        (vocabulary, token_dim) float32 with a root mean square of 0.3, tokens weighted by their
        counts; zero for tokens that do not occur.
    """
    stage = targets.stages[0]
    recurrent = stage.name == HIDDEN
    widths = list(stage.units)
    every_of = torch.tensor(stage.every)
    own_models = torch.tensor(targets.own)
    total = sum(widths)
    dims = min(total, RESPONSE_DIMS)
    projections = (
        (torch.randn(total, dims, generator=generator) / math.sqrt(dims)).split(widths)
        if total > dims
        else torch.eye(total).split(widths)
    )
    strides = every_of.unique().tolist()
    counts = torch.zeros(len(strides), vocabulary)
    sums = torch.zeros(len(strides), vocabulary, dims)
    first = targets.own.start
    for part in own_models.split(MODELS_PER_READ):
        own = torch.zeros(len(part), vocabulary, max(widths))
        for chunk in samples.split(SAMPLES_PER_READ):
            batch = targets.batch(part - first, chunk)
            lengths, inputs = batch.lengths.cpu(), batch.inputs.cpu()
            states = batch.states[stage.name].cpu()
            for kind, every in enumerate(strides):
                followed = _followed(lengths, every)
                tokens = inputs[followed]
                if part[0] == first:
                    counts[kind].index_add_(0, tokens, torch.ones(len(tokens)))
                for place in (every_of[part] == every).nonzero()[:, 0].tolist():
                    read = states[place]
                    change = _changes(read, every) if recurrent else read
                    own[place].index_add_(0, tokens, change[followed])
        for place, model in enumerate(part.tolist()):
            response = own[place, :, : widths[model]] / scale[model - first]
            sums[strides.index(int(every_of[model]))] += response @ projections[model]
    (sums,) = targets.ranks.total([sums])
    responses = (sums / counts.clamp(min=1)[..., None]).sum(0)
    counts = counts.sum(0)
    weights = counts / counts.sum()
    centred = (responses - weights @ responses) * (counts > 0)[:, None]
    covariance = (centred * weights[:, None]).T.double() @ centred.double()
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(-1)[:, :token_dim].float()
    embedded = torch.zeros(vocabulary, token_dim)
    embedded[:, : axes.shape[1]] = centred @ axes
    size = (weights @ embedded.square()).mean().sqrt()
    return embedded * (RMS / size) if size > 0 else embedded


def _followed(lengths: Tensor, every: int) -> Tensor:
    """Return (sample, time): the real steps at or after which a state was stored."""
    return _next_stored(int(lengths.max()), every) < lengths[:, None]


def _changes(states: Tensor, every: int) -> Tensor:
    """Return (sample, time, unit): the change of state that is put down to each step.

    A change between two stored states is shared equally by the steps since the first of them.

    >>> _changes(torch.tensor([[[1.0], [0.0], [5.0], [0.0]]]), 2).flatten()
    tensor([1., 2., 2., 0.])
    """
    if every == 1:
        return states - torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0))
    stored = states[:, ::every]
    changes = stored - torch.nn.functional.pad(stored[:, :-1], (0, 0, 1, 0))
    changes[:, 1:] /= every
    after = _next_stored(states.shape[1], every) // every
    shared = changes[:, after.clamp(max=stored.shape[1] - 1)]
    return shared * (after < stored.shape[1])[:, None]


def _next_stored(time: int, every: int) -> Tensor:
    """Return (time,): the first step, from each on, at which a state is stored if it is real."""
    return -(-torch.arange(time) // every) * every
