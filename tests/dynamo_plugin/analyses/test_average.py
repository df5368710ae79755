from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import sem
from sklearn.metrics import r2_score
from torch import nn

import dynamo_plugin as dp
from dynamo_plugin.analyses import average
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.tasks import train_flip_flop_population
from tests.dynamo_plugin.analyses.conftest import LENGTHS, Classifier, capture, fit, make_models


def test_scores_are_those_of_rendered_networks(
    embedding: ModelEmbedding, classes: NDArray[np.int64]
) -> None:
    result = average(embedding, labels="architecture")
    samples = embedding.held_out_samples.numpy()
    batch = embedding.population.inputs.batch(samples)
    table = result.to_dataframe().set_index("group")
    assert list(table.index) == ["gru", "rnn", "all"]
    for group, row in table.iterrows():
        members = [n for n in embedding.ids if group == "all" or n.startswith(str(group))]
        positions = [embedding.index(name) for name in members]
        assert row["members"] == len(members)
        centroid = embedding.render(embedding.thetas[positions].mean(0))
        decided = centroid(batch.values, lengths=batch.lengths).argmax(-1).numpy()
        assert row["centroid_score"] == pytest.approx((decided == classes[samples]).mean())
        emulated = [
            (
                embedding.render(name)(batch.values, lengths=batch.lengths).argmax(-1).numpy()
                == classes[samples]
            ).mean()
            for name in members
        ]
        own = [
            (embedding.population.outputs(name).argmax(-1) == classes)[samples].mean()
            for name in members
        ]
        for column, values in (("members_emulated", emulated), ("members", own)):
            assert row[f"{column}_mean"] == pytest.approx(np.mean(values))
            assert row[f"{column}_min"] == pytest.approx(min(values))
            assert row[f"{column}_max"] == pytest.approx(max(values))
    json.dumps(result.summary(), allow_nan=False)
    np.testing.assert_allclose(
        result.centroids.loc["all"], embedding.thetas.mean(0).numpy(), atol=1e-7
    )
    assert len(result.plot().data[0].x) == 3


def test_ensembles_and_sets_by_a_loop(
    embedding: ModelEmbedding, classes: NDArray[np.int64]
) -> None:
    chosen = ["gru-0", "rnn-3", "gru-4"]
    result = average(embedding, models={"mine": chosen, "one": ["rnn-1"]})
    table = result.to_dataframe().set_index("group")
    assert list(table.index) == ["all", "mine", "one"]
    samples = embedding.held_out_samples.numpy()
    batch = embedding.population.inputs.batch(samples)
    for group, members in (("all", embedding.ids), ("mine", chosen), ("one", ["rnn-1"])):
        probabilities = sum(
            softmax(embedding.population.outputs(name, samples=samples), axis=1) for name in members
        )
        right = (np.asarray(probabilities).argmax(1) == classes[samples]).astype(float)
        row: Any = table.loc[group]
        assert row["ensemble_score"] == pytest.approx(right.mean())
        assert row["ensemble_error"] == pytest.approx(sem(right))
        theta = embedding.thetas[[embedding.index(name) for name in members]].mean(0)
        decided = embedding.render(theta)(batch.values, lengths=batch.lengths).argmax(-1).numpy()
        own = (decided == classes[samples]).astype(float)
        assert row["centroid_error"] == pytest.approx(sem(own))
        assert row["centroid_above_ensemble"] == pytest.approx((own - right).mean())
        assert row["centroid_above_ensemble_error"] == pytest.approx(sem(own - right))
        assert row["weights_reason"] == "no networks were given"
        assert np.isnan(row["weights_score"])


