"""Held-out figures against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from dynamo_plugin.metamodels import AffineStateMaps, GRUMetaModel, StageMaps
from dynamo_plugin.store import Population
from dynamo_plugin.training import Targets, evaluate
from dynamo_plugin.training import evaluation as module


def _maps(targets: Targets) -> StageMaps:
    units = {"hidden": targets.stages[0].units}
    return StageMaps("affine", {"hidden": 5}, units, embedding_dim=2, solver="gradient")


def _matrix(all_maps: StageMaps, model: int) -> tuple[torch.Tensor, torch.Tensor]:
    maps = all_maps["hidden"]
    assert isinstance(maps, AffineStateMaps)
    return maps.matrix(model)


def test_as_many_samples_run_at_once_as_rows_allow(
    ragged: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Targets(ragged, sites=None, device=torch.device("cpu"))
    samples = torch.tensor([0, 2, 3])  # the longest has 6 rows
    assert module.samples_per_batch(targets, samples, models=3) == 2048 // 3
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 60)
    assert module.samples_per_batch(targets, samples, models=3) == 3
    assert module.samples_per_batch(targets, samples, models=64) == 1


def test_matches_scikit_learn(ragged: Population, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAIRS_PER_BATCH", 9)  # three samples at a time
    torch.manual_seed(0)
    meta_model = GRUMetaModel(ragged.population_spec, embedding_dim=2, units=5)
    targets = Targets(ragged, sites=None, device=torch.device("cpu"))
    all_maps = _maps(targets)
    maps = all_maps["hidden"]
    mean, scale = targets.state_statistics(torch.arange(10), "hidden")
    maps.mean.copy_(mean)
    maps.scale.copy_(scale)
    thetas = torch.randn(3, 2)
    samples = [8, 0, 2, 3, 9, 4, 6]
    found = evaluate(
        meta_model,
        all_maps,
        thetas,
        targets,
        torch.tensor(samples),
        decisions={"class": True, "value": False},
    )
    for model, name in enumerate(ragged.ids):
        batch = ragged.inputs.batch(np.array(samples))
        trajectory = meta_model(batch.values, thetas[model], batch.lengths)
        real = torch.arange(6) < batch.lengths[:, None]
        matrix, offset = _matrix(all_maps, model)
        emulated = (trajectory.states["hidden"] @ matrix.T + offset)[real].detach().numpy()
        # R2 over all units together: residual and total are summed over units first.
        weights = ragged.states(name, samples=samples).astype(np.float64)
        expected = r2_score(weights, emulated, multioutput="variance_weighted")
        assert found.hidden_r2[model].item() == pytest.approx(expected, rel=1e-5)
        outputs = trajectory.outputs[ragged.output_group(name)].detach()
        stored = ragged.outputs(name, samples=samples)
        if ragged.output_group(name) == "class":
            agreement = float((outputs.numpy().argmax(1) == stored.argmax(1)).mean())
        else:
            agreement = r2_score(
                stored.astype(np.float64), outputs[real].numpy(), multioutput="variance_weighted"
            )
        assert found.output_agreement[model].item() == pytest.approx(agreement, rel=1e-5)


def test_only_stored_steps_count(strided: Population) -> None:
    torch.manual_seed(0)
    meta_model = GRUMetaModel(strided.population_spec, embedding_dim=2, units=5)
    targets = Targets(strided, sites=None, device=torch.device("cpu"))
    all_maps, thetas = _maps(targets), torch.randn(3, 2)
    found = evaluate(
        meta_model,
        all_maps,
        thetas,
        targets,
        torch.tensor([8, 0, 2, 3]),
        decisions={"class": True, "value": False},
    )
    for model, every in enumerate([2, 1, 3]):
        matrix, offset = _matrix(all_maps, model)
        emulated = []
        for sample in [8, 0, 2, 3]:
            batch = strided.inputs.batch([sample])
            states = meta_model(batch.values, thetas[model], batch.lengths).states["hidden"][0]
            emulated += list((states[::every] @ matrix.T + offset).detach().numpy())
        stored = strided.states(strided.ids[model], samples=[8, 0, 2, 3]).astype(np.float64)
        expected = r2_score(stored, np.array(emulated), multioutput="variance_weighted")
        assert found.hidden_r2[model].item() == pytest.approx(expected, rel=1e-5)
