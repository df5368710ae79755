"""Fitting again, against fits that are made from nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dynamo_plugin as dp
from dynamo_plugin.embedding.refitting import refit
from dynamo_plugin.store import Population

Write = Callable[..., Population]
LENGTHS = [3, 2, 4, 3, 1, 4, 2, 3, 4, 2]
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "progress": False,
    "embedding_dim": 3,
    "steps": 8,
    "held_out": 0.3,
    "family_options": {"units": 5},
}


def _write(write: Write, *, changed: tuple[int, ...] = (), names: str = "abcd") -> Population:
    """Return a population, in which some samples may be altogether different."""
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    differs = np.isin(owner, changed)

    def rows(width: int) -> Any:
        values = rng.normal(size=(len(owner), width)).astype(np.float32)
        values[differs] += other.normal(size=(int(differs.sum()), width)).astype(np.float32)
        return values

    inputs = rows(2)
    states = {name: rows(4) for name in names}
    outputs = {name: rows(2) for name in names}
    return write(states, outputs, inputs, LENGTHS)


def test_the_same_settings_give_the_same_fit(write_population: Write) -> None:
    population = _write(write_population)
    embedding = dp.fit(population, seed=3, **SETTINGS)
    again, other = refit(
        embedding,
        [embedding.config, dataclasses.replace(embedding.config, seed=5)],
        device="cpu",
        progress=False,
    )
    fresh = dp.fit(population, seed=5, **SETTINGS)
    for made, expected in ((again, embedding), (other, fresh)):
        assert torch.equal(made.thetas, expected.thetas)
        assert torch.equal(made.held_out_samples, expected.held_out_samples)
        assert made.config == expected.config
        for name, value in made.meta_model.state_dict().items():
            assert torch.equal(value, expected.meta_model.state_dict()[name])
    assert other.provenance == embedding.provenance
    assert other.population is embedding.population


def test_only_embedded_models_are_fitted_in_their_order(write_population: Write) -> None:
    population = _write(write_population)
    embedding = dp.fit(_write(write_population), **SETTINGS)
    # The same networks in a population that has another one, in another order.
    states = {name: population.states(name) for name in "abcd"}
    outputs = {name: population.outputs(name) for name in "abcd"}
    rng = np.random.default_rng(5)
    states["e"] = rng.normal(size=states["a"].shape).astype(np.float32)
    outputs["e"] = rng.normal(size=outputs["a"].shape).astype(np.float32)
    larger = write_population(states, outputs, population.inputs.values, LENGTHS)
    (again,) = refit(
        embedding.with_population(larger), [embedding.config], device="cpu", progress=False
    )
    assert again.ids == ("a", "b", "c", "d")
    assert torch.equal(again.thetas, embedding.thetas)


def test_samples_that_are_kept_aside_are_never_trained_on(write_population: Write) -> None:
    plain = dp.fit(_write(write_population), **SETTINGS)
    aside = tuple(plain.held_out_samples.tolist())
    changed = dp.fit(_write(write_population, changed=aside), **SETTINGS)
    differs = changed.population.outputs("a") != plain.population.outputs("a")
    assert differs.any(1).sum() == sum(LENGTHS[sample] for sample in aside)
    drawn = plain.training_samples[torch.tensor([0, 0, 1, 3, 3, 3, 5])]
    found = [
        refit(
            embedding,
            [embedding.config],
            samples=[(drawn, embedding.held_out_samples)],
            device="cpu",
            progress=False,
        )[0]
        for embedding in (plain, changed)
    ]
    assert torch.equal(found[0].thetas, found[1].thetas)
    assert not torch.equal(found[0].thetas, plain.thetas)
    assert torch.equal(found[0].training_samples, drawn)
    assert torch.equal(found[0].held_out_samples, plain.held_out_samples)


def test_an_interrupted_fit_is_no_fit(
    write_population: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynamo_plugin.training import trainer

    embedding = dp.fit(_write(write_population), **SETTINGS)
    real = trainer.Trainer._goes_on

    def interrupted(self: Any, *, interrupted: bool) -> bool:
        return real(self, interrupted=interrupted or self.step == 3)

    monkeypatch.setattr(trainer.Trainer, "_goes_on", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refit(embedding, [embedding.config] * 2, device="cpu", progress=False)


def test_fits_that_run_together_are_those_that_run_alone(write_population: Write) -> None:
    from dynamo_plugin.training import Trainer, run_together

    embedding = dp.fit(_write(write_population), **SETTINGS)
    drawn = embedding.training_samples[torch.tensor([0, 0, 1, 3, 3, 3, 5])]
    configs = [
        embedding.config,
        dataclasses.replace(embedding.config, output_weight=0.0),
        dataclasses.replace(embedding.config, output_weight=5.0),
    ]
    samples = [(drawn, embedding.held_out_samples), None, None]
    alone = refit(embedding, configs, samples=samples, device="cpu", progress=False)
    trainers = [
        Trainer(embedding.population, config, device=torch.device("cpu"), samples=part)
        for config, part in zip(configs, samples, strict=True)
    ]
    for found, expected in zip(run_together(trainers), alone, strict=True):
        torch.testing.assert_close(found.thetas, expected.thetas, rtol=1e-3, atol=1e-4)
