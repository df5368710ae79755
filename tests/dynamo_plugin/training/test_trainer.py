"""A fit as a whole: it learns, it repeats, it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynamo_plugin.errors import DivergedFit, InvalidConfig, InvalidInput, UnknownName
from dynamo_plugin.store import Population
from dynamo_plugin.training import FitConfig, FittedModels, Trainer, stepping, targets

CPU = torch.device("cpu")
SAMPLES, TIME = 40, 6


def _fit(population: Population, **settings: Any) -> FittedModels:
    defaults: dict[str, Any] = {"family_options": {"units": 16}, "embedding_dim": 2, "steps": 60}
    config = FitConfig.from_options({**defaults, **settings})
    return Trainer(population, config, device=CPU).run()


def _networks(scales: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """States of small random GRUs, times a number of one's choice, and logits read off them."""
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, TIME, 2)
    states, outputs = {}, {}
    for index, (name, scale) in enumerate(scales.items()):
        hidden = nn.GRU(2, 3 + index, batch_first=True)(inputs)[0].detach()
        states[name] = (scale * hidden).flatten(0, 1).numpy()
        outputs[name] = nn.Linear(3 + index, 3)(hidden[:, -1]).detach().numpy()
    return states, outputs, inputs.flatten(0, 1).numpy()


@pytest.fixture(scope="module")
def small(write_population: Callable[..., Population]) -> Population:
    states, outputs, inputs = _networks({"a": 1.0, "b": 1.0, "c": 1.0})
    return write_population(states, outputs, inputs, [TIME] * SAMPLES)


def test_the_loss_falls_and_held_out_samples_are_emulated(small: Population) -> None:
    history = _fit(small, steps=400).history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["held_out_hidden_r2"] > 0.8
    assert [row["step"] for row in history] == sorted({row["step"] for row in history})
    assert history[-1]["step"] == 400


