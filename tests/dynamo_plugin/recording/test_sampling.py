"""Which samples are drawn, the same everywhere."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording.sampling import chosen_samples, draw_samples


def test_draws_are_those_of_the_documented_stream() -> None:
    stream = hashlib.shake_256(b"dynamo-plugin samples 1: seed 3, total 40").digest(320)
    keys = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(40)]
    for count in (1, 7, 40):
        smallest = sorted(sorted(range(40), key=keys.__getitem__)[:count])
        assert draw_samples(count, 40, 3).tolist() == smallest


def test_fewer_are_a_part_of_more_and_seeds_differ() -> None:
    few, more = draw_samples(10, 100, 0), draw_samples(40, 100, 0)
    assert set(few) < set(more)
    assert few.tolist() != draw_samples(10, 100, 1).tolist()


def test_every_sample_is_drawn_alike() -> None:
    drawn = np.concatenate([draw_samples(5, 20, seed) for seed in range(400)])
    counts = np.bincount(drawn, minlength=20)
    assert ((counts - 100) ** 2 / 100).sum() < 44  # chi squared, 19 degrees of freedom, p = 0.001


def test_numbers_keep_their_order() -> None:
    numbers, said = chosen_samples([5, 0, 3], 6, 0)
    assert numbers is not None
    assert numbers.tolist() == [5, 0, 3]
    digest = hashlib.sha256(np.array([5, 0, 3], dtype="<i8").tobytes()).hexdigest()
    assert said == {"of": 6, "count": 3, "numbers_sha256": digest}
    assert chosen_samples(None, 6, 0) == (None, None)
    assert chosen_samples(np.int64(2), 6, 4)[1] == {"of": 6, "count": 2, "seed": 4}


@pytest.mark.parametrize(
    ("samples", "seed", "message"),
    [
        (0, 0, "from 1 to 6"),
        (7, 0, "from 1 to 6, as many as there are; got 7"),
        ([0, 6], 0, "from 0 to 5; got 0 to 6"),
        ([-1], 0, "from 0 to 5"),
        ([1, 2, 1], 0, "each sample once; 1 occurs 2 times"),
        ([], 0, "numbers as integers in one dimension"),
        ([1.0], 0, "float64"),
        (True, 0, "numbers as integers"),
        ([1], 3, "only used together with samples="),
        (None, 3, "only used together with samples="),
        (2, -1, "at least 0; got -1"),
    ],
)
def test_others_are_refused(samples: Any, seed: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        chosen_samples(samples, 6, seed)
