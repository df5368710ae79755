"""Scores over a plane against networks rendered one by one, and the choice of the best point."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import dynamo_plugin as dp
from dynamo_plugin.analyses import landscape
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName


def halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]


def right(
    embedding: ModelEmbedding, which: Any, classes: NDArray[np.int64], samples: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which samples a rendered network gets right, one network at a time."""
    batch = embedding.population.inputs.batch(samples)
    outputs = embedding.render(which)(batch.values, lengths=batch.lengths)
    found: NDArray[np.bool_] = outputs.argmax(-1).numpy() == classes[samples]
    return found


@pytest.mark.parametrize("samples", ["held_out", "all"])
def test_scores_are_those_of_networks_rendered_one_by_one(
    embedding: ModelEmbedding, classes: NDArray[np.int64], samples: Any
) -> None:
    result = landscape(embedding, resolution=6, samples=samples, seed=3)
    chosen = embedding.held_out_samples.numpy() if samples == "held_out" else np.arange(20)
    first, second = halves(len(chosen), 3)
    table = result.to_dataframe()
    assert len(table) == len(result.thetas) == 36
    assert result.sample_counts == (len(first), len(second))
    grid = torch.tensor(result.thetas.to_numpy(), dtype=torch.float32)
    loop = np.stack([right(embedding, theta, classes, chosen) for theta in grid])
    networks = np.stack([right(embedding, name, classes, chosen) for name in embedding.ids])
    own = np.stack(
        [
            embedding.population.outputs(name, samples=chosen).argmax(-1) == classes[chosen]
            for name in embedding.ids
        ]
    )
    for prefix, frame, gains in (
        ("", table, loop),
        ("emulated_", result.networks, networks),
        ("own_", result.networks, own),
    ):
        for half, places in (("chosen", first), ("held_out", second)):
            part = gains[:, places]
            np.testing.assert_allclose(frame[f"{prefix}{half}_score"], part.mean(1))
            error = part.std(1, ddof=1) / np.sqrt(len(places))
            np.testing.assert_allclose(frame[f"{prefix}{half}_se"], error, atol=1e-12)
    best = result.table.iloc[result.best]
    assert best["chosen_score"] == loop[:, first].mean(1).max()
    assert result.ties == (loop[:, first].mean(1) == best["chosen_score"]).sum()
    candidates = result.candidates.set_index("candidate")
    picked = {
        "mean": right(embedding, embedding.thetas.mean(0), classes, chosen),
        "best emulated network": networks[networks[:, first].mean(1).argmax()],
        "best network": own[own[:, first].mean(1).argmax()],
        "best grid point": loop[result.best],
    }
    for name, gains in picked.items():
        row = candidates.loc[name]
        assert row["held_out_score"] == pytest.approx(gains[second].mean())
        differences = loop[result.best][second].astype(float) - gains[second]
        assert row["difference"] == pytest.approx(differences.mean())
        error = differences.std(ddof=1) / np.sqrt(len(second))
        assert row["difference_se"] == pytest.approx(error, abs=1e-12)
    position = own[:, first].mean(1).argmax()
    assert candidates.loc["best network", "model"] == embedding.ids[position]


def test_equal_points_do_not_favour_the_edge(embedding: ModelEmbedding) -> None:
    result = landscape(embedding, targets=np.zeros(20, dtype=int), resolution=5)
    equal = result.table["chosen_score"] == result.table["chosen_score"].max()
    distances = np.linalg.norm(result.thetas - embedding.thetas.double().numpy().mean(0), axis=1)
    assert distances[result.best] == distances[equal].min()


