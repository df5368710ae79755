"""Several fits at once are the fits of their seeds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynamo_plugin.embedding import ModelEmbedding, fit
from dynamo_plugin.errors import InvalidConfig, StoreExists
from dynamo_plugin.metamodels import GRUMetaModel, LSTMMetaModel
from dynamo_plugin.store import Population
from dynamo_plugin.training import PRESETS, Callback, FitConfig, Trainer, run_together, stepping
from dynamo_plugin.training.stacking import can_be_stacked, run_stacked
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec

SAMPLES, TIME, STEPS = 20, 6, 30
LENGTHS = [3, 6, 5, 2, 6] * 4
SETTINGS: dict[str, Any] = {
    "family_options": {"units": 8},
    "embedding_dim": 3,
    "steps": STEPS,
    "batch_size": 4,
}
WORDS = PopulationSpec(
    InputSpec("ids", 11),
    (OutputSpec("class", (3,), "float32", "sample"), OutputSpec("next", (2,), "float32", "time")),
)


@pytest.fixture(scope="module")
def population(write_population: Callable[..., Population]) -> Population:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ids = torch.from_numpy(rng.integers(0, 9, (SAMPLES, TIME)))
    real = torch.arange(TIME) < torch.tensor(LENGTHS)[:, None]
    states, outputs = {}, {}
    for index, name in enumerate("abcd"):
        network = nn.GRU(4, 3 + index, batch_first=True)
        hidden = network(nn.Embedding(9, 4)(ids))[0].detach()
        states[name] = hidden[real].numpy()
        last = hidden[torch.arange(SAMPLES), torch.tensor(LENGTHS) - 1]
        outputs[name] = nn.Linear(3 + index, 3)(last).detach().numpy()
    return write_population(states, outputs, ids[real].numpy(), LENGTHS)


def _fit(population: Population, **settings: Any) -> Any:
    return fit(population, **{"device": "cpu", "progress": False, **SETTINGS, **settings})


@pytest.mark.parametrize("family", [GRUMetaModel, LSTMMetaModel])
def test_stacked_meta_models_run_and_learn_as_each_alone(family: type[GRUMetaModel]) -> None:
    torch.manual_seed(0)
    models = [family(WORDS, embedding_dim=2, units=5, token_dim=3).double() for _ in range(3)]
    for model in models:
        for parameter in model.parameters():
            parameter.data.normal_(std=0.4)
    inputs = [torch.randint(0, 11, (4, time)) for time in (5, 3, 6)]
    lengths = [torch.randint(1, part.shape[1] + 1, (4,)) for part in inputs]
    thetas = [torch.randn(2, 2).double().requires_grad_() for _ in models]
    assert can_be_stacked(models)
    together = run_stacked(models, inputs, thetas, lengths)
    for model, mine, theta, own, found in zip(
        models, inputs, thetas, lengths, together, strict=True
    ):
        alone = model(mine[None], theta[:, None], own[None])
        values, expected = (
            {**trajectory.states, **trajectory.outputs} for trajectory in (found, alone)
        )
        learned = [theta, *model.parameters()]
        for name, value in expected.items():
            torch.testing.assert_close(values[name], value)
        gradients = [
            torch.autograd.grad(
                sum(value.square().sum() for value in part.values()), learned, retain_graph=True
            )
            for part in (values, expected)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


def test_different_shapes_are_not_stacked() -> None:
    shapes = ((2, 4), (2, 5), (3, 4))
    one, wide, other = (GRUMetaModel(WORDS, embedding_dim=d, units=units) for d, units in shapes)
    assert can_be_stacked([one, GRUMetaModel(WORDS, embedding_dim=2, units=4)])
    assert not can_be_stacked([one, wide])
    assert not can_be_stacked([one, other])


@pytest.mark.parametrize("settings", [{}, dict(PRESETS["paper"])], ids=["default", "paper"])
def test_fits_that_run_together_are_the_fits_of_their_seeds(
    population: Population, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, **settings, "steps": 8}
    calls: list[int] = []

    def counted(models: Any, *rest: Any) -> Any:
        calls.append(len(models))
        return run_stacked(models, *rest)

    monkeypatch.setattr(stepping, "run_stacked", counted)

    def made(seed: int) -> Trainer:
        config = FitConfig.from_options({**settings, "seed": seed})
        return Trainer(population, config, device=torch.device("cpu"))

    together = run_together([made(seed) for seed in (0, 1, 2)])
    assert calls == [3] * 8
    for seed, found in enumerate(together):
        alone = made(seed).run()
        torch.testing.assert_close(found.thetas, alone.thetas, rtol=1e-3, atol=1e-5)
        ours = [row["held_out_loss"] for row in found.history]
        assert ours == pytest.approx([row["held_out_loss"] for row in alone.history], rel=1e-3)
    assert len(calls) == 8


def test_seeds_by_number_or_by_name(population: Population) -> None:
    found = _fit(population, seeds=2, seed=3)
    assert [embedding.config.seed for embedding in found] == [3, 4]
    named = _fit(population, seeds=[4])
    assert torch.equal(named[0].thetas, found[1].thetas)
    alone = _fit(population, seed=4)
    assert isinstance(alone, ModelEmbedding)
    assert torch.equal(alone.thetas, found[1].thetas)
    with pytest.raises(InvalidConfig, match="each once; got \\[1, 1\\]"):
        _fit(population, seeds=[1, 1])
    with pytest.raises(InvalidConfig, match="at least one"):
        _fit(population, seeds=0)
    with pytest.raises(InvalidConfig, match="either seed or which seeds"):
        _fit(population, seeds=[1], seed=2)


class CtrlC(Callback):
    def step(self, fit: Trainer) -> None:
        if fit.step == 10:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
def test_several_fits_are_interrupted_and_resumed(population: Population, tmp_path: Path) -> None:
    whole = _fit(population, seeds=2)
    with pytest.warns(UserWarning, match="interrupted after 1[01] of 30 steps"):
        part = _fit(population, seeds=2, checkpoints=tmp_path, callbacks=[CtrlC()])
    assert len(part) == 1
    assert sorted(place.name for place in tmp_path.iterdir()) == ["seed-0", "seed-1"]
    with pytest.raises(StoreExists):
        _fit(population, seeds=2, checkpoints=tmp_path)
    resumed = _fit(population, seeds=2, checkpoints=tmp_path, resume=True)
    for one, other in zip(resumed, whole, strict=True):
        assert torch.equal(one.thetas, other.thetas)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
def test_an_accelerator_fits_several_at_once(population: Population) -> None:
    accelerator = torch.accelerator.current_accelerator()
    there = _fit(population, seeds=3, device=accelerator)
    here = _fit(population, seeds=3)
    for one, other in zip(there, here, strict=True):
        ours, theirs = one.history["loss"].iloc[-1], other.history["loss"].iloc[-1]
        assert ours == pytest.approx(theirs, rel=0.05)
