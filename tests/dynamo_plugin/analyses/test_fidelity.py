from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, rel_entr, softmax
from scipy.stats import entropy
from sklearn.metrics import mean_squared_error, r2_score
from torch import nn

from dynamo_plugin.analyses import fidelity
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population
from tests.dynamo_plugin.analyses.conftest import capture, fit, make_models


def emulate(embedding: ModelEmbedding, model: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the rows of states and outputs of a model's rendered network, held-out samples."""
    samples = embedding.held_out_samples.numpy()
    batch = embedding.population.inputs.batch(samples)
    network = embedding.render(model)
    states = network.base_states(batch.values, lengths=batch.lengths)
    outputs = network(batch.values, lengths=batch.lengths).numpy()
    real = (np.arange(states.shape[1]) < batch.lengths.numpy()[:, None]).astype(bool)
    return states.numpy()[real], outputs[real] if outputs.ndim == 3 else outputs


def test_agrees_with_rendered_networks(embedding: ModelEmbedding) -> None:
    result = fidelity(embedding)
    samples = embedding.held_out_samples.numpy()
    assert result.sample_count == len(samples)
    for row in result.to_dataframe().to_dict(orient="records"):
        states, outputs = emulate(embedding, row["model"])
        truth = embedding.population.states(row["model"], samples=samples)
        expected = r2_score(truth, states, multioutput="variance_weighted")
        assert row["hidden_r2"] == pytest.approx(expected, abs=1e-5)
        decided = embedding.population.outputs(row["model"], samples=samples).argmax(1)
        assert row["output_agreement"] == pytest.approx((decided == outputs.argmax(1)).mean())
        assert row["output_kind"] == "decisions"


def test_real_outputs_per_step_are_compared_by_r2(per_step_embedding: ModelEmbedding) -> None:
    table = fidelity(per_step_embedding).to_dataframe()
    samples = per_step_embedding.held_out_samples.numpy()
    assert set(table["output_group"]) == {"task-gru", "task-rnn"}
    for row in table.to_dict(orient="records"):
        _, outputs = emulate(per_step_embedding, row["model"])
        truth = per_step_embedding.population.outputs(row["model"], samples=samples)
        expected = r2_score(truth, outputs, multioutput="variance_weighted")
        assert row["output_kind"] == "r2"
        assert row["output_agreement"] == pytest.approx(expected, abs=1e-5)


def test_the_baseline_is_the_mean_theta_of_the_output_group(
    per_step_embedding: ModelEmbedding,
) -> None:
    embedding = per_step_embedding
    baseline = fidelity(embedding).to_dataframe()["hidden_r2_mean_theta"]
    thetas = embedding.thetas.clone()
    groups = np.array(embedding.output_groups)
    for group in set(groups):
        thetas[groups == group] = thetas[groups == group].mean(0)
    averaged = dataclasses.replace(embedding, thetas=thetas)
    expected = fidelity(averaged).to_dataframe()
    np.testing.assert_allclose(baseline, expected["hidden_r2"], atol=1e-6)
    assert not np.allclose(baseline, fidelity(embedding).to_dataframe()["hidden_r2"], atol=1e-4)


def test_a_population_that_has_grown_gives_the_same(
    embedding: ModelEmbedding, grown: Population
) -> None:
    assert grown.ids[1:7] == embedding.ids
    found = fidelity(embedding.with_population(grown)).to_dataframe()
    pd.testing.assert_frame_equal(found, fidelity(embedding).to_dataframe())


def test_all_samples(embedding: ModelEmbedding) -> None:
    result = fidelity(embedding, samples="all")
    assert result.sample_count == len(embedding.population.sample_ids)
    assert result.summary()["samples"] == "all"


def test_the_threshold_decides_what_is_interpretable(embedding: ModelEmbedding) -> None:
    hidden = fidelity(embedding).to_dataframe()["hidden_r2"]
    result = fidelity(embedding, threshold=float(hidden.median()))
    table = result.to_dataframe()
    low = table["reason"].str.startswith("hidden R2 below")
    assert low.tolist() == (hidden < hidden.median()).tolist()
    assert not table["interpretable"][low].any()
    assert (table["interpretable"] == (table["reason"] == "")).all()
    assert result.below_threshold[0] == embedding.ids[int(hidden.argmin())]
    assert set(result.not_interpretable) == set(table["model"][~table["interpretable"]])
    summary = result.summary()
    json.dumps(summary, allow_nan=False)
    assert summary["below_threshold"] == list(result.below_threshold)


def test_the_plot_has_a_point_per_model(embedding: ModelEmbedding) -> None:
    figure = fidelity(embedding).plot()
    assert [len(trace.x) for trace in figure.data] == [6, 6, 6, 6]


def test_divergence_is_that_of_scipy(embedding: ModelEmbedding) -> None:
    samples = embedding.held_out_samples.numpy()
    batch = embedding.population.inputs.batch(samples)
    mean = embedding.render(embedding.thetas.mean(0))(batch.values, lengths=batch.lengths).numpy()
    for row in fidelity(embedding, untrained=False).to_dataframe().to_dict(orient="records"):
        _, outputs = emulate(embedding, row["model"])
        truth = softmax(embedding.population.outputs(row["model"], samples=samples), axis=1)
        for column, values in (("", outputs), ("_mean_theta", mean)):
            expected = entropy(truth, softmax(values, axis=1), axis=1).mean()
            assert row[f"output_divergence{column}"] == pytest.approx(expected, abs=1e-6)
            agree = (truth.argmax(1) == values.argmax(1)).mean()
            assert row[f"output_agreement{column}"] == pytest.approx(agree)
        assert row["divergence_kind"] == "kl"


def test_steps_agree_with_rendered_networks(per_step_embedding: ModelEmbedding) -> None:
    embedding = per_step_embedding
    result = fidelity(embedding, untrained=False)
    steps = result.by_step
    table: Any = result.to_dataframe().set_index("model")
    samples = embedding.held_out_samples.numpy()
    lengths = np.asarray(embedding.population.lengths)[samples]
    number = np.concatenate([np.arange(length) for length in lengths])
    for model, own in steps.groupby("model"):
        states, outputs = emulate(embedding, str(model))
        truth = embedding.population.states(str(model), samples=samples)
        said = embedding.population.outputs(str(model), samples=samples)
        assert table.loc[model, "output_divergence"] == pytest.approx(
            mean_squared_error(said, outputs), rel=1e-4
        )
        variance = ((truth - truth.mean(0)) ** 2).sum(1).mean()
        for row in own.to_dict(orient="records"):
            here = number == row["step"]
            assert row["samples"] == here.sum()
            error = ((truth[here] - states[here]) ** 2).sum(1).mean() / variance
            assert row["hidden_error"] == pytest.approx(error, abs=1e-5)
            assert row["output_divergence"] == pytest.approx(
                mean_squared_error(said[here], outputs[here]), rel=1e-4
            )
            for column, one, other in (
                ("hidden_r2", truth, states),
                ("output_agreement", said, outputs),
            ):
                expected = r2_score(one[here], other[here], multioutput="variance_weighted")
                assert row[column] == pytest.approx(expected, abs=1e-4)
        weighted = np.average(own["hidden_error"], weights=own["samples"])
        assert 1 - weighted == pytest.approx(table.loc[model, "hidden_r2"], abs=1e-5)


def test_the_untrained_baseline_is_a_ridge_on_random_features(embedding: ModelEmbedding) -> None:
    table = fidelity(embedding, seed=3).to_dataframe().set_index("model")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        options: dict[str, Any] = embedding.meta_model.options()
        fresh = type(embedding.meta_model)(embedding.meta_model.spec, **options)
    random = dataclasses.replace(embedding, meta_model=fresh)
    parts = {}
    for name, samples in (
        ("training", embedding.training_samples.numpy()),
        ("held_out", embedding.held_out_samples.numpy()),
    ):
        batch = embedding.population.inputs.batch(samples)
        real = np.arange(batch.values.shape[1]) < batch.lengths.numpy()[:, None]
        parts[name] = samples, batch, real
    for model in embedding.ids:
        network = random.render(model)
        states, truth = {}, {}
        for name, (samples, batch, real) in parts.items():
            with torch.no_grad():
                ran = network.trajectory(batch.values, lengths=batch.lengths).states["hidden"]
            states[name] = ran.double().numpy()[real]
            truth[name] = embedding.population.states(model, samples=samples).astype(np.float64)
        x, y = states["training"], truth["training"]
        centred = x - x.mean(0)
        moment = centred.T @ centred / len(x)
        penalty = 1e-3 * np.trace(moment) / len(moment) * np.eye(len(moment))
        weight = np.linalg.solve(moment + penalty, centred.T @ (y - y.mean(0)) / len(x))
        guess = y.mean(0) + (states["held_out"] - x.mean(0)) @ weight
        expected = r2_score(truth["held_out"], guess, multioutput="variance_weighted")
        assert table.loc[model, "hidden_r2_untrained"] == pytest.approx(expected, abs=1e-4)
    kept = fidelity(embedding, untrained=False).to_dataframe()
    assert not any("untrained" in str(column) for column in kept)


def test_gains_have_paired_standard_errors(embedding: ModelEmbedding) -> None:
    table = fidelity(embedding, untrained=False).to_dataframe().set_index("model")
    samples = embedding.held_out_samples.numpy()
    lengths = np.asarray(embedding.population.lengths)[samples]
    starts = np.cumsum(lengths) - lengths
    shared = dataclasses.replace(embedding, thetas=embedding.thetas.mean(0).expand(6, -1))
    for model in embedding.ids:
        truth = embedding.population.states(model, samples=samples)
        total = ((truth - truth.mean(0)) ** 2).sum()
        own, mean = (
            np.add.reduceat(((truth - emulate(one, model)[0]) ** 2).sum(1), starts) / total
            for one in (embedding, shared)
        )
        found = table.loc[model]
        assert found["above_mean_theta"] == pytest.approx((mean - own).sum(), abs=1e-5)
        error = np.sqrt(len(samples)) * np.std(mean - own, ddof=1)
        assert found["above_mean_theta_error"] == pytest.approx(error, rel=1e-3)


def test_sites_joined_in_one_state_have_figures_of_their_own() -> None:
    torch.manual_seed(0)
    models = {f"lstm-{i}": nn.LSTM(3, 4 + i, num_layers=2, batch_first=True) for i in range(3)}
    population = capture(dict(models), output=0)
    for options in ({}, {"state_map": "amortised", "alignment_weight": 0.0}):
        embedding = fit(population, **options)
        result = fidelity(embedding, untrained=False)
        samples = embedding.held_out_samples.numpy()
        for model, rows in result.by_site.groupby("model"):
            sites = population.spec(str(model)).sites
            assert rows["site"].tolist() == [site.name for site in sites]
            assert len(sites) > 1
            states, _ = emulate(embedding, str(model))
            start = 0
            for site, found in zip(sites, rows["hidden_r2"], strict=True):
                truth = population.states(str(model), site.name, samples=samples)
                own = states[:, start : start + truth.shape[1]]
                start += truth.shape[1]
                expected = r2_score(truth, own, multioutput="variance_weighted")
                assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "options", [{"samples": "training"}, {"threshold": float("nan")}, {"threshold": 2}]
)
def test_bad_options(embedding: ModelEmbedding, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        fidelity(embedding, **options)


@pytest.mark.parametrize("kind", ["orthogonal", "mlp", "linear"])
def test_maps_without_a_closed_form_have_an_affine_baseline(kind: str) -> None:
    models = make_models(1, per_step=False, count=3)
    options: dict[str, Any] = {"state_map": kind, "alignment_weight": 0.0, "output_loss": "kl"}
    embedding = fit(capture(models), **options)
    table = fidelity(embedding).to_dataframe()
    assert table["hidden_r2_untrained"].between(0, 1).all()
    samples = embedding.held_out_samples.numpy()
    for row in table.to_dict(orient="records"):
        _, outputs = emulate(embedding, row["model"])
        truth = expit(embedding.population.outputs(row["model"], samples=samples))
        guess = expit(outputs)
        expected = (rel_entr(truth, guess) + rel_entr(1 - truth, 1 - guess)).mean()
        assert row["output_divergence"] == pytest.approx(expected, abs=1e-6)