def test_r2_per_step_in_one_output_group(per_step_embedding: ModelEmbedding) -> None:
    embedding = per_step_embedding
    population = embedding.population
    targets = np.random.default_rng(0).normal(size=(int(population.offsets[-1]), 2))
    group = {"targets": targets, "output_group": "task-rnn"}
    result = landscape(embedding, resolution=3, **group)  # type: ignore[arg-type]
    assert result.score_kind == "r2"
    assert result.networks["model"].tolist() == ["rnn-1", "rnn-3", "rnn-5"]
    samples = embedding.held_out_samples.numpy()
    _, second = halves(len(samples), 0)

    def rows(places: NDArray[np.int64]) -> NDArray[np.int64]:
        spans = [np.arange(population.offsets[s], population.offsets[s + 1]) for s in places]
        return np.concatenate(spans)

    mean = targets[rows(samples)].mean(0)
    wanted = targets[rows(samples[second])]
    for place, theta in enumerate(torch.tensor(result.thetas.to_numpy(), dtype=torch.float32)):
        network = embedding.render(theta, output_group="task-rnn")
        outputs = np.concatenate(
            [network(population.inputs.batch([s]).values).numpy()[0] for s in samples[second]]
        )
        expected = 1 - ((outputs - wanted) ** 2).sum() / ((wanted - mean) ** 2).sum()
        assert result.table["held_out_score"][place] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InvalidInput, match="Choose one with"):
        landscape(embedding, targets=targets)


def test_hull_and_distances(embedding: ModelEmbedding) -> None:
    three = list(embedding.ids[:3])
    result = landscape(embedding, plane=three, resolution=7, margin=0.0)
    thetas, grid = embedding.thetas.double().numpy(), result.thetas.to_numpy()
    apart = np.linalg.norm(grid[:, None] - thetas, axis=2)
    np.testing.assert_allclose(result.table["distance"], apart.min(1))
    assert result.table["nearest"].tolist() == [embedding.ids[n] for n in apart.argmin(1)]
    # The three networks are inside, and so is what lies between them.
    inside = result.table["in_hull"]
    assert 0 < inside.sum() < 49
    assert result.table.loc[inside, "in_projected_hull"].all()
    np.testing.assert_allclose(result.networks["plane_distance"][:3], 0, atol=1e-7)
    assert (result.networks["plane_distance"][3:] > 1e-3).all()
    best = result.candidates.set_index("candidate").loc["best grid point in hull"]
    assert best["chosen_score"] == result.table.loc[inside, "chosen_score"].max()


def test_a_plane_that_misses_the_hull(embedding: ModelEmbedding) -> None:
    far = embedding.thetas.clone()
    far[:, 3] = torch.tensor([0.0, 0, 0, 0, 0, 6])
    lifted = dataclasses.replace(embedding, thetas=far)
    result = landscape(lifted, plane=[[1, 0, 0, 0], [0, 1, 0, 9]], resolution=2, margin=3.0)
    row = result.candidates.set_index("candidate").loc["best grid point in hull"]
    assert not result.table["in_hull"].any()
    assert row["held_out_score"] is pd.NA
    assert "no grid point" in row["note"]
    json.dumps(result.summary(), allow_nan=False)
    result.plot()


def test_by_name_with_summary_and_plot(embedding: ModelEmbedding) -> None:
    result = dp.analyse("landscape", embedding, resolution=4)
    summary: dict[str, Any] = json.loads(json.dumps(result.summary(), allow_nan=False))
    best = summary["candidates"][0]
    assert best["candidate"] == "best grid point"
    assert summary["best_point"]["held_out_score"] == best["held_out_score"]
    assert summary["best_point"]["held_out_se"] >= 0
    assert summary["best_point"]["in_hull"] in (True, False)
    assert best["difference"] == best["difference_se"] == 0
    heat, _, networks, star = result.plot().data
    table = result.to_dataframe()
    assert heat.z[1][2] == table["held_out_score"][6]
    assert (heat.x[2], heat.y[1]) == (table["x"][6], table["y"][6])
    assert len(networks.x) == len(embedding.ids)
    assert star.x[0] == summary["best_point"]["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1}, "resolution must be at least 2"),
        ({"margin": -0.1}, "margin must be"),
        ({"margin": float("nan")}, "margin must be"),
        ({"samples": "some"}, "'held_out' or 'all'"),
        ({"plane": "axes"}, "plane must be"),
        ({"margin": 1e45}, "stay nearer"),
    ],
)
def test_bad_options(embedding: ModelEmbedding, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        landscape(embedding, **{"resolution": 2, **options})


def test_too_few_samples(embedding: ModelEmbedding) -> None:
    few = dataclasses.replace(embedding, held_out_samples=embedding.held_out_samples[:3])
    with pytest.raises(InvalidInput, match="takes 4 or more, got 3"):
        landscape(few)
    with pytest.raises(UnknownName, match="'nothing'"):
        landscape(embedding, output_group="nothing")
