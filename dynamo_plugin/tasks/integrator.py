"""The integrator: add up the pulses on each of three channels.

A network that solves it needs a line attractor per channel, where the flip-flop needs two points;
it reads the very same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynamo_plugin.tasks.network import Architecture
from dynamo_plugin.tasks.population import TaskPopulation
from dynamo_plugin.tasks.pulses import train_pulse_population

__all__ = ["SCALE", "integrator_targets", "train_integrator_population"]

SCALE = 0.25
"""What one pulse adds: it keeps the sums of short trials mostly between -1 and 1."""


def integrator_targets(inputs: Tensor) -> Tensor:
    """Return the running sum of every channel, without a leak, times `SCALE`.

    Parameters
    ----------
    inputs
        (sample, time, channel) pulses of -1, 0 and +1.

    Returns
    -------
    Tensor
        (sample, time, channel), of the dtype of the inputs.

    Examples
    --------
    >>> import torch
    >>> pulses = torch.tensor([1.0, 0.0, 1.0, -1.0]).view(1, 4, 1)
    >>> integrator_targets(pulses).flatten().tolist()
    [0.25, 0.25, 0.5, 0.25]
    """
    return SCALE * inputs.cumsum(1)


def train_integrator_population(
    *,
    seed: int,
    networks: int = 10,
    architecture: Architecture = "gru",
    hidden_sizes: Sequence[int] = (24, 32, 40, 48, 56),
    steps: int = 300,
    time: int = 30,
    probability: float = 0.1,
    samples: int = 200,
    inputs: Tensor | None = None,
    batch_size: int = 32,
    learning_rate: float | None = None,
    progress: bool = False,
) -> TaskPopulation:
    """Train networks to integrate pulses.

    Parameters
    ----------
    seed
        Decides everything: initial weights, training trials and held-out trials. The held-out
        trials do not depend on the task, so that populations of one seed can be merged with
        `dynamo_plugin.tasks.merge`.
    networks
        How many to train.
    architecture
        `gru`, `lstm` or `rnn`.
    hidden_sizes
        Numbers of hidden units, taken in turn.
    steps
        Updates of every network.
    time
        Steps of a trial.
    probability
        Of a pulse, per step and channel.
    samples
        Number of held-out trials.
    inputs
        (sample, time, 3) held-out trials to use in place of those of the seed.
    batch_size
        Trials per network and update.
    learning_rate
        At the first update; None for 0.02, or 0.01 for the less stable `rnn`.
    progress
        Whether to show a bar on standard error.

    Returns
    -------
    TaskPopulation
        Networks named `integrator-<architecture>-<number>`, with real outputs at every step and R2
        as `score`.

    Raises
    ------
    InvalidInput
        If a number is not positive, or given inputs have the wrong shape.
    DivergedFit
        If the learning rate is too large.
    """
    return train_pulse_population(
        "integrator",
        integrator_targets,
        seed=seed,
        networks=networks,
        architecture=architecture,
        hidden_sizes=hidden_sizes,
        steps=steps,
        time=time,
        probability=probability,
        samples=samples,
        inputs=inputs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        progress=progress,
    )
