"""The last fit of the readouts against known readouts, and against scipy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor, nn

from dynamo_plugin.losses import kl, l2, mse
from dynamo_plugin.metamodels import GRUMetaModel, StageMaps
from dynamo_plugin.registry.interfaces import Loss
from dynamo_plugin.store import Population
from dynamo_plugin.training import Targets, readings
from dynamo_plugin.training.objective import Objective, OutputTerm
from dynamo_plugin.training.settling import settle

LENGTHS = [int(length) for length in np.random.default_rng(0).integers(1, 5, 600)]

GROUPS = {"a": "class", "b": "value", "c": "class", "d": "value"}

Written = Callable[..., Population]


def _written(write_population: Written, outputs: Mapping[str, Any] | None = None) -> Population:
    rng = np.random.default_rng(1)
    rows = sum(LENGTHS)
    states = {name: rng.normal(size=(rows, 2)).astype(np.float32) for name in GROUPS}
    inputs = rng.normal(size=(rows, 2)).astype(np.float32)
    if outputs is None:
        sizes = {"class": (len(LENGTHS), 3), "value": (rows, 2)}
        outputs = {name: rng.normal(size=sizes[group]) for name, group in GROUPS.items()}
    outputs = {name: np.asarray(values, np.float32) for name, values in outputs.items()}
    return write_population(states, outputs, inputs, LENGTHS, groups=GROUPS)


def _objective(
    population: Population,
    *,
    class_loss: Loss = mse,
    readout: Literal["conditional", "shared"] = "conditional",
) -> Objective:
    torch.manual_seed(2)
    spec = population.population_spec
    meta_model = GRUMetaModel(spec, embedding_dim=2, units=4, readout=readout)
    widths = {"hidden": (2, 2, 2, 2)}
    maps = StageMaps("affine", {"hidden": 4}, widths, embedding_dim=2, solver="ridge")
    outputs = {
        "class": OutputTerm(spec.outputs[0], class_loss, logits=class_loss is kl, scale=1.0),
        "value": OutputTerm(spec.outputs[1], mse, logits=False, scale=2.5),
    }
    thetas = torch.tensor([[0.1, 0.02], [-0.3, 0.01], [0.2, -0.02], [0.05, 0.03]])
    return Objective(meta_model, maps, thetas, hidden_loss=l2, outputs=outputs)


def _targets(population: Population) -> Targets:
    return Targets(population, sites=None, device=torch.device("cpu"))


@torch.no_grad()
def _run(objective: Objective, population: Population, model: int) -> tuple[Tensor, Tensor]:
    """Return (sample, units) last states, and (sample, size) or (row, size) outputs."""
    batch = population.inputs.batch(range(len(LENGTHS)))
    thetas = objective.thetas[model].expand(len(LENGTHS), -1)
    run = objective.meta_model(batch.values, thetas, batch.lengths)
    final = run.states["hidden"][torch.arange(len(LENGTHS)), batch.lengths - 1]
    outputs = run.outputs[list(GROUPS.values())[model]]
    if outputs.shape[1:] != (3,):
        outputs = outputs[torch.arange(outputs.shape[1]) < batch.lengths[:, None]]
    return final, outputs


def _read(objective: Objective, population: Population) -> dict[str, Tensor]:
    return {name: _run(objective, population, model)[1] for model, name in enumerate(GROUPS)}


def test_readouts_that_depend_on_theta_are_found(write_population: Written) -> None:
    objective = _objective(_written(write_population))
    meta_model = objective.meta_model
    assert isinstance(meta_model, GRUMetaModel)
    assert meta_model.readout_theta is not None
    learned = {name: value.clone() for name, value in meta_model.state_dict().items()}
    for parameter in (*meta_model.readouts.parameters(), *meta_model.readout_theta):
        nn.init.normal_(parameter, std=3.0)
    truth = _read(objective, _written(write_population))
    population = _written(write_population, truth)
    meta_model.load_state_dict(learned)
    settle(objective, _targets(population), torch.arange(0, 600, 2), readouts=True)
    for name, values in _read(objective, population).items():
        residual = (values - truth[name]).square().sum() / truth[name].var(0).sum() / len(values)
        assert residual < 1e-4, name


@pytest.mark.parametrize("readout", ["shared", "conditional"])
def test_the_optimum_is_that_of_scipy(
    write_population: Written,
    readout: Literal["conditional", "shared"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readings, "ROWS_PER_FEATURE", 1000)
    monkeypatch.setattr(readings, "GAIN", 1e-9)
    population = _written(write_population)
    objective = _objective(population, class_loss=kl, readout=readout)
    thetas = objective.thetas.detach().double().numpy()
    features, targets = [], []
    for model, (name, group) in enumerate(GROUPS.items()):
        if group == "class":
            final = _run(objective, population, model)[0].double().numpy()
            states = np.append(final, np.ones((len(final), 1)), axis=1)
            context = np.append(1.0, thetas[model]) if readout == "conditional" else np.ones(1)
            features.append(np.kron(context, states))
            targets.append(log_softmax(population.outputs(name).astype(np.float64), 1))
    x, y = np.concatenate(features), np.concatenate(targets)
    learns = np.tile(np.arange(len(LENGTHS)) % readings.VALIDATION != 0, 2)
    x, y = x[learns], y[learns]

    def loss(weights: Any) -> tuple[float, Any]:
        q = log_softmax(x @ weights.reshape(x.shape[1], 3), 1)
        gradient = x.T @ (np.exp(q) - np.exp(y)) / len(x)
        return float((np.exp(y) * (y - q)).sum(1).mean()), gradient.ravel()

    start = np.zeros(x.shape[1] * 3)
    best = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7}).fun

    def loss_of_readouts() -> float:
        read = _read(objective, population)
        q = log_softmax(np.concatenate([read["a"], read["c"]]).astype(np.float64), 1)[learns]
        return float((np.exp(y) * (y - q)).sum(1).mean())

    assert loss_of_readouts() > best + 0.01
    settle(objective, _targets(population), torch.arange(600), readouts=True)
    assert best - 1e-6 < loss_of_readouts() < best + 1e-3


def test_units_of_theta_make_no_difference(write_population: Written) -> None:
    population = _written(write_population)
    found = []
    for factors in ([1.0, 1.0], [30.0, 0.002]):
        objective = _objective(population)
        objective.rescale_theta(torch.tensor(factors))
        settle(objective, _targets(population), torch.arange(600), readouts=True)
        found.append(_read(objective, population))
    for name in GROUPS:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 2, 7, 20])
def test_few_samples_do_no_harm(write_population: Written, samples: int) -> None:
    population = _written(write_population)
    objective, targets = _objective(population), _targets(population)
    aside = torch.arange(samples)[:: readings.VALIDATION]
    before = objective(targets.batch(torch.arange(4), aside), torch.arange(4)).output
    settle(objective, targets, torch.arange(samples), readouts=True)
    after = objective(targets.batch(torch.arange(4), aside), torch.arange(4)).output
    assert torch.isfinite(after).all()
    for members in ([0, 2], [1, 3]):
        assert after[members].mean() <= before[members].mean() * (1 + 1e-6)
    if samples == 1:  # there is nothing to learn from beside what is kept aside
        assert torch.equal(after, before)


def test_readouts_stay_where_they_are_not_asked_for(write_population: Written) -> None:
    population = _written(write_population)
    objective = _objective(population)
    before = _read(objective, population)
    settle(objective, _targets(population), torch.arange(600))
    for name, values in _read(objective, population).items():
        assert torch.equal(values, before[name])
