"""Every loss against scipy or a plain loop, and what all losses have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import entropy
from torch import Tensor

from dynamo_plugin.losses import kl, l1, l2, mse

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
ALL = pytest.mark.parametrize("loss", [l2, l1, kl, mse], ids=lambda loss: loss.__name__)


def _case(seed: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, 3, 4, 5, features, generator=generator).double()
    lengths = torch.randint(1, 6, (3, 4), generator=generator)
    return prediction, target, (torch.arange(5) < lengths[..., None])[..., None]


@pytest.mark.parametrize(("loss", "distance"), [(l2, np.square), (mse, np.square), (l1, np.abs)])
def test_distances_match_a_plain_loop(
    loss: LossFunction, distance: Callable[[np.ndarray], np.ndarray]
) -> None:
    prediction, target, mask = _case(0, 3)
    values = loss(prediction, target, mask)
    for index in np.ndindex(3, 4):
        steps = int(mask[index].sum())
        expected = distance((prediction - target)[index][:steps].numpy()).mean()
        assert values[index].item() == pytest.approx(expected, rel=1e-12)


def test_kl_matches_scipy() -> None:
    prediction, target, mask = _case(1, 4)
    values = kl(prediction, target, mask)
    for index in np.ndindex(3, 4):
        steps = int(mask[index].sum())
        p = softmax(target[index][:steps].numpy(), axis=-1)
        q = softmax(prediction[index][:steps].numpy(), axis=-1)
        assert values[index].item() == pytest.approx(entropy(p, q, axis=-1).mean(), rel=1e-10)


def test_kl_of_one_logit_is_that_of_a_bernoulli_variable() -> None:
    prediction, target, mask = _case(2, 1)
    values = kl(prediction, target, mask)
    p, q = expit(target.numpy())[..., 0], expit(prediction.numpy())[..., 0]
    expected = entropy(np.stack([p, 1 - p]), np.stack([q, 1 - q]), axis=0)
    real = mask.numpy()[..., 0]
    assert np.allclose(values.numpy(), (expected * real).sum(-1) / real.sum(-1), rtol=1e-10)


@ALL
@given(seed=st.integers(0, 10_000), features=st.integers(1, 4), noise=st.floats(-1e3, 1e3))
@settings(max_examples=25, deadline=None)
def test_masked_entries_change_nothing(
    loss: LossFunction, seed: int, features: int, noise: float
) -> None:
    prediction, target, mask = _case(seed, features)
    expected = loss(prediction, target, mask)
    filled = prediction.where(mask, noise), target.where(mask, -noise)
    assert torch.equal(loss(*filled, mask), expected)


@ALL
def test_masked_entries_get_no_gradient(loss: LossFunction) -> None:
    prediction, target, mask = _case(3, 2)
    prediction.requires_grad_()
    loss(prediction, target, mask).sum().backward()
    assert prediction.grad is not None
    assert not prediction.grad[~mask.expand_as(prediction)].any()
    assert prediction.grad[mask.expand_as(prediction)].all()


@ALL
def test_zero_exactly_where_prediction_equals_target(loss: LossFunction) -> None:
    prediction, target, mask = _case(4, 3)
    assert (loss(target, target, mask).abs() < 1e-12).all()
    assert (loss(prediction, target, mask) > 0).all()


@ALL
def test_gradients_match_finite_differences(loss: LossFunction) -> None:
    prediction, target, mask = _case(5, 2)
    assert torch.autograd.gradcheck(
        lambda values: loss(values, target, mask), (prediction.requires_grad_(),)
    )


def test_unit_mask_leaves_out_units() -> None:
    prediction, target, mask = _case(6, 3)
    units = torch.tensor([True, True, False])
    expected = l2(prediction[..., :2], target[..., :2], mask)
    assert torch.allclose(l2(prediction, target, mask & units), expected, rtol=1e-12)
