from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.tasks import train_digits_population

SMALL: dict[str, Any] = {"networks_per_group": 2, "hidden_sizes": (4, 6, 8), "steps": 2}


def test_what_a_population_holds() -> None:
    before = torch.get_rng_state()
    population = train_digits_population(seed=0, **SMALL)
    assert torch.equal(before, torch.get_rng_state())
    names = [
        f"{architecture}-{fraction}-{index}"
        for architecture in ("gru", "lstm", "rnn")
        for fraction in ("full", "10pct")
        for index in range(2)
    ]
    assert list(population.models) == names
    assert list(population.metadata.index) == names
    assert set(population.metadata["task"]) == {"digits"}
    assert population.metadata["architecture"].tolist() == ["gru"] * 4 + ["lstm"] * 4 + ["rnn"] * 4
    assert population.metadata["fraction"].tolist() == [1, 1, 0.1, 0.1] * 3
    assert population.metadata["hidden_size"].tolist() == [4, 6] * 6
    assert population.metadata["seed"].is_unique
    assert population.output_kind == "logits"
    assert population.output_groups == dict.fromkeys(names, "digits")
    for name, model in population.models.items():
        assert model.architecture == name.split("-")[0]
        assert not model.training
        outputs = model(population.inputs)
        assert outputs.shape == (len(population.inputs), 10)
        share = (outputs.argmax(1) == population.targets).double().mean().item()
        assert population.metadata.loc[name, "score"] == pytest.approx(share, abs=2e-3)


def test_held_out_images_are_half_of_the_real_ones_with_their_labels() -> None:
    population = train_digits_population(seed=5, architectures=("rnn",), **SMALL)
    digits = load_digits()
    positions = [int(name.removeprefix("digit-")) for name in population.sample_ids]
    assert len(set(positions)) == len(positions) == 899
    np.testing.assert_allclose(population.inputs, digits.images[positions] / 16)
    assert population.inputs.dtype == torch.float32
    assert population.targets is not None
    np.testing.assert_array_equal(population.targets, digits.target[positions])
    counts = np.bincount(digits.target[positions]) / np.bincount(digits.target)
    np.testing.assert_allclose(counts, 0.5, atol=0.01)


def test_a_seed_decides_everything() -> None:
    options: dict[str, Any] = SMALL | {"architectures": ("gru",)}
    one, same, other = (train_digits_population(seed=seed, **options) for seed in (0, 0, 1))
    assert one.sample_ids == same.sample_ids
    assert one.sample_ids != other.sample_ids
    assert one.metadata.equals(same.metadata)
    assert not one.metadata["seed"].equals(other.metadata["seed"])
    weights = [population.models["gru-full-0"].readout.weight for population in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_networks_with_more_data_do_better() -> None:
    population = train_digits_population(
        seed=0, architectures=("gru",), networks_per_group=2, hidden_sizes=(32,), steps=250
    )
    scores = population.metadata.groupby("fraction")["score"]
    assert scores.min()[1.0] > 0.9
    assert scores.max()[0.1] < 0.9
    assert scores.min()[0.1] > 0.6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"architectures": ()}, "at least one architecture"),
        ({"fractions": ()}, "at least one fraction"),
        ({"networks_per_group": 0}, "at least one network per group"),
        ({"hidden_sizes": ()}, "at least one hidden size"),
        ({"architectures": ("gru", "gru")}, "every one of architectures once"),
        ({"fractions": (0.5, 0.5)}, "every one of fractions once"),
        ({"fractions": (0.0,)}, "fractions from 0.02 to 1, got 0.0"),
        ({"fractions": (1.5,)}, "got 1.5"),
        ({"fractions": (float("nan"),)}, "got nan"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        train_digits_population(seed=0, **(SMALL | options))


def test_the_smallest_fraction_has_every_digit() -> None:
    options: dict[str, Any] = SMALL | {"fractions": (0.02,), "architectures": ("rnn",)}
    assert len(train_digits_population(seed=0, **options).models) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_population_reads_digits(seed: int) -> None:
    population = train_digits_population(seed=seed)
    assert len(population.models) == 24
    scores = population.metadata.groupby(["architecture", "fraction"])["score"]
    for architecture, bound in (("gru", 0.95), ("lstm", 0.95), ("rnn", 0.9)):
        assert scores.mean()[architecture, 1.0] > bound
        assert scores.min()[architecture, 1.0] > bound - 0.02
        assert scores.max()[architecture, 0.1] < scores.min()[architecture, 1.0]
