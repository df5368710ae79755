"""The base models' own readouts, against scikit-learn and against what they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import nn

from dynamo_plugin.metamodels import AffineStateMaps, GRUMetaModel, StageMaps
from dynamo_plugin.store import Population
from dynamo_plugin.training import OwnReadouts, Targets, evaluate

CPU = torch.device("cpu")
LENGTHS = [4, 1, 6, 3, 5, 2, 6, 6, 1, 4] * 3


@pytest.fixture
def read(write_population: Callable[..., Population]) -> tuple[Population, dict[str, nn.Linear]]:
    """A classifier by its last state, one of numbers by every state, and one that is not affine."""
    torch.manual_seed(0)
    rows = sum(LENGTHS)
    last = np.cumsum(LENGTHS) - 1
    states = {name: torch.randn(rows, units) for name, units in (("a", 4), ("b", 2), ("c", 3))}
    heads = {"a": nn.Linear(4, 3), "b": nn.Linear(2, 2), "c": nn.Linear(3, 3)}
    outputs = {
        "a": heads["a"](states["a"][last]),
        "b": heads["b"](states["b"]),
        "c": heads["c"](states["c"][last] ** 2),
    }
    population = write_population(
        {name: own.numpy() for name, own in states.items()},
        {name: own.detach().numpy() for name, own in outputs.items()},
        np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32),
        LENGTHS,
        groups={"a": "class", "b": "value", "c": "class"},
    )
    return population, heads


def test_affine_readouts_are_found(read: tuple[Population, dict[str, nn.Linear]]) -> None:
    population, heads = read
    found = OwnReadouts.find(Targets(population, sites=None, device=CPU), torch.arange(30))
    assert found is not None
    for name, group, row in (("a", "class", 0), ("b", "value", 0)):
        units = heads[name].in_features
        own = found.weights[group][row]
        torch.testing.assert_close(own[:units], heads[name].weight.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own[-1], heads[name].bias, rtol=1e-4, atol=1e-5)
    assert found.r2[:2].tolist() == pytest.approx([1, 1], abs=1e-6)


def test_how_far_a_readout_is_affine_is_said(
    read: tuple[Population, dict[str, nn.Linear]],
) -> None:
    population, _ = read
    samples = [2, 5, 7, 1, 9, 12, 13, 22, 28]
    found = OwnReadouts.find(Targets(population, sites=None, device=CPU), torch.tensor(samples))
    assert found is not None
    ends = np.cumsum([LENGTHS[sample] for sample in samples]) - 1
    states = population.states("c", samples=samples)[ends]
    outputs = population.outputs("c", samples=samples)
    plain = LinearRegression().fit(states, outputs).predict(states)
    expected = r2_score(outputs, plain, multioutput="variance_weighted")
    assert found.r2[2].item() == pytest.approx(expected, abs=1e-5)


def test_agreement_is_that_of_the_readout_on_emulated_states(
    read: tuple[Population, dict[str, nn.Linear]],
) -> None:
    population, heads = read
    targets = Targets(population, sites=None, device=CPU)
    meta_model = GRUMetaModel(population.population_spec, embedding_dim=2, units=5)
    all_maps = StageMaps(
        "affine",
        {"hidden": 5},
        {"hidden": targets.stages[0].units},
        embedding_dim=2,
        solver="gradient",
    )
    thetas = torch.randn(3, 2)
    samples = torch.tensor([8, 0, 2, 3, 9, 4, 6])
    found = evaluate(
        meta_model,
        all_maps,
        thetas,
        targets,
        samples,
        decisions={"class": True, "value": False},
        own_readouts=OwnReadouts.find(targets, torch.arange(30)),
    ).own_agreement
    assert found is not None
    batch = population.inputs.batch(samples.numpy())
    maps = all_maps["hidden"]
    assert isinstance(maps, AffineStateMaps)
    emulated = {}
    for model, name in enumerate("ab"):
        matrix, offset = maps.matrix(model)
        states = meta_model(batch.values, thetas[model], batch.lengths).states["hidden"]
        emulated[name] = heads[name](states @ matrix.T + offset).detach()
    ends = emulated["a"][torch.arange(7), batch.lengths - 1].argmax(1).numpy()
    stored = population.outputs("a", samples=samples.numpy()).argmax(1)
    assert found[0].item() == pytest.approx(float((ends == stored).mean()))
    real = torch.arange(6) < batch.lengths[:, None]
    expected = r2_score(
        population.outputs("b", samples=samples.numpy()),
        emulated["b"][real].numpy(),
        multioutput="variance_weighted",
    )
    assert found[1].item() == pytest.approx(expected, rel=1e-4)


def test_states_that_were_not_stored_have_no_readout(strided: Population) -> None:
    assert OwnReadouts.find(Targets(strided, sites=None, device=CPU), torch.arange(10)) is None


def test_outputs_that_never_change_are_their_own_offset(
    write_population: Callable[..., Population],
) -> None:
    rng = np.random.default_rng(0)
    population = write_population(
        {name: rng.normal(size=(sum(LENGTHS), 3)).astype(np.float32) for name in "ab"},
        {name: np.full((len(LENGTHS), 2), 7.3, np.float32) for name in "ab"},
        rng.normal(size=(sum(LENGTHS), 2)).astype(np.float32),
        LENGTHS,
    )
    found = OwnReadouts.find(Targets(population, sites=None, device=CPU), torch.arange(30))
    assert found is not None
    assert found.r2.tolist() == [1, 1]
