"""Targets per sample and per step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording.targets import as_targets

LENGTHS = np.array([3, 1])


@pytest.mark.parametrize(
    ("targets", "rows", "axis"),
    [
        ([1, 0], [1, 0], "sample"),
        (np.array([0.5, 1.5]), [0.5, 1.5], "sample"),
        (torch.tensor([True, False]), [1, 0], "sample"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]], "sample"),
        ([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])], [[1, 2], [3, 4]], "sample"),
        ([[1, 2, 3], [4]], [1, 2, 3, 4], "time"),
        ([np.eye(2)[[0, 1, 0]], np.eye(2)[[1]]], np.eye(2)[[0, 1, 0, 1]].tolist(), "time"),
        (np.arange(6).reshape(2, 3, 1), [[0], [1], [2], [3]], "time"),
    ],
)
def test_rows(targets: Any, rows: Any, axis: str) -> None:
    found, found_axis = as_targets(targets, LENGTHS)
    assert found is not None
    assert found.tolist() == rows
    assert found_axis == axis
    assert as_targets(None, LENGTHS) == (None, None)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1, 2, 3], r"shape \(3,\); expected \(2,\)"),
        (np.zeros((2, 3)), "may be one number for each of 3 steps or 3 numbers per sample"),
        (np.zeros((2, 4, 1)), "targets have 4 steps; expected 3"),
        (np.zeros((2, 3, 1, 1)), "targets have shape"),
        ([[1, 2, 3], [4, 5]], "differing shapes"),
        (["a", "b"], "dtype <U1"),
        ([], r"shape \(0,\)"),
    ],
)
def test_unclear_targets_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_targets(targets, LENGTHS)
