"""The fingerprint of a model changes with the model, and with nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dynamo_plugin.errors import UnsupportedModel
from dynamo_plugin.registry.fingerprint import model_hash


class Other(nn.Linear):
    pass


def test_equal_models_have_equal_hashes() -> None:
    model = nn.GRU(2, 3)
    twin = copy.deepcopy(model).eval()
    assert model_hash(model) == model_hash(twin)


def test_every_part_counts() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    hashes = {model_hash(model)}
    buffered = copy.deepcopy(model)
    buffered[1].get_buffer("running_mean")[0] += 1e-6
    hashes.add(model_hash(buffered))
    hashes.add(model_hash(copy.deepcopy(model).double()))
    hashes.add(model_hash(copy.deepcopy(model).bfloat16()))
    weights = copy.deepcopy(model)
    with torch.no_grad():
        weights[0].get_parameter("weight")[0, 0] *= -1
    hashes.add(model_hash(weights))
    assert len(hashes) == 5


def test_class_and_shape_count() -> None:
    linear, other = nn.Linear(2, 3), Other(2, 3)
    other.load_state_dict(linear.state_dict())
    wide = nn.Linear(3, 2)
    with torch.no_grad():
        wide.weight.copy_(linear.weight.reshape(2, 3))
    assert model_hash(linear) != model_hash(other)
    assert model_hash(linear) != model_hash(wide)


def test_strided_weights_hash_by_value() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.load_state_dict(first.state_dict())
    second.weight = nn.Parameter(first.weight.detach().T.contiguous().T)
    assert model_hash(first) == model_hash(second)


def test_what_has_no_state_dict_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="got object"):
        model_hash(object())


def test_the_main_module_has_one_name_in_all_processes() -> None:
    """Otherwise a script that is continued with workers would be told that its models changed."""
    here = type("Net", (nn.Linear,), {"__module__": "__main__"})
    in_a_worker = type("Net", (nn.Linear,), {"__module__": "__mp_main__"})
    other = type("Net", (nn.Linear,), {"__module__": "other"})
    model = here(1, 1)
    hashes = []
    for kind in (here, in_a_worker, other):
        twin = kind(1, 1)
        twin.load_state_dict(model.state_dict())
        hashes.append(model_hash(twin))
    assert hashes[0] == hashes[1] != hashes[2]
