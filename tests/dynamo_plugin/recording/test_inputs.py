"""Inputs in all the forms in which they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording import as_population_inputs
from dynamo_plugin.types import InputSpec


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    features=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_all_forms_agree(lengths: list[int], features: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    padded: Any = (
        rng.normal(size=(*shape, features)).astype(np.float32)
        if features
        else rng.integers(0, 9, size=shape)
    )
    ragged = [padded[row, :length] for row, length in enumerate(lengths)]
    options: dict[str, Any] = {} if features else {"vocabulary_size": 9}
    first = as_population_inputs(padded, lengths=lengths, **options)
    assert first.lengths.tolist() == lengths
    assert first.spec == InputSpec("features" if features else "ids", features or 9)
    np.testing.assert_array_equal(first.values, np.concatenate(ragged))
    tensors = [torch.from_numpy(item) for item in ragged]
    others = [
        as_population_inputs(torch.from_numpy(padded), lengths=torch.tensor(lengths), **options),
        as_population_inputs(ragged, **options),
        as_population_inputs(tensors, **options),
        as_population_inputs([item.tolist() for item in ragged], **options)
        if not features
        else as_population_inputs(ragged),
        as_population_inputs(Items(tensors), **options),
        as_population_inputs(first),
    ]
    assert {other.hash for other in others} == {first.hash}


def test_datasets_bring_targets() -> None:
    pairs = as_population_inputs(Items([([1, 2], 1), ([3], 0)]))
    assert pairs.targets is not None
    assert pairs.targets.tolist() == [1, 0]
    assert pairs.targets_axis == "sample"
    tensors = as_population_inputs(
        TensorDataset(torch.randn(3, 4, 2), torch.tensor([0.5, 1.5, 2.5]))
    )
    assert tensors.targets is not None
    assert tensors.targets.tolist() == [0.5, 1.5, 2.5]
    mappings = as_population_inputs(
        Items(
            [
                {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "label": 3},
                {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1], "label": 4},
            ]
        )
    )
    assert mappings.values.tolist() == [5, 6, 7, 8, 9]
    assert mappings.targets is not None
    assert mappings.targets.tolist() == [3, 4]
    assert as_population_inputs(TensorDataset(torch.zeros(3, 4, 2))).targets is None


def test_arrays_have_no_time() -> None:
    images = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    labels = torch.tensor([1, 0, 1])
    first = as_population_inputs(images, targets=labels)
    assert first.spec == InputSpec("array", 32, (2, 4, 4))
    assert first.lengths.tolist() == [1, 1, 1]
    others = [
        as_population_inputs(torch.from_numpy(images), targets=labels),
        as_population_inputs(list(images), targets=labels),
        as_population_inputs(TensorDataset(torch.from_numpy(images), labels)),
        as_population_inputs(
            Items([{"pixel_values": i, "label": k} for i, k in zip(images, labels, strict=True)])
        ),
    ]
    assert {other.hash for other in others} == {first.hash}
    batch = first.batch([2, 0])
    assert not batch.has_time
    assert batch.lengths.tolist() == [1, 1]
    np.testing.assert_array_equal(batch.values, images[[2, 0]])
    vectors = as_population_inputs(images.reshape(3, 32))
    assert vectors.spec == InputSpec("array", 32, (32,))
    grey = images[:, 0]
    assert as_population_inputs(grey).spec == InputSpec("features", 4)
    assert as_population_inputs(grey, has_time=False).spec == InputSpec("array", 16, (4, 4))
    taken = first.take([2, 0])
    assert taken.sample_ids == ("sample-2", "sample-0")
    np.testing.assert_array_equal(taken.values, images[[2, 0]])


def test_a_memory_map_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3, 8, 8), dtype=np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(as_population_inputs(mapped).values, mapped)


def test_precision_is_kept_or_widened_exactly() -> None:
    for dtype, stored in (
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.float16, np.float32),
        (torch.bfloat16, np.float32),
    ):
        values = torch.tensor([[[0.1], [2.7]]], dtype=dtype)
        inputs = as_population_inputs(values)
        assert inputs.values.dtype == stored
        assert inputs.values[:, 0].tolist() == values[0, :, 0].double().tolist()
    assert as_population_inputs(np.ones((1, 2), np.uint8)).values.dtype == np.int64


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (3, {}, "got int"),
        ("text", {}, "got str"),
        ({"a": [1]}, {}, "got dict"),
        ([], {}, "inputs are empty"),
        (np.zeros((0, 3), int), {}, "at least one sample"),
        (np.zeros((2, 0), int), {}, "at least one sample, step"),
        (np.zeros(3, int), {}, r"integer ids of shape \(sample, time\)"),
        (np.zeros((2, 3)), {"has_time": True}, r"Add a last axis.*has_time=False"),
        (np.zeros((2, 3, 4, 5)), {"has_time": True}, "has_time=False"),
        (np.zeros((2, 3), int), {"has_time": False}, "expected floating numbers"),
        (np.zeros((2, 3)), {"lengths": [1, 2]}, "lengths belong to sequences"),
        (np.zeros(3), {}, r"shape \(3,\)"),
        (np.full((2, 3), np.inf), {}, "'sample-0'"),
        ([np.zeros((3, 2, 2)), np.zeros((3, 2, 1))], {}, "arrays of one shape"),
        (np.zeros((2, 3, 4), int), {}, "converted to floating"),
        (np.zeros((2, 3), bool), {}, "dtype bool"),
        (np.zeros((2, 3, 1), complex), {}, "dtype complex128"),
        (np.full((1, 2, 1), np.nan), {}, r"step 0 of sample 0 \('sample-0'\)"),
        ([np.zeros((2, 1)), np.array([[0.0], [np.inf]])], {}, "step 1 of sample 1"),
        ([[1, 2], []], {}, "sample 1"),
        ([[1, 2], [0.5]], {}, "sample 1 has shape"),
        ([[1, 2], [[0.5]]], {}, "sample 1 holds float64"),
        ([np.zeros((2, 1)), np.zeros((2, 3))], {}, "sample 1 holds"),
        ([[1, 2], [[3, 4], [5]]], {}, "sample 1 cannot be read"),
        ([[1, -2]], {}, "-2"),
        ([[1, 2]], {"vocabulary_size": 2}, "holds 2"),
        ([[1, 2]], {"vocabulary_size": 2.5}, "must be an integer"),
        (np.zeros((1, 2, 1)), {"vocabulary_size": 2}, "belongs to integer ids"),
        ([[1, 2]], {"lengths": [2]}, "Leave lengths out"),
        (np.zeros((2, 3), int), {"lengths": [1, 4]}, "sample 1 has 4"),
        (np.zeros((2, 3), int), {"lengths": [0, 3]}, "sample 0 has 0"),
        (np.zeros((2, 3), int), {"lengths": [3]}, r"integers of shape \(2,\)"),
        (np.zeros((2, 3), int), {"lengths": [1.0, 2.0]}, "must be integers"),
        ([[1], [2]], {"sample_ids": ["a"]}, "sample id"),
        ([[1], [2]], {"sample_ids": ["a", "a"]}, "'a' occurs 2 times"),
        ([[1], [2]], {"sample_ids": "ab"}, "sequence of texts"),
        ([[1], [2]], {"sample_ids": [1, 2]}, "text"),
        (Items([]), {}, "inputs are empty"),
        (Items([([1], 2, 3)]), {}, "has 3 parts"),
        (Items([([1], 2), ([1],)]), {}, "item 1 of the Dataset has no target"),
        (Items([([1], 2)]), {"targets": [1]}, "given twice"),
        (Items([{"ids": [1]}]), {}, "expected 'input_ids'"),
        (Items([{"input_ids": [1, 2], "attention_mask": [0, 1]}]), {}, "padding_side='right'"),
    ],
)
def test_bad_inputs_are_refused(inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_population_inputs(inputs, **options)


def test_population_inputs_take_no_other_arguments() -> None:
    inputs = as_population_inputs([[1, 2]])
    with pytest.raises(InvalidInput, match="hold sample_ids, targets already"):
        as_population_inputs(inputs, sample_ids=["a"], targets=[1])
