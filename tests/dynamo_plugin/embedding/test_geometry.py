"""The metric that the rendered states give theta, against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dynamo_plugin.embedding import ModelEmbedding, fit, geometry
from dynamo_plugin.store import Population

SETTINGS: list[dict[str, Any]] = [
    {},
    {"alignment_weight": 0.0},
    {"alignment_weight": 0.0, "state_map": "amortised"},
    {"family_options": {"units": 8, "token_dim": 3, "conditioning": "film"}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pullback_metric_matches_finite_differences(
    population: Population, settings: dict[str, Any]
) -> None:
    settings = {"family_options": {"units": 8, "token_dim": 3}, **settings}
    embedding = fit(
        population, device="cpu", embedding_dim=2, steps=20, theta_std=1.0, progress=False,
        **settings,
    )  # fmt: skip
    for module in (embedding.meta_model, embedding.state_maps, embedding.common_maps):
        if module is not None:
            module.double()
    thetas = embedding.thetas.double()
    expected = np.zeros((2, 2))
    count = 0
    shared = embedding.common_maps
    if shared is None and embedding.config.state_map == "amortised":
        shared = embedding.state_maps
    for sample in embedding.held_out_samples.tolist():
        batch = population.inputs.batch([sample])
        for model in range(len(thetas)):

            def states(theta: torch.Tensor, batch: Any = batch) -> torch.Tensor:
                hidden = embedding.meta_model(batch.values, theta, batch.lengths).states["hidden"]
                if shared is None:
                    first: torch.Tensor = hidden[0]
                    return first
                only = torch.tensor([0])
                mapped: torch.Tensor = shared["hidden"](hidden[None], only, theta[None])
                return mapped[0, 0]

            changes = []
            for direction in torch.eye(2).double():
                step = 1e-5 * direction
                change = states(thetas[model] + step) - states(thetas[model] - step)
                changes.append((change / 2e-5).detach().numpy())
            rows = np.stack(changes).reshape(2, -1)
            units = changes[0].shape[-1]
            expected += rows @ rows.T / units
            count += int(batch.lengths)
    double = ModelEmbedding(
        **{
            **{name: getattr(embedding, name) for name in embedding.__dataclass_fields__},
            "thetas": thetas,
        }
    )
    found = geometry.pullback_metric(double)
    np.testing.assert_allclose(found, expected / count, rtol=1e-5, atol=1e-10)


def test_pullback_distances_are_those_of_the_metric(embedding: ModelEmbedding) -> None:
    frame = embedding.distances("pullback")
    metric = geometry.pullback_metric(embedding)
    difference = (embedding.thetas[0] - embedding.thetas[2]).double().numpy()
    expected = np.sqrt(difference @ metric @ difference)
    assert frame.loc["gru/1", "lstm-ä"] == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(frame, frame.T)


def test_near_thetas_are_as_far_apart_as_what_they_do(population: Population) -> None:
    embedding = fit(
        population, device="cpu", embedding_dim=3, steps=20, theta_std=1.0, progress=False,
        family_options={"units": 8, "token_dim": 3},
    )  # fmt: skip
    centre = embedding.thetas[:1]
    near = ModelEmbedding(
        **{
            **{name: getattr(embedding, name) for name in embedding.__dataclass_fields__},
            "thetas": centre + 1e-3 * torch.randn(3, 3),
        }
    )
    theirs, ours = near.distances("functional"), near.distances("pullback")
    np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=1e-6)
