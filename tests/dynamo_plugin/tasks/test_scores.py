from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, r2_score

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.tasks.scores import accuracy, r2, sign_accuracy


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(2, 6), time=st.integers(1, 5), seed=st.integers(0, 1000))
def test_r2_is_that_of_scikit_learn(samples: int, time: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(samples, time, 3, generator=generator, dtype=torch.float64) + 5
    outputs = targets + torch.randn(2, samples, time, 3, generator=generator, dtype=torch.float64)
    expected = [
        r2_score(targets.flatten(0, 1), one.flatten(0, 1), multioutput="variance_weighted")
        for one in outputs
    ]
    assert r2(outputs, targets).tolist() == pytest.approx(expected)


def test_r2_of_constant_targets() -> None:
    with pytest.raises(InvalidInput, match="targets that vary"):
        r2(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))


def test_accuracy_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 50, 4, generator=generator)
    targets = torch.randint(4, (50,), generator=generator)
    expected = [accuracy_score(targets, one.argmax(-1)) for one in logits]
    assert accuracy(logits, targets).tolist() == pytest.approx(expected)


def test_sign_accuracy_counts_signs() -> None:
    targets = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    outputs = torch.tensor([[[0.2, -3.0], [-0.1, -0.1]]])
    assert sign_accuracy(outputs, targets).item() == pytest.approx(3 / 4)
    assert sign_accuracy(-outputs, targets).item() == pytest.approx(1 / 4)
