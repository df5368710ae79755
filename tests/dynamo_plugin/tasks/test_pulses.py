from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.tasks import (
    flip_flop_targets,
    integrator_targets,
    merge,
    pulse_inputs,
    r2,
    sign_accuracy,
    train_flip_flop_population,
    train_integrator_population,
)
from dynamo_plugin.tasks.network import Architecture

SMALL: dict[str, Any] = {"networks": 2, "hidden_sizes": (3, 5), "steps": 2, "time": 8, "samples": 6}


def flip_flop_by_hand(pulses: NDArray[np.float32]) -> NDArray[np.float32]:
    targets = np.zeros_like(pulses)
    for sample, channel in np.ndindex(pulses.shape[0], pulses.shape[2]):
        memory = np.float32(0)
        for step in range(pulses.shape[1]):
            if pulses[sample, step, channel] != 0:
                memory = pulses[sample, step, channel]
            targets[sample, step, channel] = memory
    return targets


def test_pulses_are_sparse_signs_with_one_at_the_start() -> None:
    pulses = pulse_inputs(2000, 40, probability=0.1, generator=torch.Generator().manual_seed(0))
    assert pulses.dtype == torch.float32
    assert pulses.shape == (2000, 40, 3)
    assert set(pulses.flatten().tolist()) == {-1, 0, 1}
    assert bool((pulses[:, 0] != 0).all())
    later = pulses[:, 1:]
    assert later.abs().mean().item() == pytest.approx(0.1, abs=0.005)
    assert later.mean().item() == pytest.approx(0, abs=0.005)


def test_pulses_depend_on_the_generator_alone() -> None:
    one, same, other = (
        pulse_inputs(5, 9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("samples", "time", "probability"), [(0, 5, 0.1), (5, 0, 0.1), (5, 5, 1.1), (5, 5, -0.1)]
)
def test_pulses_that_cannot_be(samples: int, time: int, probability: float) -> None:
    with pytest.raises(InvalidInput, match="Expected"):
        pulse_inputs(samples, time, probability=probability, generator=torch.Generator())


def test_targets_are_those_of_a_plain_loop() -> None:
    pulses = pulse_inputs(20, 30, generator=torch.Generator().manual_seed(0))
    pulses[:10, 0] = 0  # some channels that are silent at first
    np.testing.assert_array_equal(flip_flop_targets(pulses), flip_flop_by_hand(pulses.numpy()))
    np.testing.assert_allclose(integrator_targets(pulses), np.cumsum(pulses.numpy(), 1) / 4)


@pytest.mark.parametrize("train", [train_flip_flop_population, train_integrator_population])
def test_what_a_population_holds(train: Any) -> None:
    before = torch.get_rng_state()
    population = train(seed=3, **SMALL | {"networks": 3})
    assert torch.equal(before, torch.get_rng_state())
    task = population.task
    assert list(population.models) == [f"{task}-gru-{index}" for index in range(3)]
    assert list(population.metadata.index) == list(population.models)
    assert population.metadata["hidden_size"].tolist() == [3, 5, 3]
    assert [m.rnn.hidden_size for m in population.models.values()] == [3, 5, 3]
    assert population.metadata["seed"].is_unique
    assert population.inputs.shape == (6, 8, 3)
    assert population.sample_ids == tuple(f"trial-000{index}" for index in range(6))
    assert population.output_kind == "real"
    assert population.output_groups == dict.fromkeys(population.models, task)
    targets = {"flip_flop": flip_flop_targets, "integrator": integrator_targets}[task]
    assert torch.equal(population.targets, targets(population.inputs))
    for name, model in population.models.items():
        assert not model.training
        score = r2(model(population.inputs).detach(), population.targets).item()
        assert population.metadata.loc[name, "score"] == pytest.approx(score, abs=1e-5)


def test_a_seed_decides_everything() -> None:
    one, same, other = (train_flip_flop_population(seed=seed, **SMALL) for seed in (0, 0, 1))
    assert one.metadata.equals(same.metadata)
    assert not one.metadata["score"].equals(other.metadata["score"])
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_both_tasks_of_one_seed_are_one_population() -> None:
    flip_flop = train_flip_flop_population(seed=0, **SMALL)
    integrator = train_integrator_population(seed=0, **SMALL)
    both = merge(flip_flop, integrator)
    assert len(both.models) == 4
    assert set(both.output_groups.values()) == {"flip_flop", "integrator"}
    assert both.targets is None
    assert both.metadata["seed"].is_unique


def test_given_inputs_are_used() -> None:
    inputs = pulse_inputs(4, 12, generator=torch.Generator().manual_seed(9))
    population = train_integrator_population(seed=0, inputs=inputs, **SMALL)
    assert population.inputs is inputs
    assert len(population.sample_ids) == 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"networks": 0}, "at least one network"),
        ({"hidden_sizes": ()}, "one hidden size"),
        ({"inputs": torch.zeros(4, 5, 2)}, r"\(sample, time, 3\), got the shape \(4, 5, 2\)"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        train_flip_flop_population(seed=0, **(SMALL | options))


def test_small_networks_learn_the_tasks_within_seconds() -> None:
    options: dict[str, Any] = {"seed": 0, "networks": 2, "hidden_sizes": (24,), "time": 15}
    flip_flop = train_flip_flop_population(**options)
    integrator = train_integrator_population(**options)
    assert flip_flop.metadata["score"].min() > 0.9
    assert integrator.metadata["score"].min() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("architecture", ["gru", "lstm", "rnn"])
def test_default_populations_solve_their_tasks(seed: int, architecture: Architecture) -> None:
    flip_flop = train_flip_flop_population(seed=seed, architecture=architecture)
    integrator = train_integrator_population(seed=seed, architecture=architecture)
    assert flip_flop.metadata["score"].min() > 0.9
    assert integrator.metadata["score"].min() > 0.9
    assert flip_flop.targets is not None
    for model in flip_flop.models.values():
        outputs = model(flip_flop.inputs).detach()
        assert sign_accuracy(outputs, flip_flop.targets).item() > 0.95
