from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from dynamo_plugin.errors import DuplicateName, InvalidInput
from dynamo_plugin.tasks.network import RecurrentNetwork
from dynamo_plugin.tasks.population import TaskPopulation, merge, network_seeds


def make(task: str, *, networks: int = 2) -> TaskPopulation:
    ids = [f"{task}-{index}" for index in range(networks)]
    seeds = network_seeds(0, task, networks)
    inputs = torch.arange(24.0).view(4, 2, 3)
    return TaskPopulation(
        task=task,
        models={
            name: RecurrentNetwork("rnn", input_size=3, hidden_size=2, output_size=3, seed=seed)
            for name, seed in zip(ids, seeds, strict=True)
        },
        metadata=pd.DataFrame({"task": task, "seed": seeds}, index=pd.Index(ids, name="id")),
        inputs=inputs,
        sample_ids=("a", "b", "c", "d"),
        output_groups=dict.fromkeys(ids, task),
        group_targets={task: inputs + len(task)},
        output_kind="real",
    )


def test_merging_two_tasks() -> None:
    one, other = make("one"), make("three", networks=3)
    both = merge(one, other)
    assert both.task == "one+three"
    assert list(both.models) == ["one-0", "one-1", "three-0", "three-1", "three-2"]
    assert both.models["three-1"] is other.models["three-1"]
    assert list(both.metadata.index) == list(both.models)
    assert both.metadata.index.name == "id"
    assert both.metadata.loc["three-2", "task"] == "three"
    assert both.output_groups == {name: name[:-2] for name in both.models}
    assert torch.equal(both.group_targets["three"], other.inputs + 5)
    assert both.targets is None
    assert torch.equal(both.inputs, one.inputs)


def test_targets_of_one_task() -> None:
    population = make("one")
    assert population.targets is population.group_targets["one"]
    renamed = merge(population, population, prefixes=("x", "y"))
    assert renamed.targets is not None
    assert renamed.task == "one"
    assert list(renamed.models) == ["x-one-0", "x-one-1", "y-one-0", "y-one-1"]
    assert list(renamed.metadata.index) == list(renamed.models) == list(renamed.output_groups)


def test_ids_that_are_taken() -> None:
    with pytest.raises(DuplicateName, match=r"one-0, one-1.*Give `prefixes`"):
        merge(make("one"), make("one"))


def test_populations_that_do_not_fit() -> None:
    one, other = make("one"), make("two")
    wrong = {
        "held-out inputs": replace(other, inputs=other.inputs + 1),
        "held-out": replace(other, inputs=other.inputs[:3]),
        "sample ids": replace(other, sample_ids=("a", "b", "c", "e")),
        "kinds of output": replace(other, output_kind="logits"),
        "metadata columns": replace(other, metadata=other.metadata.assign(extra=1)),
        "other targets": replace(other, group_targets={"one": other.inputs}),
    }
    for match, population in wrong.items():
        with pytest.raises(InvalidInput, match=match):
            merge(one, population)


def test_nothing_to_merge() -> None:
    with pytest.raises(InvalidInput, match="at least one population"):
        merge()


def test_one_prefix_per_population() -> None:
    with pytest.raises(InvalidInput, match=r"per population \(2\), got 1"):
        merge(make("one"), make("two"), prefixes=("x",))


def test_seeds_differ_between_tasks_networks_and_seeds() -> None:
    seeds = [
        own for seed in range(5) for task in ("one", "two") for own in network_seeds(seed, task, 10)
    ]
    assert len(set(seeds)) == 100
