"""The batched objective against a plain loop over models and samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamo_plugin.losses import kl, l1, l2, mse
from dynamo_plugin.metamodels import AffineStateMaps, GRUMetaModel, StageMaps
from dynamo_plugin.store import Population
from dynamo_plugin.training import Targets
from dynamo_plugin.training.objective import Objective, OutputTerm

CPU = torch.device("cpu")


@pytest.fixture
def objective(ragged: Population) -> Objective:
    torch.manual_seed(0)
    spec = ragged.population_spec
    meta_model = GRUMetaModel(spec, embedding_dim=3, units=6)
    targets = Targets(ragged, sites=None, device=CPU)
    all_maps = StageMaps(
        "affine", {"hidden": 6}, {"hidden": targets.stages[0].units}, embedding_dim=3,
        solver="gradient",
    )  # fmt: skip
    maps = all_maps["hidden"]
    maps.mean.normal_().mul_(maps.real_units)
    maps.scale.copy_(torch.tensor([0.5, 2.0, 3.0]))
    outputs = {
        "class": OutputTerm(spec.outputs[0], kl, logits=True, scale=1.0),
        "value": OutputTerm(spec.outputs[1], mse, logits=False, scale=2.5),
    }
    return Objective(meta_model, all_maps, torch.randn(3, 3), hidden_loss=l2, outputs=outputs)


def _plain(
    objective: Objective, population: Population, model: int, sample: int, every: int = 1
) -> Tensor:
    """Hidden and output loss of one model on one sequence, written as in the paper.

    Only each so many-th step counts in the hidden loss.
    """
    name, meta_model = population.ids[model], objective.meta_model
    assert isinstance(meta_model, GRUMetaModel)
    start, stop = population.offsets[sample : sample + 2]
    inputs = torch.tensor(population.inputs.values[start:stop])
    theta = objective.thetas[model]
    state = torch.zeros(meta_model.units)
    maps = objective.state_maps["hidden"]
    assert isinstance(maps, AffineStateMaps)
    units = maps.units[model]
    weight, bias, mean = (
        maps.weight[model, :units],
        maps.bias[model, :units],
        maps.mean[model, :units],
    )
    hidden, states = [], []
    for time in range(stop - start):
        state = meta_model.step(inputs[time], theta, state)
        states.append(state)
        if time % every:
            continue
        target = torch.from_numpy(population.states(name)[start + time])
        target = (target - mean) / maps.scale[model]
        hidden.append((weight @ state + bias - target).square().mean())
    group = ["class", "value"].index(population.output_group(name))
    assert meta_model.readout_theta is not None
    bend = torch.einsum("k,kuo->uo", theta, meta_model.readout_theta[group])

    def readout(state: Tensor) -> Tensor:
        read: Tensor = meta_model.readouts[group](state) + state @ bend[:-1] + bend[-1]
        return read

    if population.output_group(name) == "class":
        p = torch.from_numpy(population.outputs(name)[sample]).log_softmax(0)
        q = readout(states[-1]).log_softmax(0)
        output = (p.exp() * (p - q)).sum()
    else:
        errors = [
            (readout(state) - torch.from_numpy(population.outputs(name)[start + t])) / 2.5
            for t, state in enumerate(states)
        ]
        output = torch.stack(errors).square().mean()
    return torch.stack([torch.stack(hidden).mean(), output])


@pytest.mark.parametrize("models", [[0, 1, 2], [2, 1]])
def test_matches_a_plain_loop_in_value_and_gradient(
    objective: Objective, ragged: Population, models: list[int]
) -> None:
    samples = [2, 1, 7, 5]
    targets = Targets(ragged, sites=None, device=CPU)
    index = torch.tensor(models)
    terms = objective(targets.batch(index, torch.tensor(samples)), index)
    expected = torch.stack(
        [
            torch.stack([_plain(objective, ragged, model, sample) for sample in samples]).mean(0)
            for model in models
        ]
    )
    torch.testing.assert_close(terms.hidden, expected[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.output, expected[:, 1], rtol=1e-5, atol=1e-6)
    parameters = list(objective.parameters())
    batched = torch.autograd.grad(
        (terms.hidden + 0.3 * terms.output).sum(), parameters, allow_unused=True
    )
    looped = torch.autograd.grad(
        (expected[:, 0] + 0.3 * expected[:, 1]).sum(), parameters, allow_unused=True
    )
    for one, other in zip(batched, looped, strict=True):
        if one is None or other is None:
            assert one is other or not (one if one is not None else other).any()
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_only_stored_steps_count(
    objective: Objective, ragged: Population, strided: Population
) -> None:
    samples, index = [2, 1, 7, 5], torch.tensor([2, 0, 1])
    batch = Targets(strided, sites=None, device=CPU).batch(index, torch.tensor(samples))
    terms = objective(batch, index)
    strides = {0: 2, 1: 1, 2: 3}
    expected = torch.stack(
        [
            torch.stack(
                [_plain(objective, ragged, model, sample, strides[model]) for sample in samples]
            ).mean(0)
            for model in index.tolist()
        ]
    )
    torch.testing.assert_close(terms.hidden, expected[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.output, expected[:, 1], rtol=1e-5, atol=1e-6)
    every_step = objective(
        Targets(ragged, sites=None, device=CPU).batch(index, torch.tensor(samples)), index
    )
    assert not torch.isclose(every_step.hidden[:2], terms.hidden[:2], rtol=1e-3).any()


def test_l1_replaces_the_hidden_distance(objective: Objective, ragged: Population) -> None:
    targets = Targets(ragged, sites=None, device=CPU)
    index, samples = torch.tensor([1]), torch.tensor([3])
    batch = targets.batch(index, samples)
    squared = objective(batch, index).hidden
    objective.hidden_loss = l1
    absolute = objective(batch, index).hidden
    assert not torch.allclose(squared, absolute)
    assert absolute.item() <= np.sqrt(squared.item()) + 1e-6  # Jensen
