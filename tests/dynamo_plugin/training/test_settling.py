"""The last solution of the state maps against scikit-learn's ridge regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from dynamo_plugin.losses import l2
from dynamo_plugin.metamodels import AffineStateMaps, GRUMetaModel, StageMaps
from dynamo_plugin.metamodels.state_maps._base import RIDGE
from dynamo_plugin.store import Population
from dynamo_plugin.training import Targets, evaluation, settling
from dynamo_plugin.training.objective import Objective
from dynamo_plugin.training.readings import Readings
from dynamo_plugin.training.targets import TargetBatch
from dynamo_plugin.types import Trajectory


@pytest.mark.parametrize("strides", [False, True])
def test_maps_are_solved_for_all_samples(
    ragged: Population,
    strided: Population,
    strides: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    population = strided if strides else ragged
    targets = Targets(population, sites=None, device=torch.device("cpu"))
    maps_of = StageMaps(
        "affine", {"hidden": 4}, {"hidden": targets.units("hidden")}, embedding_dim=2,
        solver="ridge",
    )  # fmt: skip
    meta_model = GRUMetaModel(population.population_spec, embedding_dim=2, units=4)
    objective = Objective(meta_model, maps_of, torch.randn(3, 2), hidden_loss=l2, outputs={})
    monkeypatch.setattr(evaluation, "PAIRS_PER_BATCH", 9)  # several passes
    samples = torch.tensor([3, 7, 0, 2, 9])
    settling.settle(objective, targets, samples)
    maps = objective.state_maps["hidden"]
    assert isinstance(maps, AffineStateMaps)
    for model, name in enumerate(population.ids):
        every = targets.stages[0].every[model]
        emulated, stored = [], []
        for sample in samples.tolist():
            batch = population.inputs.batch([sample])
            run = meta_model(batch.values, objective.thetas[model], batch.lengths)
            emulated += list(run.states["hidden"][0, ::every].detach().double().numpy())
            stored += list(population.states(name, samples=[sample]).astype(np.float64))
        x, y = np.array(emulated), np.array(stored)
        penalty = RIDGE * np.square(x - x.mean(0)).sum(0).mean()
        expected = Ridge(penalty).fit(x, y)
        units = maps.units[model]
        np.testing.assert_allclose(maps.weight[model, :units], expected.coef_, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            maps.bias[model, :units], expected.intercept_, rtol=1e-3, atol=1e-4
        )


def test_no_more_samples_are_run_than_a_solution_needs(
    ragged: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Targets(ragged, sites=None, device=torch.device("cpu"))
    maps_of = StageMaps(
        "affine", {"hidden": 1}, {"hidden": targets.units("hidden")}, embedding_dim=2,
        solver="ridge",
    )  # fmt: skip
    meta_model = GRUMetaModel(ragged.population_spec, embedding_dim=2, units=1)
    objective = Objective(meta_model, maps_of, torch.randn(3, 2), hidden_loss=l2, outputs={})
    monkeypatch.setattr(settling, "ROWS_PER_FEATURE", 7)
    seen: list[int] = []

    def forward(inputs: torch.Tensor, theta: torch.Tensor, lengths: torch.Tensor) -> Trajectory:
        seen.append(inputs.shape[1])
        return GRUMetaModel.forward(meta_model, inputs, theta, lengths)

    monkeypatch.setattr(meta_model, "forward", forward)
    settling.settle(objective, targets, torch.arange(10))
    assert sum(seen) == 3  # of 4, 1 and 6 steps


def test_copies_of_a_sample_share_a_number(
    ragged: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Spy(Readings):
        def samples_wanted(self, targets: Targets, samples: Tensor) -> int:
            return len(samples)

        def add(
            self, batch: TargetBatch, trajectory: Trajectory, models: Tensor, places: Tensor
        ) -> None:
            seen.extend(places.tolist())

        def fit(self) -> None:
            pass

    monkeypatch.setattr(settling, "Readings", Spy)
    targets = Targets(ragged, sites=None, device=torch.device("cpu"))
    maps_of = StageMaps(
        "affine",
        {"hidden": 4},
        {"hidden": targets.units("hidden")},
        embedding_dim=2,
        solver="gradient",
    )
    meta_model = GRUMetaModel(ragged.population_spec, embedding_dim=2, units=4)
    objective = Objective(meta_model, maps_of, torch.randn(3, 2), hidden_loss=l2, outputs={})
    for samples, numbers in (([5, 2, 5, 9, 2, 2], [0, 1, 0, 3, 1, 1]), ([7, 1, 4], [0, 1, 2])):
        seen.clear()
        settling.settle(objective, targets, torch.tensor(samples), readouts=True)
        assert seen == numbers
