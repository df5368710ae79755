"""Scores of thetas and of recorded networks, against scikit-learn and against resampling."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from dynamo_plugin.analyses import _scoring
from dynamo_plugin.analyses._scoring import Scores, TaskScorer
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName


def test_accuracies_are_those_of_rendered_networks(
    embedding: ModelEmbedding, classes: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scoring, "THETAS", 4)
    samples = np.array([3, 19, 0, 7, 11])
    scorer = TaskScorer(embedding, samples=samples)
    scores = scorer.thetas(embedding.thetas)
    batch = embedding.population.inputs.batch(samples)
    right = np.stack(
        [
            embedding.render(name)(batch.values, lengths=batch.lengths).argmax(-1).numpy()
            == classes[samples]
            for name in embedding.ids
        ]
    )
    assert scores.kind == "accuracy"
    np.testing.assert_allclose(scores.gains, right)
    np.testing.assert_allclose(scores.values, right.mean(1))
    np.testing.assert_allclose(scores.standard_errors, right.std(1, ddof=1) / np.sqrt(5))
    recorded = scorer.recorded(embedding.ids[:2]).values
    own = embedding.population.outputs(embedding.ids[1], samples=samples).argmax(-1)
    assert recorded[1] == pytest.approx((own == classes[samples]).mean())


def test_r2_per_step_is_scikit_learns(per_step_embedding: ModelEmbedding) -> None:
    embedding = per_step_embedding
    population = embedding.population
    targets = np.random.default_rng(0).normal(size=(int(population.offsets[-1]), 2))
    scorer = TaskScorer(embedding, targets=targets, output_group="task-gru")
    scores = scorer.thetas(embedding.thetas[:3])
    assert scores.kind == "r2"
    samples = embedding.held_out_samples.numpy()
    rows = np.concatenate(
        [np.arange(population.offsets[s], population.offsets[s + 1]) for s in samples]
    )
    for theta, value in zip(embedding.thetas[:3], scores.values, strict=True):
        network = embedding.render(theta, output_group="task-gru")
        outputs = np.concatenate(
            [network(population.inputs.batch([s]).values).numpy()[0] for s in samples]
        )
        expected = r2_score(targets[rows], outputs, multioutput="variance_weighted")
        assert value == pytest.approx(expected, abs=1e-5)


def test_standard_errors_are_the_spread_over_samples_drawn_anew() -> None:
    rng = np.random.default_rng(1)
    count, draws = 400, 2000
    weights = rng.gamma(3.0, size=(draws, count))
    shared = rng.normal(size=(draws, count))
    gains = np.stack(
        [0.7 * weights + shared, 0.4 * weights + shared + rng.normal(size=shared.shape)], 1
    )
    scores = [Scores("r2", gain, weight) for gain, weight in zip(gains, weights, strict=True)]
    values = np.stack([score.values for score in scores])
    np.testing.assert_allclose(scores[0].standard_errors, values.std(0), rtol=0.15)
    above = np.stack([score.above(0)[0] for score in scores])
    value, error = scores[0].above(0)
    assert value[0] == error[0] == 0
    assert error[1] == pytest.approx(above.std(0)[1], rel=0.15)


def test_a_part_of_the_samples() -> None:
    scores = Scores("accuracy", np.array([[1.0, 0.0, 1.0, 1.0]]), np.ones(4))
    assert scores.of(np.array([0, 1])).values[0] == 0.5
    assert scores.of(np.array([True, False, True, True])).values[0] == 1


def test_what_cannot_be_scored(
    embedding: ModelEmbedding, per_step_embedding: ModelEmbedding
) -> None:
    with pytest.raises(InvalidInput, match="at least 2 samples"):
        TaskScorer(embedding, samples=np.array([3]))
    with pytest.raises(InvalidInput, match="output_group="):
        TaskScorer(per_step_embedding)
    with pytest.raises(UnknownName, match="'task-grub'"):
        TaskScorer(per_step_embedding, output_group="task-grub")
    scorer = TaskScorer(embedding)
    with pytest.raises(InvalidInput, match="not finite"):
        scorer.outputs(np.full((1, len(scorer.samples), 3), np.nan))
