"""A trained population, with all that capturing it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dynamo_plugin.errors import DuplicateName, InvalidInput
from dynamo_plugin.tasks.network import RecurrentNetwork

__all__ = ["TaskPopulation", "merge", "network_seeds"]


@dataclass(frozen=True, slots=True)
class TaskPopulation:
    """Networks trained on a task, and held-out inputs to capture their states on."""

    task: str
    """Name of the task, or the names of merged tasks joined by `+`."""
    models: Mapping[str, RecurrentNetwork]
    """Id to trained network, in evaluation mode."""
    metadata: pd.DataFrame
    """One row per network, indexed by its id: `task`, `architecture`, `hidden_size`, `seed`,
    `score` (on the held-out inputs), `train_score` (on what it learnt from), and what the task
    adds."""
    inputs: Tensor
    """(sample, time, feature) float32: held-out inputs, shared by all networks."""
    sample_ids: tuple[str, ...]
    """One per sample, unique."""
    output_groups: Mapping[str, str]
    """Id of each network to the group of networks whose outputs mean the same: its task."""
    group_targets: Mapping[str, Tensor]
    """Output group to the right answers on the inputs: (sample,) int64 classes, or
    (sample, time, output) float32 numbers."""
    output_kind: Literal["logits", "real"]
    """Whether outputs are compared as distributions over classes or as numbers."""

    @property
    def targets(self) -> Tensor | None:
        """The right answers where all networks have one task, else None."""
        if len(self.group_targets) != 1:
            return None
        return next(iter(self.group_targets.values()))


def merge(*populations: TaskPopulation, prefixes: Sequence[str] | None = None) -> TaskPopulation:
    """Join populations that were given identical held-out inputs.

    Parameters
    ----------
    populations
        At least one.
    prefixes
        One per population, put before the ids of its networks with a hyphen; None to keep them.

    Returns
    -------
    TaskPopulation
        All networks, in order. Its `targets` are None where the tasks differ.

    Raises
    ------
    InvalidInput
        If inputs, sample ids, kinds of output, metadata columns or the targets of an output group
        differ.
    DuplicateName
        If two networks would have one id.
    """
    if not populations:
        raise InvalidInput("Expected at least one population to merge, got none.")
    if prefixes is None:
        renames = [{name: name for name in population.models} for population in populations]
    elif len(prefixes) != len(populations):
        raise InvalidInput(
            f"Expected one prefix per population ({len(populations)}), got {len(prefixes)}."
        )
    else:
        renames = [
            {name: f"{prefix}-{name}" for name in population.models}
            for prefix, population in zip(prefixes, populations, strict=True)
        ]
    first = populations[0]
    models: dict[str, RecurrentNetwork] = {}
    output_groups: dict[str, str] = {}
    group_targets: dict[str, Tensor] = {}
    for position, (population, rename) in enumerate(zip(populations, renames, strict=True)):
        _check_alike(first, population, position)
        taken = sorted(models.keys() & set(rename.values()))
        if taken:
            raise DuplicateName(
                f"Population {position} has networks whose ids are taken: {', '.join(taken)}. "
                "Give `prefixes`, one per population."
            )
        models |= {rename[name]: model for name, model in population.models.items()}
        output_groups |= {rename[name]: group for name, group in population.output_groups.items()}
        for group, targets in population.group_targets.items():
            if not torch.equal(group_targets.setdefault(group, targets), targets):
                raise InvalidInput(
                    f"Population {position} has other targets for the output group {group!r} on "
                    "the same inputs. Merge populations of one task and one set of options."
                )
    return TaskPopulation(
        task="+".join(dict.fromkeys(population.task for population in populations)),
        models=models,
        metadata=pd.concat(
            [
                p.metadata.rename(index=rename)
                for p, rename in zip(populations, renames, strict=True)
            ]
        ),
        inputs=first.inputs,
        sample_ids=first.sample_ids,
        output_groups=output_groups,
        group_targets=group_targets,
        output_kind=first.output_kind,
    )


def network_seeds(seed: int, task: str, count: int) -> list[int]:
    """Return one seed per network, none of which another task or seed is likely to give.

    >>> network_seeds(0, "digits", 2) == network_seeds(0, "digits", 3)[:2]
    True
    """
    words = [
        np.random.SeedSequence([seed, *task.encode(), index]).generate_state(1)[0]
        for index in range(count)
    ]
    return [int(word) for word in words]


def _check_alike(first: TaskPopulation, other: TaskPopulation, position: int) -> None:
    if first.inputs.shape != other.inputs.shape or not torch.equal(first.inputs, other.inputs):
        raise InvalidInput(
            f"Population {position} has other held-out inputs {tuple(other.inputs.shape)} than the "
            f"first {tuple(first.inputs.shape)}. Networks are compared on identical inputs: train "
            "with the same seed and sizes, or give both the same inputs."
        )
    pairs: dict[str, tuple[object, object]] = {
        "sample ids": (first.sample_ids, other.sample_ids),
        "kinds of output": (first.output_kind, other.output_kind),
        "metadata columns": (set(first.metadata.columns), set(other.metadata.columns)),
    }
    for what, (expected, got) in pairs.items():
        if expected != got:
            raise InvalidInput(
                f"Population {position} has other {what} than the first: expected {expected!r}, "
                f"got {got!r}."
            )
