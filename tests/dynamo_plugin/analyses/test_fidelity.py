from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from dynamo_plugin.analyses import fidelity
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population


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
    assert result.to_dataframe()["interpretable"].sum() == (hidden >= hidden.median()).sum()
    assert result.below_threshold[0] == embedding.ids[int(hidden.argmin())]
    summary = result.summary()
    json.dumps(summary, allow_nan=False)
    assert summary["below_threshold"] == list(result.below_threshold)


def test_the_plot_has_a_point_per_model(embedding: ModelEmbedding) -> None:
    figure = fidelity(embedding).plot()
    assert [len(trace.x) for trace in figure.data] == [6, 6, 6]


@pytest.mark.parametrize(
    "options", [{"samples": "training"}, {"threshold": float("nan")}, {"threshold": 2}]
)
def test_bad_options(embedding: ModelEmbedding, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        fidelity(embedding, **options)
