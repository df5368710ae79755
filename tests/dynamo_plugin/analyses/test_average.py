from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from dynamo_plugin.analyses import average
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName


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
