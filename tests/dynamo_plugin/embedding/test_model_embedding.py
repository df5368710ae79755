"""What one can do with an embedding in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dynamo_plugin.embedding import ModelEmbedding, fit
from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.metamodels import AffineStateMaps, AmortisedStateMaps
from dynamo_plugin.store import Population


def test_the_table_holds_metadata_and_thetas(embedding: ModelEmbedding) -> None:
    frame = embedding.to_dataframe()
    assert list(frame.index) == list(embedding.ids)
    assert frame.loc["gru 2", "width"] == 4
    assert np.array_equal(frame.filter(like="theta_").to_numpy(), embedding.thetas.numpy())


def test_rendering_an_id_gives_the_meta_model_at_its_theta(embedding: ModelEmbedding) -> None:
    inputs = torch.randint(0, 9, (6, 5))
    lengths = torch.tensor([5, 1, 2, 5, 3, 4])
    for index, model in enumerate(embedding.ids):
        expected = embedding.meta_model(inputs, embedding.thetas[index], lengths)
        outputs = embedding.render(model)(inputs, lengths=lengths)
        group = embedding.output_groups[index]
        torch.testing.assert_close(outputs, expected.outputs[group], rtol=0, atol=1e-6)


def test_base_states_are_in_the_units_of_the_model(embedding: ModelEmbedding) -> None:
    inputs = torch.randint(0, 9, (6, 5))
    network = embedding.render("gru 2")
    states = network.base_states(inputs)
    hidden = network.trajectory(inputs).states["hidden"]
    maps = embedding.state_maps["hidden"]
    assert isinstance(maps, AffineStateMaps)
    matrix, offset = maps.matrix(1)
    assert states.shape == (6, 5, 4)
    torch.testing.assert_close(states, hidden @ matrix.T + offset)
    with pytest.raises(InvalidInput, match="rendered from a theta"):
        embedding.render(embedding.thetas[0], output_group="mood").base_states(inputs)


def test_averages_and_several_thetas_run(embedding: ModelEmbedding) -> None:
    inputs = torch.randint(0, 9, (6, 5))
    mean = embedding.thetas[:2].mean(0)
    average = embedding.render(mean, output_group="mood")(inputs)
    assert average.shape == (6, 2)
    side_by_side = embedding.render(torch.stack([mean, embedding.thetas[0]]), output_group="mood")(
        inputs
    )
    torch.testing.assert_close(side_by_side[0], average)
    both = embedding.render(["gru/1", "gru 2"])(inputs)
    for position, model in enumerate(["gru/1", "gru 2"]):
        torch.testing.assert_close(both[position], embedding.render(model)(inputs))
    as_list = embedding.render(mean.tolist(), output_group="mood")(inputs)
    torch.testing.assert_close(as_list, average)


def test_theta_can_be_given_per_sample(embedding: ModelEmbedding) -> None:
    inputs = torch.randint(0, 9, (2, 5))
    network = embedding.render("gru/1")
    outputs = network(inputs, theta=embedding.thetas[:2])
    torch.testing.assert_close(outputs[0], network(inputs)[0])
    torch.testing.assert_close(outputs[1], embedding.render("gru 2")(inputs)[1])


def test_rendering_a_theta_that_may_not_be_written_to(embedding: ModelEmbedding) -> None:
    theta = embedding.thetas.numpy().mean(0)
    theta.flags.writeable = False  # as rows of a pandas frame are
    network = embedding.render(theta, output_group="mood")
    torch.testing.assert_close(network.theta, torch.tensor(theta.tolist()))


def test_a_rendered_network_owns_its_weights(embedding: ModelEmbedding) -> None:
    inputs = torch.randint(0, 9, (2, 5))
    before = embedding.render("gru/1")(inputs)
    network = embedding.render("gru/1")
    for tensor in network.state_dict().values():
        tensor.zero_()
    torch.testing.assert_close(embedding.render("gru/1")(inputs), before)


@pytest.mark.parametrize(
    ("which", "group", "error", "message"),
    [
        ("gru-1", None, UnknownName, "no model 'gru-1'. Did you mean 'gru/1'"),
        (["gru/1", "lstm-ä"], None, InvalidInput, "output groups mood, topic"),
        ([0.0, 1.0], "mood", InvalidInput, r"theta of shape \(4,\).*got shape \(2,\)"),
        ([0.0, 1.0, 2.0, float("nan")], "mood", InvalidInput, "finite theta"),
        ([0.0, 1.0, 2.0, 3.0], None, InvalidInput, "Choose one with output_group"),
        ([0.0, 1.0, 2.0, 3.0], "moods", UnknownName, "Did you mean 'mood'"),
        ([], None, InvalidInput, "Expected a model id"),
    ],
)
def test_rendering_refuses(
    embedding: ModelEmbedding, which: Any, group: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        embedding.render(which, output_group=group)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": torch.zeros(2, 5)}, "integer ids, got torch.float32"),
        ({"inputs": torch.zeros(2, 5, 3)}, r"\(sample, time\) ids, got shape \(2, 5, 3\)"),
        ({"inputs": torch.full((2, 5), 9)}, "ids from 0 to 8, got ids from 9 to 9"),
        ({"inputs": torch.zeros(2, 0, dtype=torch.int64)}, "at least one time step"),
        (
            {"inputs": torch.zeros(2, 5).long(), "lengths": torch.tensor([6, 1])},
            "lengths .* from 1 to 5",
        ),
        (
            {"inputs": torch.zeros(2, 5).long(), "theta": torch.zeros(3)},
            r"theta \(..., 4\), got \(3,\)",
        ),
        (
            {"inputs": torch.zeros(2, 5).long(), "theta": torch.zeros(3, 4)},
            "do not broadcast with 2 samples",
        ),
    ],
)
def test_running_refuses(
    embedding: ModelEmbedding, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        embedding.render("gru/1")(**arguments)


def test_theta_distances_are_euclidean(embedding: ModelEmbedding) -> None:
    frame = embedding.distances()
    difference = embedding.thetas[0] - embedding.thetas[2]
    assert frame.loc["gru/1", "lstm-ä"] == pytest.approx(difference.norm().item(), rel=1e-6)
    pd.testing.assert_frame_equal(frame, frame.T)


def test_functional_distances_are_between_aligned_states(population: Population) -> None:
    embedding = fit(
        population,
        device="cpu",
        embedding_dim=2,
        leading_dim=2,
        steps=5,
        family_options={"units": 8, "token_dim": 3},
        progress=False,
    )
    assert embedding.common_maps is not None
    maps = embedding.common_maps["hidden"]
    assert isinstance(maps, AmortisedStateMaps)
    squared, steps = 0.0, 0
    for sample in embedding.held_out_samples.tolist():
        batch = population.inputs.batch([sample])
        aligned = []
        for model in ("gru/1", "gru 2"):
            theta = embedding.theta(model)
            states = embedding.meta_model(batch.values, theta, batch.lengths).states["hidden"]
            matrix = maps.weight[0] + theta[0] * maps.weight[1] + theta[1] * maps.weight[2]
            aligned.append(states @ matrix[:, :-1].T + matrix[:, -1])
        squared += float((aligned[0] - aligned[1]).square().mean(-1).sum())
        steps += int(batch.lengths)
    found = embedding.distances("functional").loc["gru/1", "gru 2"]
    assert found == pytest.approx((squared / steps) ** 0.5, rel=1e-4)


def test_functional_distances_match_a_plain_loop(population: Population) -> None:
    embedding = fit(population, device="cpu", alignment_weight=0.0, steps=20, progress=False)
    frame = embedding.distances("functional")
    squared, steps = 0.0, 0
    for sample in embedding.held_out_samples.tolist():
        batch = embedding.population.inputs.batch([sample])
        one, other = (
            embedding.meta_model(batch.values, embedding.theta(model), batch.lengths)
            for model in ("gru/1", "gru 2")
        )
        squared += float((one.states["hidden"] - other.states["hidden"]).square().mean(-1).sum())
        steps += int(batch.lengths)
    assert frame.loc["gru/1", "gru 2"] == pytest.approx((squared / steps) ** 0.5, rel=1e-5)
    assert (np.diag(frame) == 0).all()
    assert np.array_equal(frame, frame.T)
    with pytest.raises(InvalidInput, match="'pullback' or 'functional', got 'other'"):
        embedding.distances("other")  # type: ignore[arg-type]


def test_held_out_samples_were_not_trained_on(embedding: ModelEmbedding) -> None:
    both = torch.cat([embedding.training_samples, embedding.held_out_samples])
    assert sorted(both.tolist()) == list(range(len(embedding.population.sample_ids)))


def test_another_population_is_refused(
    embedding: ModelEmbedding, write_population: Callable[..., Population]
) -> None:
    rng = np.random.default_rng(3)
    other = write_population(
        {name: rng.normal(size=(6, 2)) for name in embedding.ids},
        {name: rng.normal(size=(2, 2)) for name in embedding.ids},
        rng.integers(0, 9, 6),
        [3, 3],
    )
    with pytest.raises(InvalidInput, match="not the one that was embedded: the inputs differ"):
        embedding.with_population(other)


def test_fit_refuses_what_is_no_population() -> None:
    with pytest.raises(InvalidInput, match="Expected a Population, got str"):
        fit("population.zarr")  # type: ignore[call-overload]


def test_is_frozen(embedding: ModelEmbedding) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        embedding.ids = ()  # type: ignore[misc]
