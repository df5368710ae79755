"""A token embedding to start from: what each token does to the states of the base models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamo_plugin.metamodels.state_maps import ridge
from dynamo_plugin.training.stages import HIDDEN
from dynamo_plugin.training.targets import SAMPLES_PER_READ, Targets

__all__ = ["embed_token_responses"]

RESPONSE_DIMS = 1024
"""Responses wider than that, over all models together, are projected at random first."""


PENALTY = 1e-6
"""Of the regression on the state before, relative; it keeps units that never change from harm."""

MODELS_PER_READ = 8
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
    """Return the principal components of the state change that each token brings about.

    The response of a recurrent model to a token is its coefficient in the linear regression of
    h_t - h_(t-1), with h_(-1) = 0, on the tokens and on h_(t-1), over the training steps and in
    units of the model's state scale: much of a change is a return towards rest, which says nothing
    about the token. Where only every k-th state was stored, a change between two of them is shared
    equally by the tokens read since the first. The response of a layered model is the mean of its
    first recorded state. The
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
        own = _Sums(len(part), vocabulary, max(widths), regressed=recurrent)
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
                    before = after = states[place]
                    if recurrent:
                        before, after = _changes(states[place], every)
                    own.add(place, tokens, after[followed], before[followed])
        for place, model in enumerate(part.tolist()):
            kind = strides.index(int(every_of[model]))
            response = own.responses(place, counts[kind])[:, : widths[model]]
            sums[kind] += response / scale[model - first] @ projections[model]
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


class _Sums:
    """Sums over steps, for the regression of what follows on tokens and what was before."""

    def __init__(self, models: int, vocabulary: int, units: int, *, regressed: bool) -> None:
        self.after = torch.zeros(models, vocabulary, units)
        self.before = torch.zeros(models, vocabulary if regressed else 0, units)
        self.second = torch.zeros(models, units, 2 * units, dtype=torch.float64)

    def add(self, model: int, tokens: Tensor, after: Tensor, before: Tensor) -> None:
        """Add steps of a model: (step,) ids, (step, unit) what follows, and what was before."""
        self.after[model].index_add_(0, tokens, after)
        if self.before.shape[1]:
            self.before[model].index_add_(0, tokens, before)
            wide = before.double()
            self.second[model] += wide.T @ torch.cat([wide, after.double()], 1)

    def responses(self, model: int, counts: Tensor) -> Tensor:
        """Return (vocabulary, unit): sums over the steps of each token, less what was before."""
        if not self.before.shape[1]:
            return self.after[model]
        # The coefficients of `before`, from what varies among the steps of one token.
        before = self.before[model].double()
        means = before / counts.clamp(min=1)[:, None]
        products = means.T @ torch.cat([before, self.after[model].double()], 1)
        squares, cross = (self.second[model] - products).chunk(2, 1)
        slope = ridge(squares[None], cross[None], PENALTY)[0]
        return self.after[model] - (before @ slope).float()


def _followed(lengths: Tensor, every: int) -> Tensor:
    """Return (sample, time): the real steps at or after which a state was stored."""
    return _next_stored(int(lengths.max()), every) < lengths[:, None]


def _changes(states: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Return (sample, time, unit), twice: the stored state before each step, and the change since.

    A change between two stored states is shared equally by the steps since the first of them.

    >>> before, change = _changes(torch.tensor([[[1.0], [0.0], [5.0], [0.0]]]), 2)
    >>> before.flatten(), change.flatten()
    (tensor([0., 1., 1., 0.]), tensor([1., 2., 2., 0.]))
    """
    stored = states[:, ::every]
    before = torch.nn.functional.pad(stored[:, :-1], (0, 0, 1, 0))
    if every == 1:
        return before, states - before
    changes = stored - before
    changes[:, 1:] /= every
    after = _next_stored(states.shape[1], every) // every
    real = (after < stored.shape[1])[:, None]
    index = after.clamp(max=stored.shape[1] - 1)
    return before[:, index] * real, changes[:, index] * real


def _next_stored(time: int, every: int) -> Tensor:
    """Return (time,): the first step, from each on, at which a state is stored if it is real."""
    return -(-torch.arange(time) // every) * every