def test_weights_are_averaged_where_they_correspond(
    embedding: ModelEmbedding, classes: NDArray[np.int64]
) -> None:
    networks = make_models(3, per_step=False)
    sets = {"alone": ["gru-2"], "unlike": ["gru-0", "rnn-1"], "other sizes": ["gru-0", "gru-2"]}
    result = average(embedding, models=sets, networks=networks)
    table: Any = result.to_dataframe().set_index("group")
    assert table.loc["alone", "weights_score"] == pytest.approx(table.loc["alone", "members_mean"])
    assert table.loc["alone", "weights_reason"] == ""
    assert "cannot be averaged" in table.loc["unlike", "weights_reason"]
    assert "'rnn.weight_ih_l0' is" in table.loc["other sizes", "weights_reason"]
    assert [trace.name.split()[0] for trace in result.plot().data][2:] == [
        "ensemble",
        "weights",
        "centroid,",
    ]
    lacking = average(embedding, models=["gru-0", "gru-2"], networks={"gru-0": networks["gru-0"]})
    assert "no network of 'gru-2'" in lacking.to_dataframe()["weights_reason"].iloc[-1]
    with pytest.raises(UnknownName, match="gru-9"):
        average(embedding, networks={"gru-9": networks["gru-0"]})


def test_the_mean_weights_are_those_of_a_loop() -> None:
    torch.manual_seed(3)
    models: dict[str, nn.Module] = {
        name: Classifier(nn.GRU(3, 4, batch_first=True), 2, per_step=True) for name in "abc"
    }
    targets = np.random.default_rng(0).normal(size=(sum(LENGTHS), 2))
    embedding = fit(capture(models))
    row = average(embedding, targets=targets, networks=models).to_dataframe().iloc[0]
    mixed = Classifier(nn.GRU(3, 4, batch_first=True), 2, per_step=True)
    states = [model.state_dict() for model in models.values()]
    mixed.load_state_dict({key: sum(s[key] for s in states) / 3 for key in states[0]})
    samples = embedding.held_out_samples.numpy()
    batch = embedding.population.inputs.batch(samples)
    real = np.arange(batch.values.shape[1]) < batch.lengths.numpy()[:, None]
    with torch.no_grad():
        outputs = mixed(batch.values, batch.lengths).numpy()[real]
    offsets = embedding.population.offsets
    wanted = np.concatenate([targets[offsets[s] : offsets[s + 1]] for s in samples])
    expected = r2_score(wanted, outputs, multioutput="variance_weighted")
    assert row["weights_score"] == pytest.approx(expected, abs=1e-5)
    mean = np.mean([embedding.population.outputs(m, samples=samples) for m in models], axis=0)
    expected = r2_score(wanted, mean, multioutput="variance_weighted")
    assert row["ensemble_score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("models", ["gru-0", [], ["gru-0", "gru-0"], {"a": "gru-0"}])
def test_sets_that_are_none(embedding: ModelEmbedding, models: Any) -> None:
    with pytest.raises(InvalidInput, match="Expected"):
        average(embedding, models=models)


@pytest.mark.slow
def test_the_average_of_the_flip_flop_group_holds_three_bits() -> None:
    task = train_flip_flop_population(seed=0, networks=6, hidden_sizes=(16, 24), steps=250)
    population = dp.capture(task.models, task.inputs, {}, targets=task.targets, progress=False)
    embedding = dp.fit(
        population, steps=400, family_options={"units": 48}, embedding_dim=4, progress=False
    )
    row = average(embedding).to_dataframe().iloc[0]
    assert row["members_min"] > 0.9
    assert row["centroid_score"] > 0.9


def test_without_labels_there_is_only_all(embedding: ModelEmbedding) -> None:
    assert average(embedding).to_dataframe()["group"].tolist() == ["all"]


def test_padded_real_targets_per_step_by_output_group(per_step_embedding: ModelEmbedding) -> None:
    embedding = per_step_embedding
    population = embedding.population
    lengths = np.asarray(population.lengths)
    rng = np.random.default_rng(0)
    padded = rng.normal(size=(len(lengths), lengths.max(), 2))
    padded[np.arange(lengths.max()) >= lengths[:, None]] = np.nan
    rows = rng.normal(size=(int(lengths.sum()), 2))
    result = average(embedding, targets={"task-gru": padded, "task-rnn": rows})
    table = result.to_dataframe().set_index("group")
    assert list(table.index) == ["task-gru", "task-rnn"]
    assert set(table["score_kind"]) == {"r2"}
    samples = embedding.held_out_samples.numpy()
    batch = population.inputs.batch(samples)
    real = np.arange(batch.values.shape[1]) < batch.lengths.numpy()[:, None]
    wanted = {
        "task-gru": padded[samples][:, : real.shape[1]][real],
        "task-rnn": np.concatenate(
            [rows[population.offsets[s] : population.offsets[s + 1]] for s in samples]
        ),
    }
    for group, row in table.iterrows():
        members = [n for n in embedding.ids if f"task-{n[:3]}" == group]
        theta = embedding.thetas[[embedding.index(n) for n in members]].mean(0)
        network = embedding.render(theta, output_group=str(group))
        outputs = network(batch.values, lengths=batch.lengths).numpy()[real]
        expected = r2_score(wanted[str(group)], outputs, multioutput="variance_weighted")
        assert row["centroid_score"] == pytest.approx(expected, abs=1e-5)
        own = [
            r2_score(
                wanted[str(group)],
                population.outputs(name, samples=samples),
                multioutput="variance_weighted",
            )
            for name in members
        ]
        assert row["members_max"] == pytest.approx(max(own), abs=1e-5)


def test_groups_may_not_straddle_output_groups(per_step_embedding: ModelEmbedding) -> None:
    with pytest.raises(InvalidInput, match=r"'odd'.* task-gru, task-rnn"):
        average(per_step_embedding, labels=["odd", "odd", "b", "c", "b", "c"])


def test_no_targets(per_step_embedding: ModelEmbedding) -> None:
    with pytest.raises(InvalidInput, match=r"no targets .* 'task-gru'"):
        average(per_step_embedding)


def bad_targets(count: int) -> dict[str, tuple[Any, str]]:
    return {
        "too few": (np.zeros(count - 1, dtype=int), f"each of {count} samples"),
        "out of range": (np.full(count, 3), "from 0 to 2"),
        "channels": (np.zeros((count, 2)), "Expected 3 target channels"),
        "not finite": (np.full((count, 3), np.inf), "finite"),
        "text": (np.array(["a"] * count), "integer or real"),
        "constant": (np.ones((count, 3)), "targets that vary"),
    }


@pytest.mark.parametrize("case", list(bad_targets(1)))
def test_bad_targets(embedding: ModelEmbedding, case: str) -> None:
    targets, message = bad_targets(len(embedding.population.sample_ids))[case]
    with pytest.raises(InvalidInput, match=message):
        average(embedding, targets=targets)


def test_targets_of_an_unknown_output_group(embedding: ModelEmbedding) -> None:
    with pytest.raises(UnknownName, match="'nothing'"):
        average(embedding, targets={"nothing": np.zeros(3)})


def test_probabilities_are_averaged_and_not_logits(classes: NDArray[np.int64]) -> None:
    models = make_models(3, per_step=False, count=4)
    with torch.no_grad():
        for factor, model in zip((500, 20, 20, 20), models.values(), strict=True):
            for parameter in model.get_submodule("readout").parameters():
                parameter.mul_(factor if parameter.ndim > 1 else 0)
    embedding = fit(capture(models, targets=classes))
    samples = embedding.held_out_samples.numpy()
    logits = [embedding.population.outputs(name, samples=samples) for name in embedding.ids]
    decided = np.mean([softmax(one, axis=1) for one in logits], axis=0).argmax(1)
    assert (decided != np.mean(logits, axis=0).argmax(1)).any()
    # With the ensemble's own decisions as targets, it is right everywhere.
    targets = classes.copy()
    targets[samples] = decided
    row = average(embedding, targets=targets).to_dataframe().iloc[0]
    assert row["ensemble_score"] == 1
