"""Several populations as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.errors import DuplicateName, InvalidInput, UnknownName
from dynamo_plugin.store import Population, join_populations, select_models

Write = Callable[..., Population]
LENGTHS = [2, 3]


def _written(write: Write, *names: str, shift: float = 0.0, **options: Any) -> Population:
    rng = np.random.default_rng(sum(map(ord, "".join(names))))
    return write(
        {name: rng.normal(size=(5, 3)).astype(np.float32) for name in names},
        {name: rng.normal(size=(2, 2)).astype(np.float32) for name in names},
        (np.arange(10, dtype=np.float32) + shift).reshape(5, 2),
        LENGTHS,
        metadata={name: {"kind": name.upper()} for name in names},
        **options,
    )


def test_every_model_is_read_where_it_is(write_population: Write, tmp_path: Path) -> None:
    one = _written(write_population, "a", "b", store=str(tmp_path / "one.zarr"))
    two = _written(write_population, "c", store=str(tmp_path / "two.zarr"))
    three = _written(write_population, "d")
    joined = join_populations(join_populations(one, two), three)
    assert joined.ids == ("a", "b", "c", "d")
    assert joined.metadata["kind"].tolist() == ["A", "B", "C", "D"]
    for part in (one, two, three):
        for model in part.ids:
            np.testing.assert_array_equal(joined.states(model), part.states(model))
            np.testing.assert_array_equal(
                joined.states(model, "rnn", samples=[1]), part.states(model, samples=[1])
            )
            np.testing.assert_array_equal(joined.outputs(model), part.outputs(model))
            assert joined.model_hash(model) == part.model_hash(model)
            assert joined.nbytes(model) == part.nbytes(model)
    assert [part.location for part in joined.parts] == [p.location for p in (one, two, three)]
    assert joined.population_spec == one.population_spec
    assert join_populations(one) is one


def test_what_cannot_be_joined(write_population: Write) -> None:
    one, two = _written(write_population, "a", "b"), _written(write_population, "b", "c")
    with pytest.raises(DuplicateName, match="have a model 'b'"):
        join_populations(one, two)
    with pytest.raises(InvalidInput, match="different inputs"):
        join_populations(one, _written(write_population, "c", shift=1.0))
    joined = join_populations(one, _written(write_population, "see"))
    with pytest.raises(UnknownName, match="Did you mean 'see'"):
        joined.states("sea")


def test_some_models_in_another_order(write_population: Write, tmp_path: Path) -> None:
    one = _written(write_population, "a", "b", store=str(tmp_path / "one.zarr"))
    two = _written(write_population, "c", store=str(tmp_path / "two.zarr"))
    joined = join_populations(one, two)
    some = select_models(joined, ["c", "a"])
    assert some.ids == ("c", "a")
    assert some.metadata["kind"].tolist() == ["C", "A"]
    for model, part in (("c", two), ("a", one)):
        np.testing.assert_array_equal(some.states(model), part.states(model))
        np.testing.assert_array_equal(some.outputs(model), part.outputs(model))
    with pytest.raises(UnknownName, match="'b'"):
        some.states("b")
    assert select_models(one, ("a", "b")) is one
    assert select_models(one, ("b",)).ids == ("b",)
    with pytest.raises(UnknownName, match="'d'"):
        select_models(joined, ["a", "d"])
