"""Mixtures of answers, and scores below the line, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import r2_score

from dynamo_plugin.analyses._scoring import Scores
from dynamo_plugin.analyses._switching import agreement_with, below_line, decisions, mixtures

SHARES = np.array([0.0, 0.3, 1.0])


def test_probabilities_are_mixed() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 6, 4)) * 3
    mixed = mixtures(first, second, SHARES, logits=True)
    for place, share in enumerate(SHARES):
        expected = (1 - share) * softmax(first, axis=-1) + share * softmax(second, axis=-1)
        np.testing.assert_allclose(softmax(mixed[place], axis=-1), expected)


def test_a_single_logit_is_the_logarithm_of_the_odds() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 1)) * 3
    mixed = mixtures(first, second, SHARES, logits=True)
    expected = (1 - SHARES)[:, None, None] * expit(first) + SHARES[:, None, None] * expit(second)
    np.testing.assert_allclose(expit(mixed), expected)
    certain = mixtures(np.array([[800.0]]), np.array([[-800.0]]), SHARES, logits=True)
    np.testing.assert_allclose(expit(certain[1]), 0.7)
    assert np.isfinite(certain).all()


def test_numbers_are_mixed() -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 6, 4))
    mixed = mixtures(first, second, SHARES, logits=False)
    np.testing.assert_allclose(mixed[1], 0.7 * first + 0.3 * second)


def test_below_the_line_between_the_ends() -> None:
    rng = np.random.default_rng(2)
    gains, weights = rng.normal(size=(4, 30)), rng.gamma(2.0, size=30)
    positions = np.array([0, 0.2, 0.7, 1.0])
    scores = Scores("r2", gains, weights)
    found = below_line(scores, positions)
    line = (1 - positions) * scores.values[0] + positions * scores.values[-1]
    np.testing.assert_allclose(found.values, line - scores.values, atol=1e-12)
    np.testing.assert_allclose(found.standard_errors[[0, -1]], 0, atol=1e-12)
    mixed = 0.8 * gains[0] + 0.2 * gains[-1]
    _, errors = Scores("r2", np.stack([gains[1], mixed]), weights).above(0)
    assert found.standard_errors[1] == pytest.approx(errors[1])


def test_agreement_counts_the_rows_of_samples() -> None:
    outputs = np.random.default_rng(3).normal(size=(3, 9, 2))
    counts = np.array([2, 4, 3])
    shares = agreement_with(outputs, 2, counts, logits=True)
    assert shares is not None
    equal = outputs.argmax(-1) == outputs[2].argmax(-1)
    np.testing.assert_allclose(shares.values, equal.mean(1))
    np.testing.assert_array_equal(
        shares.gains[0], [equal[0, :2].sum(), equal[0, 2:6].sum(), equal[0, 6:].sum()]
    )
    numbers = agreement_with(outputs, 0, counts, logits=False)
    assert numbers is not None
    expected = [r2_score(outputs[0], part, multioutput="variance_weighted") for part in outputs]
    np.testing.assert_allclose(numbers.values, expected)
    assert agreement_with(np.ones((3, 9, 2)), 0, counts, logits=False) is None
    assert decisions(np.array([[-1.0], [2.0]])).tolist() == [0, 1]
