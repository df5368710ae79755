"""Leading dimensions of theta are learned first; private ones later, small, and for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynamo_plugin.embedding import ModelEmbedding, fit
from dynamo_plugin.errors import InvalidConfig
from dynamo_plugin.metamodels import GRUMetaModel
from dynamo_plugin.registry import get_registry
from dynamo_plugin.store import Population
from dynamo_plugin.training import Callback, FitConfig, Targets, Trainer
from dynamo_plugin.training.alignment import align_states
from dynamo_plugin.training.phases import phase_at

SAMPLES, TIME, STEPS = 40, 8, 50
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "progress": False,
    "family_options": {"units": 12},
    "steps": STEPS,
    "batch_size": 8,
    "embedding_dim": 6,
}


@pytest.fixture(scope="module")
def population(write_population: Callable[..., Population]) -> Population:
    """Two kinds of dynamics, three networks of each in a basis of its own."""
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, TIME, 2)
    states, outputs = {}, {}
    for kind in range(2):
        network, readout = nn.GRU(2, 5, batch_first=True), nn.Linear(5, 3)
        for parameter in network.parameters():
            parameter.data *= 2
        hidden = network(inputs)[0].detach()
        for number in range(3):
            basis = torch.linalg.qr(torch.randn(5, 5)).Q
            noisy = hidden + 0.05 * torch.randn_like(hidden)
            states[f"{kind}-{number}"] = (noisy @ basis).flatten(0, 1).numpy()
            outputs[f"{kind}-{number}"] = readout(noisy[:, -1]).detach().numpy()
    return write_population(states, outputs, inputs.flatten(0, 1).numpy(), [TIME] * SAMPLES)


class Thetas(Callback):
    """Keeps the thetas of every step, and of the start."""

    def begin(self, fit: Trainer) -> None:
        self.found = [fit.thetas]

    def step(self, fit: Trainer) -> None:
        self.found.append(fit.thetas)


def _watched(population: Population, **settings: Any) -> tuple[ModelEmbedding, Tensor]:
    thetas = Thetas()
    embedding = fit(population, callbacks=[thetas], **{**SETTINGS, **settings})
    return embedding, torch.stack(thetas.found)


def test_what_is_learned_when(population: Population) -> None:
    embedding, thetas = _watched(population, leading_dim=2, leading_share=0.4)
    moves = thetas.diff(dim=0).abs().amax(1) > 0  # (step, dimension)
    assert not moves[:10].any()  # thetas stay where they start until the meta-model can do a bit
    assert moves[10:20, :2].all()
    assert not moves[20:, :2].any()
    assert not moves[:20, 2:].any()
    assert moves[20:, 2:].all()
    torch.testing.assert_close(embedding.thetas, thetas[-1])


def test_all_at_once_where_there_is_no_difference(population: Population) -> None:
    _, thetas = _watched(population, leading_dim=None, theta_init="random")
    assert (thetas.diff(dim=0) != 0).any(1).all()


def test_leading_dimensions_start_along_the_components_of_aligned_states(
    population: Population,
) -> None:
    embedding, thetas = _watched(population, leading_dim=2, seed=3)
    targets = Targets(population, sites=None, device=torch.device("cpu"))
    samples = embedding.training_samples
    mean, scale = targets.state_statistics(samples, "hidden")
    gram = align_states(
        targets, samples, mean, scale, stage="hidden",
        generator=torch.Generator().manual_seed(3 + 3),
    ).deviations  # fmt: skip
    left, values, _ = np.linalg.svd(gram.numpy())
    expected = left[:, :2] * np.sqrt(values[:2])
    expected *= 0.2 / np.sqrt((expected**2).sum(1).mean())
    found = thetas[0, :, :2].double().numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-3, atol=1e-6)
    assert not thetas[0, :, 2:].any()


def test_distances_say_what_the_leading_dimension_says(population: Population) -> None:
    embedding = fit(population, **{**SETTINGS, "steps": 300})
    assert embedding.thetas.shape == (6, 6)
    assert embedding.config.leading_dim == 1
    spread = embedding.thetas.std(0)
    assert (spread[1:] > 0).all()
    assert spread[1:].norm() < 0.1 * spread[0]
    nearest = embedding.distances().to_numpy(copy=True)
    np.fill_diagonal(nearest, np.inf)
    kinds = np.repeat([0, 1], 3)
    assert (kinds[nearest.argmin(1)] == kinds).all()


def test_private_dimensions_emulate_what_is_private(population: Population) -> None:
    few = fit(population, **{**SETTINGS, "embedding_dim": "auto", "steps": 300})
    more = fit(population, **{**SETTINGS, "steps": 300})
    assert few.thetas.shape[1] == 1
    torch.testing.assert_close(few.thetas.shape, torch.Size([6, 1]))
    final = [float(e.history["held_out_loss"].iloc[-1]) for e in (few, more)]
    assert final[1] < final[0]


def test_the_turn_is_at_the_share_that_is_asked_for() -> None:
    config = FitConfig(steps=7, embedding_dim=3, leading_dim=1, leading_share=0.5)
    learned = [phase_at(step, config).dims for step in range(8)]
    assert learned == [slice(0, 0)] * 2 + [slice(0, 1)] * 2 + [slice(1, 3)] * 4
    assert [phase_at(step, config).alignment_weight for step in (3, 4)] == [1.0, 0.0]


def test_more_leading_dimensions_than_there_are(population: Population) -> None:
    with pytest.raises(InvalidConfig, match=r"at most embedding_dim \(2\), got 3"):
        fit(population, embedding_dim=2, leading_dim=3)
    embedding = fit(population, **{**SETTINGS, "embedding_dim": "auto", "leading_dim": 2})
    assert embedding.thetas.shape[1] == 2


def test_networks_that_do_the_same_have_the_same_theta(
    write_population: Callable[..., Population],
) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(SAMPLES, TIME, 2)
    hidden = nn.GRU(2, 5, batch_first=True)(inputs)[0].detach()
    outputs = nn.Linear(5, 3)(hidden[:, -1]).detach().numpy()
    orders = {"one": [0, 1, 2, 3, 4], "twin": [3, 1, 4, 0, 2], "again": [0, 1, 2, 3, 4]}
    population = write_population(
        {name: hidden[..., order].flatten(0, 1).numpy() for name, order in orders.items()},
        dict.fromkeys(orders, outputs),
        inputs.flatten(0, 1).numpy(),
        [TIME] * SAMPLES,
    )
    embedding = fit(population, **SETTINGS)
    assert embedding.distances().to_numpy().max() < 1e-3


class Fixed(GRUMetaModel):
    """A family that somebody wrote before there were units to change."""

    def theta_weights(self) -> list[tuple[Tensor, int]]:
        raise NotImplementedError


def test_a_family_whose_units_cannot_be_changed_says_so_at_once(
    population: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = get_registry()
    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: Fixed if kind == "meta_model" else load(kind, name)
    )
    with pytest.raises(InvalidConfig, match=r"no method theta_weights.*leading_dim=None"):
        fit(population, **SETTINGS)
    assert len(fit(population, **{**SETTINGS, "leading_dim": None, "steps": 1})) == 6
