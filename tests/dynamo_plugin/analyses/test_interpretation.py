"""The rule that says which thetas say nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dynamo_plugin.analyses._interpretation import Difference, interpret

SAMPLES = 40


def errors(r2: list[float]) -> NDArray[np.float64]:
    """Return (model, sample) squared errors that add up to 1 - R2, with a little noise."""
    noise = np.random.default_rng(0).normal(size=(len(r2), SAMPLES))
    noise -= noise.mean(1, keepdims=True)
    shares: NDArray[np.float64] = (1 - np.array(r2))[:, None] / SAMPLES + 1e-4 * noise
    return shares


def judge(
    own: list[float],
    mean: list[float],
    untrained: list[float] | None = None,
    thetas: Any = ((3.0,), (-3.0,), (0.1,), (-0.1,)),
    groups: tuple[str, ...] = ("a",) * 4,
) -> tuple[list[str], list[str]]:
    jitter = 1e-4 * np.random.default_rng(1).normal(size=(len(mean), SAMPLES))
    jitter -= jitter.mean(1, keepdims=True)
    above = (
        None if untrained is None else Difference.between(errors(own), errors(untrained) + jitter)
    )
    baseline = errors(mean) + jitter
    return interpret(np.array(own), 0.5, np.array(thetas), groups, errors(own), baseline, above)


def test_the_confidence_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    own, others = rng.random((50, 12)), rng.random((50, 12)) + 0.3
    found = Difference.between(own, others)
    tested = stats.ttest_rel(others, own, axis=1)
    np.testing.assert_array_equal(found.above, (tested.pvalue < 0.05) & (tested.statistic > 0))
    np.testing.assert_allclose(found.values / found.standard_errors, tested.statistic)
    assert not Difference.between(own[:, :1], others[:, :1]).above.any()


def test_thetas_at_the_mean_may_be_emulated_by_it() -> None:
    reasons, notes = judge([0.9, 0.9, 0.9, 0.9], [0.5, 0.5, 0.9, 0.9])
    assert reasons == [""] * 4
    assert notes[:2] == ["", ""]
    assert all("near the mean" in note for note in notes[2:])


def test_far_thetas_have_to_be_better_than_the_mean() -> None:
    reasons, _ = judge([0.9, 0.9, 0.9, 0.9], [0.5, 0.9, 0.9, 0.9])
    assert [bool(reason) for reason in reasons] == [False, True, False, False]
    assert "far from the mean" in reasons[1]


def test_thetas_that_do_harm() -> None:
    reasons, _ = judge([0.9, 0.9, 0.7, 0.9], [0.5, 0.5, 0.9, 0.9])
    assert "worse at its own theta" in reasons[2]


def test_thetas_that_carry_nothing() -> None:
    reasons, _ = judge([0.9] * 4, [0.9] * 4)
    assert all("no more than their mean" in reason for reason in reasons)


def test_low_ones_and_random_features() -> None:
    reasons, _ = judge([0.4, 0.9, 0.9, 0.9], [0.2] * 4, [0.2, 0.9, 0.2, 0.2])
    assert reasons[0] == "hidden R2 below 0.5"
    assert reasons[1] == "no better than an untrained meta-model"
    assert reasons[2:] == ["", ""]


def test_groups_without_a_spread() -> None:
    thetas = ((1.0,), (0.0,), (0.0,), (0.0,))
    reasons, notes = judge([0.9] * 4, [0.9] * 4, thetas=thetas, groups=("a", "b", "b", "b"))
    assert reasons == [""] * 4
    assert "the only model" in notes[0]
    assert "are equal" in notes[1]
