from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynamo_plugin.analyses._permutation import _enumerate, count_labellings, permutation_test

Codes = NDArray[np.int64]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_enumeration_is_every_labelling_once(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = set(permutations(labels.tolist()))
    batches = list(_enumerate(np.array(counts), 5))
    found = [tuple(row) for batch in batches for row in batch.tolist()]
    assert len(found) == len(set(found)) == len(expected) == count_labellings(np.array(counts))
    assert set(found) == expected
    assert max(len(batch) for batch in batches) <= 5


def difference(codes: Codes) -> NDArray[np.float64]:
    """Difference of the group means of the points 0, 1, 2, ..., whatever the sign."""
    values = np.arange(codes.shape[1])
    means = (codes * values).sum(1) / codes.sum(1) - ((1 - codes) * values).sum(1) / (
        1 - codes
    ).sum(1)
    distances: NDArray[np.float64] = np.abs(means)[None]
    return distances


def test_separated_groups_have_the_smallest_exact_p() -> None:
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    test = permutation_test(difference, codes, permutations=9, max_exact=70, seed=0)
    assert test.exact
    assert test.labellings == 70
    assert test.p_values[0] == pytest.approx(2 / 70)


def test_monte_carlo_approaches_the_exact_p() -> None:
    codes = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    exact = permutation_test(difference, codes, permutations=9, max_exact=70, seed=0)
    drawn = permutation_test(difference, codes, permutations=20_000, max_exact=69, seed=0)
    assert not drawn.exact
    assert drawn.labellings == 20_000
    assert drawn.p_values[0] == pytest.approx(exact.p_values[0], abs=0.01)
    assert drawn.null_means[0] == pytest.approx(exact.null_means[0], abs=0.02)


def test_monte_carlo_p_counts_the_observed_labelling() -> None:
    codes = np.arange(40) // 20
    test = permutation_test(difference, codes, permutations=99, max_exact=0, seed=0)
    assert test.p_values[0] == pytest.approx(1 / 100)


def test_the_seed_decides_the_draws() -> None:
    codes = np.arange(30) % 2
    first, same, other = (
        permutation_test(difference, codes, permutations=50, max_exact=0, seed=seed).null_means[0]
        for seed in (1, 1, 2)
    )
    assert first == same != other


def test_the_null_and_the_family_follow_their_definitions() -> None:
    codes = np.array([0, 0, 1, 0, 1, 1])

    def two(labellings: Codes) -> NDArray[np.float64]:
        first = difference(labellings)[0]
        return np.stack([first, 0.5 * first + (labellings[:, 0] == labellings[:, 1])])

    test = permutation_test(two, codes, permutations=9, max_exact=20, seed=0)
    every = np.array(sorted(set(permutations(codes.tolist()))))
    values = two(every)
    np.testing.assert_allclose(np.sort(test.null, axis=1), np.sort(values, axis=1))
    np.testing.assert_allclose(test.null_stds, values.std(1))
    largest, observed = values.max(0), two(codes[None])[:, 0]
    expected = [(largest >= value - 1e-9).mean() for value in observed]
    np.testing.assert_allclose(test.family_p_values, expected)
    assert (test.family_p_values >= test.p_values).all()


def test_p_values_are_valid_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p_values = np.array(
        [
            permutation_test(
                difference,
                rng.permuted(np.arange(20) % 2),
                permutations=99,
                max_exact=0,
                seed=trial,
            ).p_values[0]
            for trial in range(300)
        ]
    )
    # Under the null, P(p <= 0.1) is at most 0.1; four standard errors of 300 trials are 0.07.
    assert (p_values <= 0.1).mean() < 0.17
