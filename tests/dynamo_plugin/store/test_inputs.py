from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import PopulationInputs
from dynamo_plugin.types import InputSpec

GOOD: dict[str, Any] = {
    "values": np.array([3, 1, 4, 1, 5]),
    "offsets": np.array([0, 2, 5]),
    "sample_ids": ("a", "b"),
    "spec": InputSpec("ids", 6),
}
FEATURES: dict[str, Any] = GOOD | {
    "values": np.arange(10, dtype=np.float32).reshape(5, 2),
    "spec": InputSpec("features", 2),
}


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.sampled_from([None, 1, 3]),
    st.data(),
)
def test_batch_is_pad_sequence(lengths: list[int], features: int | None, data: Any) -> None:
    generator = np.random.default_rng(len(lengths))
    rows = sum(lengths)
    values = (
        generator.integers(0, 9, rows)
        if features is None
        else generator.normal(size=(rows, features))
    )
    inputs = PopulationInputs(
        values=values,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        sample_ids=tuple(map(str, range(len(lengths)))),
        spec=InputSpec("ids", 9) if features is None else InputSpec("features", features),
    )
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    parts = np.split(values, np.cumsum(lengths)[:-1])
    expected = pad_sequence([torch.tensor(parts[i]) for i in chosen], batch_first=True)
    batch = inputs.batch(chosen)
    torch.testing.assert_close(batch.values, expected, rtol=0, atol=0)
    assert batch.lengths.tolist() == [lengths[i] for i in chosen]
    assert batch.lengths.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 2, 2, 5]), "sample_ids": ("a", "b", "c")}, "sample 1 has 0"),
        ({"offsets": np.array([0, 4])}, "number of rows, 5"),
        ({"offsets": np.array([1, 2, 5])}, "they go from 1"),
        ({"offsets": np.array([0])}, "at least one sample"),
        ({"offsets": np.array([0.0, 2.0, 5.0])}, "float64"),
        ({"sample_ids": ("a",)}, "one sample id for each of 2"),
        ({"sample_ids": ("a", "a")}, "'a' occurs 2 times"),
        ({"sample_ids": ("a", 7)}, "number 1 is 7"),
        ({"sample_ids": ("a", "\ud800")}, "UTF-8"),
        ({"values": np.array([3, 1, 4, 1, 6])}, "step 2 of sample 1 .'b'. holds 6"),
        ({"values": np.array([3, -1, 4, 1, 5])}, "step 1 of sample 0"),
        ({"values": np.zeros(5)}, "int64"),
        ({"values": np.zeros((5, 1), dtype=int)}, "shape .rows,."),
        ({"spec": InputSpec("ids", 0)}, "at least 1"),
        ({"spec": InputSpec("words", 5)}, "kind"),  # type: ignore[arg-type]
        ({"targets": np.zeros(2)}, "targets_axis"),
        ({"targets_axis": "sample"}, "got none"),
        ({"targets": np.zeros(3), "targets_axis": "sample"}, "shape .2,."),
        ({"targets": np.zeros(2), "targets_axis": "time"}, "shape .5,."),
        ({"targets": np.array([1.0, np.nan]), "targets_axis": "sample"}, "number 1 holds NaN"),
        ({"targets": np.array(["x", "y"]), "targets_axis": "sample"}, "as integers"),
        ({"values": np.array([1, 2, 3, 4, 2**63], dtype=np.uint64)}, "fit int64"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        PopulationInputs(**(GOOD | change))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 3), dtype=np.float32), r"\(rows, 2\)"),
        (np.zeros((5, 2), dtype=np.float16), "float16"),
        (np.zeros((5, 2), dtype=int), "int64"),
        (np.where(np.arange(10).reshape(5, 2) == 7, np.inf, 0.0), "step 1 of sample 1"),
    ],
)
def test_which_features_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        PopulationInputs(**(FEATURES | {"values": values}))


@pytest.mark.parametrize("samples", [[-1], [2], [0.5], [[0]], [True], []])
def test_which_batches_are_refused(samples: Any) -> None:
    with pytest.raises(InvalidInput):
        PopulationInputs(**GOOD).batch(samples)


def test_hash_tells_everything_apart() -> None:
    """Changes that keep the same bytes in a row must still change the hash."""
    targets = np.array([0, 1])
    variants = [
        GOOD,
        FEATURES,
        GOOD | {"values": np.array([3, 1, 4, 1, 4])},
        GOOD | {"offsets": np.array([0, 3, 5])},
        GOOD | {"sample_ids": ("ab", "")},
        GOOD | {"sample_ids": ("b", "a")},
        GOOD | {"spec": InputSpec("ids", 7)},
        GOOD | {"targets": targets, "targets_axis": "sample"},
        GOOD | {"targets": targets[:, None], "targets_axis": "sample"},
        GOOD | {"targets": targets.astype(float), "targets_axis": "sample"},
        FEATURES | {"values": FEATURES["values"].astype(np.float64)},
        FEATURES | {"values": -FEATURES["values"]},
    ]
    assert len({PopulationInputs(**variant).hash for variant in variants}) == len(variants)


def test_hash_is_that_of_the_documentation() -> None:
    import hashlib
    import json

    header = {
        "arrays": [["int64", 5], ["int64", 3]],
        "kind": "ids",
        "size": 6,
        "targets_axis": None,
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(
        b"dynamo-population-inputs/1\n"
        + text.encode()
        + b"\n"
        + np.array([3, 1, 4, 1, 5], dtype="<i8").tobytes()
        + np.array([0, 2, 5], dtype="<i8").tobytes()
        + b"1:a1:b"
    )
    assert PopulationInputs(**GOOD).hash == expected.hexdigest()


def test_layout_and_byte_order_do_not_matter() -> None:
    other = GOOD | {
        "values": np.array([3, 0, 1, 0, 4, 0, 1, 0, 5, 0], dtype=">i4")[::2],
        "offsets": [0, 2, 5],
        "sample_ids": ["a", "b"],
    }
    assert PopulationInputs(**other).hash == PopulationInputs(**GOOD).hash


def test_arrays_are_read_only_and_pickle_keeps_them() -> None:
    inputs = PopulationInputs(**GOOD)
    with pytest.raises(ValueError, match="read-only"):
        inputs.values[0] = 1
    again = pickle.loads(pickle.dumps(inputs))
    assert again.hash == inputs.hash
    assert len(again) == 2
    assert GOOD["values"].flags.writeable  # the caller's own array stays as it was
