"""Handwritten digits, read row by row: real images, bundled with scikit-learn.

1,797 images of 8 x 8 pixels from the test set of the UCI "Optical Recognition of Handwritten
Digits" data (Alpaydin and Kaynak 1998, doi:10.24432/C50P49); a network reads eight rows of eight
pixels and names the digit at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm.auto import tqdm

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.tasks.network import Architecture, RecurrentNetwork
from dynamo_plugin.tasks.population import TaskPopulation, network_seeds
from dynamo_plugin.tasks.scores import accuracy
from dynamo_plugin.tasks.stacked import StackedRecurrent
from dynamo_plugin.tasks.train import train_stacked

__all__ = ["train_digits_population"]

TASK = "digits"
CLASSES = 10
ROWS = 8


def train_digits_population(
    *,
    seed: int,
    architectures: Sequence[Architecture] = ("gru", "lstm", "rnn"),
    fractions: Sequence[float] = (1.0, 0.1),
    networks_per_group: int = 4,
    hidden_sizes: Sequence[int] = (32, 40, 48, 64),
    steps: int = 500,
    batch_size: int = 32,
    learning_rate: float = 2e-2,
    progress: bool = False,
) -> TaskPopulation:
    """Train classifiers of handwritten digits, in groups by architecture and amount of data.

    One half of the images, with all digits in equal shares, is for training; the networks of a
    group see all of it or a fraction, drawn for each network by itself, again with all digits in
    equal shares. The other half is held out, and is what the population should be captured on.

    Parameters
    ----------
    seed
        Decides everything: the halves, the fractions, initial weights and minibatches.
    architectures
        Of `gru`, `lstm` and `rnn`; the networks of one are trained in one pass.
    fractions
        Shares of the training half, above 0 and up to 1.
    networks_per_group
        Networks of one architecture and fraction.
    hidden_sizes
        Numbers of hidden units, taken in turn within a group.
    steps
        Updates of every network.
    batch_size
        Images per network and update.
    learning_rate
        At the first update.
    progress
        Whether to show bars on standard error.

    Returns
    -------
    TaskPopulation
        Networks named like `gru-full-0` and `rnn-10pct-3`, with logits of ten classes; `score`
        and `train_score` are accuracies; the column `fraction` says how much data a network saw.

    Raises
    ------
    InvalidInput
        If there would be no network, a name is given twice, or a fraction leaves fewer than one
        image of each digit.
    DivergedFit
        If the learning rate is too large.
    """
    _check(architectures, fractions, networks_per_group, hidden_sizes)
    images, labels = _load()
    positions = np.arange(len(labels))
    training, held_out = train_test_split(
        positions, test_size=0.5, stratify=labels, random_state=seed
    )
    training, held_out = np.sort(training), np.sort(held_out)
    inputs, targets = images[held_out], torch.from_numpy(labels[held_out])
    pool, pool_targets = images[training], torch.from_numpy(labels[training])

    models: dict[str, RecurrentNetwork] = {}
    tables = []
    for architecture in tqdm(
        architectures, desc="digits", unit="architecture", disable=not progress
    ):
        table = pd.DataFrame(
            [
                {
                    "id": f"{architecture}-{_fraction_name(fraction)}-{index}",
                    "task": TASK,
                    "architecture": architecture,
                    "fraction": float(fraction),
                    "hidden_size": hidden_sizes[index % len(hidden_sizes)],
                }
                for fraction in fractions
                for index in range(networks_per_group)
            ]
        ).set_index("id")
        seeds = network_seeds(seed, f"{TASK} {architecture}", len(table))
        table["seed"] = seeds
        subsets = [
            _subset(labels[training], fraction, own)
            for fraction, own in zip(table["fraction"], seeds, strict=True)
        ]
        stack = StackedRecurrent(
            [
                RecurrentNetwork(
                    architecture, input_size=ROWS, hidden_size=size, output_size=CLASSES, seed=own
                )
                for size, own in zip(table["hidden_size"], seeds, strict=True)
            ]
        )
        train_stacked(
            stack,
            pool,
            pool_targets,
            loss="cross_entropy",
            seeds=seeds,
            subsets=subsets,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            progress=progress,
            description=f"digits {architecture}",
        )
        learnt = stack.predict(pool)
        table["train_score"] = [
            accuracy(learnt[index, subset], pool_targets[subset]).item()
            for index, subset in enumerate(subsets)
        ]
        table["score"] = accuracy(stack.predict(inputs), targets).tolist()
        models |= dict(zip(table.index, stack.unstack(), strict=True))
        tables.append(table)
    return TaskPopulation(
        task=TASK,
        models=models,
        metadata=pd.concat(tables),
        inputs=inputs,
        sample_ids=tuple(f"digit-{position:04d}" for position in held_out),
        output_groups=dict.fromkeys(models, TASK),
        group_targets={TASK: targets},
        output_kind="logits",
    )


def _load() -> tuple[Tensor, NDArray[np.int64]]:
    """(image, row, pixel) float32 from 0 to 1, and (image,) classes."""
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16.0).float()
    return images, digits.target.astype(np.int64)


def _subset(labels: NDArray[np.int64], fraction: float, seed: int) -> Tensor:
    positions = np.arange(len(labels))
    if fraction < 1:
        positions, _ = train_test_split(
            positions, train_size=fraction, stratify=labels, random_state=seed
        )
    return torch.from_numpy(np.sort(positions))


def _fraction_name(fraction: float) -> str:
    return "full" if fraction == 1 else f"{100 * fraction:g}pct"


def _check(
    architectures: Sequence[str],
    fractions: Sequence[float],
    networks_per_group: int,
    hidden_sizes: Sequence[int],
) -> None:
    counts = {
        "architecture": len(architectures),
        "fraction": len(fractions),
        "network per group": networks_per_group,
        "hidden size": len(hidden_sizes),
    }
    for what, count in counts.items():
        if count < 1:
            raise InvalidInput(f"Expected at least one {what}, got {count}.")
    for what, given in (("architectures", architectures), ("fractions", fractions)):
        if len(set(given)) != len(given):
            raise InvalidInput(f"Expected every one of {what} once, got {tuple(given)}.")
    # With 898 images in the training half, 2 % is at least one image of each digit.
    for fraction in fractions:
        if not 0.02 <= fraction <= 1:
            raise InvalidInput(f"Expected fractions from 0.02 to 1, got {fraction}.")
