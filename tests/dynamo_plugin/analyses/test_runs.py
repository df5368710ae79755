"""Whether runs converge: by hand, and by how often intervals hold what is true."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from dynamo_plugin.analyses._runs import Runs, convergence_of, step_reached


def _two_steps(first: NDArray[np.float64], last: NDArray[np.float64]) -> pd.DataFrame:
    """Return the convergence of runs that have two checkpoints each."""
    count = len(first)
    runs = Runs(
        tuple(str(run) for run in range(count)),
        tuple(np.array([run, count + run]) for run in range(count)),
        np.repeat([0.0, 10.0], count),
    )
    frame, note = convergence_of(runs, squareform(pdist(np.vstack([first, last]))))
    assert note == ""
    return frame


def test_ratio_and_jackknife_by_hand() -> None:
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(5, 2)), 0.5 * rng.normal(size=(5, 2)) + 9
    frame = _two_steps(first, last)
    assert frame["mean_distance"].tolist() == pytest.approx(
        [pdist(first).mean(), pdist(last).mean()]
    )
    ratio = np.log(pdist(last).mean() / pdist(first).mean())
    without = []
    for run in range(5):
        kept = [other for other in range(5) if other != run]
        pairs = list(combinations(kept, 2))
        apart = [
            np.mean([np.linalg.norm(each[a] - each[b]) for a, b in pairs]) for each in (first, last)
        ]
        without.append(np.log(apart[1] / apart[0]))
    error = np.sqrt(4 / 5 * np.square(without - np.mean(without)).sum())
    reach = stats.t.ppf(0.975, 4) * error
    row = frame.iloc[1]
    assert row["ratio"] == pytest.approx(np.exp(ratio))
    assert row["ratio_low"] == pytest.approx(np.exp(ratio - reach))
    assert row["ratio_high"] == pytest.approx(np.exp(ratio + reach))
    assert row["ratio_p"] == pytest.approx(2 * stats.t.sf(abs(ratio) / error, 4))
    assert frame["ratio"][0] == 1
    assert pd.isna(frame["ratio_low"][0])


@pytest.mark.parametrize(("count", "scale"), [(5, 1.0), (10, 1.0), (10, 0.4)])
def test_intervals_hold_the_truth(count: int, scale: float) -> None:
    rng = np.random.default_rng(count)
    rows = [
        _two_steps(rng.normal(size=(count, 3)), scale * rng.normal(size=(count, 3)) + 5).iloc[1]
        for _ in range(150)
    ]
    held = np.mean([row["ratio_low"] <= scale <= row["ratio_high"] for row in rows])
    assert 0.92 <= held <= 0.995  # 0.957 to 0.976 of 1500 draws
    found = np.mean([row["ratio_p"] <= 0.05 for row in rows])
    assert found > 0.9 if scale < 1 else found <= 0.08


@given(
    st.lists(st.floats(0.01, 5), min_size=1, max_size=6),
    st.floats(0.05, 0.95),
)
def test_a_constant_speed_does_every_share_in_its_time(gaps: list[float], share: float) -> None:
    steps = np.concatenate([[0.0], np.cumsum(gaps)])
    assert step_reached(steps, steps / steps[-1], share) == pytest.approx(share * steps[-1])


def test_the_first_time_counts() -> None:
    steps, done = np.array([0.0, 1, 2, 3]), np.array([0.0, 0.8, 0.2, 1.0])
    assert step_reached(steps, done, 0.5) == pytest.approx(0.625)
    assert step_reached(steps, done, 0.9) == pytest.approx(2.875)