def test_is_a_pure_function_of_population_settings_and_seed(small: Population) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first = _fit(small, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(321)
    again, other = _fit(small, seed=3), _fit(small, seed=4)
    assert torch.equal(first.thetas, again.thetas)
    for name, parameter in first.meta_model.state_dict().items():
        assert torch.equal(parameter, again.meta_model.state_dict()[name])
    assert first.history == again.history
    assert not torch.equal(first.thetas, other.thetas)


def test_the_scale_of_states_changes_nothing(
    small: Population, write_population: Callable[..., Population]
) -> None:
    states, outputs, inputs = _networks({"a": 10.0, "b": 1.0, "c": 0.01})
    scaled = _fit(write_population(states, outputs, inputs, [TIME] * SAMPLES))
    plain = _fit(small)
    torch.testing.assert_close(scaled.thetas, plain.thetas, rtol=1e-2, atol=1e-3)
    assert scaled.state_maps["hidden"].scale[0].item() == pytest.approx(
        10 * plain.state_maps["hidden"].scale[0].item(), rel=1e-5
    )


def test_without_normalisation_the_scale_matters(
    write_population: Callable[..., Population],
) -> None:
    states, outputs, inputs = _networks({"a": 10.0, "b": 1.0})
    population = write_population(states, outputs, inputs, [TIME] * SAMPLES)
    fitted, plain = (
        _fit(population, hidden_scale=scale, state_map_solver="gradient")
        for scale in ("none", "variance")
    )
    assert fitted.state_maps["hidden"].scale.tolist() == [1.0, 1.0]
    assert fitted.history[0]["hidden_loss"] > 2 * plain.history[0]["hidden_loss"]


def test_output_weight_zero_leaves_the_readout_as_it_was(small: Population) -> None:
    fitted = _fit(small, output_weight=0.0, seed=5)
    untrained = _fit(small, output_weight=0.0, seed=5, steps=1)
    readout = fitted.meta_model.get_submodule("readouts.0").state_dict()
    for name, value in untrained.meta_model.get_submodule("readouts.0").state_dict().items():
        assert torch.equal(readout[name], value)


def test_decay_draws_thetas_to_zero(small: Population) -> None:
    together: dict[str, Any] = {"leading_dim": None, "theta_init": "random"}
    free, decayed = (_fit(small, theta_decay=decay, **together) for decay in (0.0, 100.0))
    assert decayed.thetas.norm() < 0.2 * free.thetas.norm()


def test_some_models_per_step(small: Population) -> None:
    fitted = _fit(small, models_per_step=1, steps=30)
    assert np.isfinite([row["loss"] for row in fitted.history]).all()
    assert bool((fitted.thetas.norm(dim=1) > 0).all())


def test_a_step_in_several_passes_is_the_same_step(
    small: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A map that models share is solved in every pass, for what was seen by then.
    for solver in ("gradient", "ridge"):
        settings = {"state_map_solver": solver, "alignment_weight": 0.0}
        whole = _fit(small, steps=20, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(stepping, "ROWS_PER_PASS", 1)
            parts = _fit(small, steps=20, **settings)
        torch.testing.assert_close(parts.thetas, whole.thetas, rtol=1e-3, atol=1e-5)


def test_what_was_left_to_default_is_recorded(small: Population) -> None:
    config = _fit(small, steps=1).config
    assert config.output_loss == {small.population_spec.outputs[0].group: "kl"}
    assert config.family_options["units"] == 16
    assert config.family_options["token_dim"] == 128
    assert config.family_options["conditioning"] == "bias"
    assert config.theta_learning_rate == config.learning_rate
    assert _fit(small, steps=1, embedding_dim="auto").config.embedding_dim == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"family": "grue"}, UnknownName, "Did you mean 'gru'"),
        ({"hidden_loss": "l3"}, UnknownName, "l2"),
        ({"hidden_loss": "kl"}, InvalidConfig, "cannot be the hidden loss.*l2, l1"),
        ({"output_loss": "l2"}, InvalidConfig, "cannot be the output loss.*kl, mse"),
        ({"output_loss": {"outptu": "kl"}}, InvalidConfig, "names the output group 'outptu'"),
        ({"family_options": {"unit": 3}}, InvalidConfig, "does not take these options"),
        ({"sites": ["rn"]}, UnknownName, "Did you mean 'rnn'"),
    ],
)
def test_bad_settings_are_refused(
    small: Population, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _fit(small, **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
def test_an_accelerator_gives_the_same_fit(small: Population) -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    config = FitConfig(embedding_dim=2, steps=60, family_options={"units": 16})
    there = Trainer(small, config, device=accelerator).run()
    assert there.thetas.device == CPU
    here = _fit(small)
    assert there.history[-1]["loss"] == pytest.approx(here.history[-1]["loss"], rel=0.05)


def test_one_model_is_no_population(write_population: Callable[..., Population]) -> None:
    states, outputs, inputs = _networks({"a": 1.0})
    population = write_population(states, outputs, inputs, [TIME] * SAMPLES)
    with pytest.raises(InvalidInput, match="at least 2, and this population has 1"):
        _fit(population)


def test_one_sample_is_too_few(write_population: Callable[..., Population]) -> None:
    states, outputs, inputs = _networks({"a": 1.0, "b": 1.0})
    population = write_population(
        {name: rows[:TIME] for name, rows in states.items()},
        {name: rows[:1] for name, rows in outputs.items()},
        inputs[:TIME],
        [TIME],
    )
    with pytest.raises(InvalidInput, match="at least 2 samples"):
        _fit(population)


def test_divergence_names_the_step_and_the_models(small: Population) -> None:
    with pytest.raises(DivergedFit, match=r"at step \d+ \(models .*samples sample-"):
        _fit(small, learning_rate=1e30, clip=1e30, warmup=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (None, None, None),
        ("enough", None, "enough"),
        (None, "enough", "another process"),
        (None, "interrupted", "interrupted"),
        ("enough", "interrupted", "interrupted"),
    ],
)
def test_an_interruption_of_one_process_is_one_of_all(
    small: Population, ours: str | None, theirs: str | None, agreed: str | None
) -> None:
    config = FitConfig.from_options({"family_options": {"units": 4}, "embedding_dim": 2})
    fit = Trainer(small, config, device=CPU)
    flags = torch.tensor([theirs is not None, theirs == "interrupted"], dtype=torch.float32)
    ranks: Any = SimpleNamespace(size=2, total=lambda tensors: [tensors[0] + flags])
    fit.ranks, fit.stopped = ranks, ours
    assert fit._agree_to_stop() == (agreed is not None)
    assert fit.stopped == agreed


def test_where_states_are_read_from_makes_no_difference(
    ragged: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepping, "ROWS_PER_PASS", 20)  # several passes a step
    held = _fit(ragged, batch_size=4, steps=6)
    monkeypatch.setattr(targets, "IN_MEMORY_BYTES", 0)
    read = _fit(ragged, batch_size=4, steps=6)
    assert torch.equal(held.thetas, read.thetas)
    weights = read.meta_model.state_dict()
    for name, value in held.meta_model.state_dict().items():
        assert torch.equal(value, weights[name]), name
