"""Task scores of what groups of networks make together: ensembles, and averages of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax

from dynamo_plugin.analyses._networks import made_networks, mix_weights, run_networks
from dynamo_plugin.errors import InvalidInput, NonFiniteStates

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from dynamo_plugin.analyses._scoring import Scores, TaskScorer
    from dynamo_plugin.recording.recorder import ModelSource

__all__ = ["ensemble_scores", "weight_scores"]


def ensemble_scores(scorer: TaskScorer, groups: Sequence[NDArray[np.int64]]) -> Scores:
    """Score the mean answer of each group: of class probabilities, or of real outputs.

    The outputs of every model are read once, and only the sums of the groups are kept.

    Parameters
    ----------
    scorer
        Of the output group of all of them.
    groups
        Positions of the members in the embedding.
    """
    embedding = scorer.embedding
    sums: list[Any] = [0.0] * len(groups)
    for place in sorted({member for members in groups for member in members.tolist()}):
        outputs = embedding.population.outputs(embedding.ids[place], samples=scorer.samples)
        answer = outputs.reshape(len(outputs), -1).astype(np.float64)
        if scorer.kind == "accuracy":
            answer = expit(answer) if answer.shape[1] == 1 else softmax(answer, axis=1)
        for number, members in enumerate(groups):
            if place in members:
                sums[number] = sums[number] + answer
    means = np.stack([total / len(members) for total, members in zip(sums, groups, strict=True)])
    # A single number is decided by its sign, a probability by whether it is above a half.
    single = scorer.kind == "accuracy" and means.shape[-1] == 1
    return scorer.outputs(means - 0.5 if single else means)


def weight_scores(
    scorer: TaskScorer,
    groups: Sequence[NDArray[np.int64]],
    networks: Mapping[str, ModelSource] | None,
    capture_options: Mapping[str, Any] | None,
) -> list[Scores | str]:
    """Score the network with the mean weights of each group; a text says why there is none.

    Parameters
    ----------
    scorer, groups
        As in `ensemble_scores`.
    networks
        Model id to network or factory; None for none.
    capture_options
        See `run_networks`.
    """
    if networks is None:
        return ["no networks were given"] * len(groups)
    embedding = scorer.embedding
    members_of = [[embedding.ids[member] for member in members] for members in groups]
    needed = {model for members in members_of for model in members}
    made = made_networks(embedding, networks, [model for model in networks if model in needed])
    return [_of_mean_weights(scorer, members, made, capture_options) for members in members_of]


def _of_mean_weights(
    scorer: TaskScorer,
    members: Sequence[str],
    made: Mapping[str, nn.Module],
    capture_options: Mapping[str, Any] | None,
) -> Scores | str:
    lacking = [model for model in members if model not in made]
    if lacking:
        return f"no network of {lacking[0]!r} was given"
    shares = np.full(len(members), 1 / len(members))
    try:
        mixed = mix_weights({model: made[model] for model in members}, shares)
    except InvalidInput as error:  # it says what differs
        return str(error)
    try:
        ran = run_networks(
            scorer.embedding, {"average": mixed}, scorer.samples, capture_options=capture_options
        )
    except NonFiniteStates as error:
        return str(error)
    return scorer.outputs(ran["average"][None])
