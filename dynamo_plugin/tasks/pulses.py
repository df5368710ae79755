"""Populations that read sparse pulses: what `flip_flop` and `integrator` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.tasks.network import Architecture, RecurrentNetwork
from dynamo_plugin.tasks.population import TaskPopulation, network_seeds
from dynamo_plugin.tasks.scores import r2
from dynamo_plugin.tasks.stacked import StackedRecurrent
from dynamo_plugin.tasks.train import train_stacked

__all__ = ["CHANNELS", "pulse_inputs", "train_pulse_population"]

CHANNELS = 3
"""Number of independent channels of pulses."""

TRAINING_TRIALS = 4096
"""Size of the pool from which every network draws its minibatches."""

LEARNING_RATES: dict[Architecture, float] = {"gru": 2e-2, "lstm": 2e-2, "rnn": 1e-2}
"""Where the caller gives none: those at which all networks of a population solve both tasks."""


def pulse_inputs(
    samples: int, time: int, *, probability: float = 0.1, generator: torch.Generator
) -> Tensor:
    """Draw trials of sparse pulses.

    At every step each channel carries +1 or -1, equally likely, with the given probability, and 0
    otherwise. At the first step every channel carries a pulse, so that a flip-flop is in one of
    its 2^3 states from the start and the sign it should have is defined at every step.

    Parameters
    ----------
    samples, time
        Numbers of trials and of steps.
    probability
        Of a pulse, per step and channel.
    generator
        Where the randomness comes from.

    Returns
    -------
    Tensor
        (sample, time, 3) float32.

    Raises
    ------
    InvalidInput
        If a number is not positive or the probability is not between 0 and 1.

    Examples
    --------
    >>> import torch
    >>> pulses = pulse_inputs(2, 50, generator=torch.Generator().manual_seed(0))
    >>> pulses.shape, pulses.unique().tolist()
    (torch.Size([2, 50, 3]), [-1.0, 0.0, 1.0])
    """
    if samples < 1 or time < 1:
        raise InvalidInput(f"Expected at least one sample and one step, got {samples} and {time}.")
    if not 0 <= probability <= 1:
        raise InvalidInput(f"Expected a probability between 0 and 1, got {probability}.")
    shape = (samples, time, CHANNELS)
    present = torch.rand(shape, generator=generator) < probability
    present[:, 0] = True
    signs = 2 * torch.randint(2, shape, generator=generator) - 1
    return (present * signs).float()


def train_pulse_population(
    task: str,
    target: Callable[[Tensor], Tensor],
    *,
    seed: int,
    networks: int,
    architecture: Architecture,
    hidden_sizes: Sequence[int],
    steps: int,
    time: int,
    probability: float,
    samples: int,
    inputs: Tensor | None,
    batch_size: int,
    learning_rate: float | None,
    progress: bool,
) -> TaskPopulation:
    """Train networks to turn pulses into `target(pulses)`; see the tasks for the arguments.

    Parameters
    ----------
    task
        Name of the task, its output group, and the first part of every id.
    target
        (sample, time, 3) pulses to (sample, time, 3) right answers.

    Returns
    -------
    TaskPopulation
        Real outputs, one per step; `score` and `train_score` are R2.

    Raises
    ------
    InvalidInput
        If a number is not positive, or given inputs have the wrong shape.
    """
    if networks < 1 or not hidden_sizes:
        raise InvalidInput(
            f"Expected at least one network and one hidden size, got {networks} networks and "
            f"the hidden sizes {tuple(hidden_sizes)}."
        )
    # The held-out trials depend on the seed and not on the task, so that populations of both
    # tasks can be one population.
    held_out, pool = network_seeds(seed, "pulses", 2)
    if inputs is None:
        generator = torch.Generator().manual_seed(held_out)
        inputs = pulse_inputs(samples, time, probability=probability, generator=generator)
    elif inputs.ndim != 3 or inputs.shape[2] != CHANNELS:
        raise InvalidInput(
            f"Expected inputs (sample, time, {CHANNELS}), got the shape {tuple(inputs.shape)}."
        )
    generator = torch.Generator().manual_seed(pool)
    trials = pulse_inputs(TRAINING_TRIALS, time, probability=probability, generator=generator)
    seeds = network_seeds(seed, task, networks)
    sizes = [hidden_sizes[index % len(hidden_sizes)] for index in range(networks)]
    stack = StackedRecurrent(
        [
            RecurrentNetwork(
                architecture,
                input_size=CHANNELS,
                hidden_size=size,
                output_size=CHANNELS,
                every_step=True,
                seed=own,
            )
            for size, own in zip(sizes, seeds, strict=True)
        ]
    )
    train_stacked(
        stack,
        trials,
        target(trials),
        loss="mse",
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        learning_rate=LEARNING_RATES[architecture] if learning_rate is None else learning_rate,
        progress=progress,
        description=f"{task} {architecture}",
    )
    seen = trials[: len(inputs)]
    ids = [f"{task}-{architecture}-{index}" for index in range(networks)]
    metadata = pd.DataFrame(
        {
            "task": task,
            "architecture": architecture,
            "hidden_size": sizes,
            "seed": seeds,
            "train_score": r2(stack.predict(seen), target(seen)).tolist(),
            "score": r2(stack.predict(inputs), target(inputs)).tolist(),
        },
        index=pd.Index(ids, name="id"),
    )
    return TaskPopulation(
        task=task,
        models=dict(zip(ids, stack.unstack(), strict=True)),
        metadata=metadata,
        inputs=inputs,
        sample_ids=tuple(f"trial-{index:04d}" for index in range(len(inputs))),
        output_groups=dict.fromkeys(ids, task),
        group_targets={task: target(inputs)},
        output_kind="real",
    )
