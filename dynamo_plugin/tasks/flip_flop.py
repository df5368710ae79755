"""The flip-flop: remember the sign of the last pulse on each of three channels.

Sussillo and Barak, *Opening the Black Box: Low-Dimensional Dynamics in High-Dimensional Recurrent
Neural Networks*, Neural Computation 25, 2013, doi:10.1162/NECO_a_00409. Networks that solve it
have a stable fixed point for each of the 2^3 memories.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynamo_plugin.tasks.network import Architecture
from dynamo_plugin.tasks.population import TaskPopulation
from dynamo_plugin.tasks.pulses import train_pulse_population

__all__ = ["flip_flop_targets", "train_flip_flop_population"]


def flip_flop_targets(inputs: Tensor) -> Tensor:
    """Return the sign of the last pulse of every channel, and 0 before the first.

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
    >>> pulses = torch.tensor([0.0, 1.0, 0.0, 0.0, -1.0, 0.0]).view(1, 6, 1)
    >>> flip_flop_targets(pulses).flatten().tolist()
    [0.0, 1.0, 1.0, 1.0, -1.0, -1.0]
    """
    steps = torch.arange(inputs.shape[1], device=inputs.device)[None, :, None]
    last = torch.where(inputs != 0, steps, 0).cummax(1).values
    return inputs.gather(1, last)


def train_flip_flop_population(
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
    """Train networks on the flip-flop.

    Sussillo and Barak 2013, doi:10.1162/NECO_a_00409. All channels carry a pulse at the first
    step (see `pulse_inputs`), so the target is +1 or -1 everywhere.

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
        Networks named `flip_flop-<architecture>-<number>`, with real outputs at every step and R2
        as `score`.

    Raises
    ------
    InvalidInput
        If a number is not positive, or given inputs have the wrong shape.
    DivergedFit
        If the learning rate is too large.
    """
    return train_pulse_population(
        "flip_flop",
        flip_flop_targets,
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
