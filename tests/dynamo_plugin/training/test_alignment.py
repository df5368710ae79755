"""Generalised Procrustes analysis against states that were rotated, and against scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from dynamo_plugin.store import Population
from dynamo_plugin.training import Targets
from dynamo_plugin.training.alignment import Alignment, align_states

SAMPLES, TIME = 60, 8


def _statistics(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and scale that give all models one size, padding included."""
    mean, scale = targets.state_statistics(torch.arange(SAMPLES), "hidden")
    units = torch.tensor(targets.units("hidden"))
    return mean, scale * (units / units.max()).sqrt()


def _align(
    write_population: Callable[..., Population], states: dict[str, NDArray[np.float64]]
) -> tuple[Alignment, Targets]:
    rng = np.random.default_rng(1)
    outputs = {name: rng.normal(size=(SAMPLES, 2)) for name in states}
    inputs = rng.normal(size=(SAMPLES * TIME, 1))
    population = write_population(states, outputs, inputs, [TIME] * SAMPLES)
    targets = Targets(population, sites=None, device=torch.device("cpu"))
    samples = torch.arange(SAMPLES)
    mean, scale = _statistics(targets)
    generator = torch.Generator().manual_seed(0)
    alignment = align_states(targets, samples, mean, scale, stage="hidden", generator=generator)
    return alignment, targets


def test_rotated_scaled_and_padded_copies_fall_together(
    write_population: Callable[..., Population],
) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(SAMPLES * TIME, 4)) * [3.0, 2.0, 1.0, 0.5]
    wide = np.concatenate([base, np.zeros((len(base), 2))], axis=1)
    states = {
        "base": base,
        "turned": 7 * base @ ortho_group.rvs(4, random_state=1) + 5,
        "permuted": base[:, [2, 0, 3, 1]],
        "embedded": wide @ ortho_group.rvs(6, random_state=2),
    }
    alignment, targets = _align(write_population, states)
    assert alignment.explained == pytest.approx(1, abs=1e-4)
    assert np.allclose(alignment.deviations, 0, atol=1e-4)
    identity = torch.eye(6).expand(4, -1, -1)
    products = alignment.rotations @ alignment.rotations.mT
    torch.testing.assert_close(products, identity, rtol=0, atol=1e-5)
    samples = torch.arange(SAMPLES)
    mean, scale = _statistics(targets)
    stored = targets.batch(torch.arange(4), samples).states["hidden"].flatten(1, 2)
    aligned = (stored - mean[:, None]) / scale[:, None, None] @ alignment.rotations.mT
    for other in aligned[1:]:
        torch.testing.assert_close(other, aligned[0], rtol=0, atol=1e-2)


def test_two_models_are_as_far_apart_as_scipy_says(
    write_population: Callable[..., Population],
) -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(SAMPLES * TIME, 5))
    other = one @ rng.normal(size=(5, 5)) + 0.5 * rng.normal(size=one.shape)
    alignment, _ = _align(write_population, {"one": one, "other": other})
    first, second = (
        (x - x.mean(0)) / np.sqrt(x.var(0).mean()) for x in (one, other)
    )  # as states are normalised
    rotation, _ = orthogonal_procrustes(first, second)
    expected = np.square(first @ rotation - second).sum() / len(first)
    # Both deviate from their mean by half of what they are apart.
    assert 4 * alignment.deviations[0, 0].item() == pytest.approx(expected, rel=1e-4)
    assert alignment.deviations[0, 1].item() == pytest.approx(-expected / 4, rel=1e-4)


def test_the_fit_is_a_fixed_point(write_population: Callable[..., Population]) -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=(SAMPLES * TIME, 4))
    states = {f"m{i}": base + rng.normal(size=base.shape) for i in range(5)}
    alignment, targets = _align(write_population, states)
    samples = torch.arange(SAMPLES)
    mean, scale = _statistics(targets)
    stored = targets.batch(torch.arange(5), samples).states["hidden"].flatten(1, 2)
    normal = ((stored - mean[:, None]) / scale[:, None, None]).double()
    aligned = normal @ alignment.rotations.mT.double()
    for model in range(5):
        others = aligned.sum(0) - aligned[model]
        rotation, _ = orthogonal_procrustes(normal[model].numpy(), others.numpy())
        found = float((aligned[model] * others).sum())
        best = float((normal[model] @ torch.from_numpy(rotation) * others).sum())
        assert found == pytest.approx(best, rel=1e-3)


def test_wide_states_are_aligned_in_their_leading_components(
    write_population: Callable[..., Population],
) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(SAMPLES * TIME, 6)) * [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    bases = [ortho_group.rvs(300, random_state=seed)[:6] for seed in range(3)]
    noise = [1e-3 * rng.normal(size=(len(base), 300)) for _ in bases]
    states = {
        f"net-{index}": base @ axes + small
        for index, (axes, small) in enumerate(zip(bases, noise, strict=True))
    }
    alignment, targets = _align(write_population, states)
    assert alignment.rotations.shape == (3, 256, 300)
    products = alignment.rotations @ alignment.rotations.mT
    torch.testing.assert_close(products, torch.eye(256).expand(3, -1, -1), rtol=0, atol=1e-4)
    assert alignment.explained == pytest.approx(1, abs=1e-4)
    batch = targets.batch(torch.arange(3), torch.arange(SAMPLES))
    mean, _ = targets.state_statistics(torch.arange(SAMPLES), "hidden")
    centred = (batch.states["hidden"].flatten(1, 2) - mean[:, None]).double()
    aligned = centred @ alignment.rotations.double().mT
    torch.testing.assert_close(aligned[0, :, :6], aligned[1, :, :6], rtol=0, atol=0.05)
    torch.testing.assert_close(aligned[0, :, :6], aligned[2, :, :6], rtol=0, atol=0.05)
    kept = aligned.square().sum() / centred.square().sum()
    assert float(kept) == pytest.approx(1, abs=1e-5)
