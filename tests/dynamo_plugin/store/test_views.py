"""Views of a population, against its arrays permuted by NumPy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dynamo_plugin as dp
from dynamo_plugin.errors import DuplicateName, InvalidInput, UnknownName
from dynamo_plugin.recording import live_population
from dynamo_plugin.store import (
    Population,
    add_twins,
    join_populations,
    select_models,
    shuffle_time,
    twin_name,
)

LENGTHS = [7, 1, 5, 8, 6]
STARTS = np.cumsum(LENGTHS) - LENGTHS
UNITS = {"a": 3, "b": 4, "c": 3}


@pytest.fixture(scope="module")
def population(
    write_population: Callable[..., Population], tmp_path_factory: pytest.TempPathFactory
) -> Population:
    """Three networks on ragged sequences; of the last, every second step."""
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    return write_population(
        {name: rng.normal(size=(rows, units)).astype(np.float32) for name, units in UNITS.items()},
        {name: rng.normal(size=(len(LENGTHS), 2)).astype(np.float32) for name in UNITS},
        rng.normal(size=(rows, 2)).astype(np.float32),
        LENGTHS,
        metadata={name: {"kind": name.upper()} for name in UNITS},
        every={"c": 2},
        store=str(tmp_path_factory.mktemp("store") / "some.zarr"),
    )


def _cut(states: np.ndarray[Any, Any], every: int) -> list[np.ndarray[Any, Any]]:
    counts = [-(-length // every) for length in LENGTHS]
    return np.split(states, np.cumsum(counts)[:-1])


def test_shuffled_sequences_hold_the_same_states_in_another_order(population: Population) -> None:
    view = shuffle_time(population, seed=3)
    moved = {}
    for model in view.ids:
        every = 2 if model == "c" else 1
        pairs = zip(
            _cut(view.states(model), every), _cut(population.states(model), every), strict=True
        )
        for got, expected in pairs:
            assert sorted(map(tuple, got)) == sorted(map(tuple, expected))
        moved[model] = np.any(view.states(model) != population.states(model), axis=1).mean()
        np.testing.assert_array_equal(view.outputs(model), population.outputs(model))
        assert view.nbytes(model) == population.nbytes(model)
        assert view.spec(model) == population.spec(model)
    assert min(moved.values()) > 0.3
    assert view.inputs.hash == population.inputs.hash
    assert view.metadata.equals(population.metadata)
    assert "shuffled, seed 3" in view.location


def test_orders_differ_between_networks_sequences_and_seeds(
    write_population: Callable[..., Population],
) -> None:
    steps = np.tile(np.arange(40.0, dtype=np.float32), 2)[:, None]
    base = write_population(
        {"a": steps, "b": steps}, {"a": steps[:2], "b": steps[:2]}, steps, [40, 40]
    )
    view = shuffle_time(base, seed=0)
    first, second = view.states("a")[:40, 0], view.states("a")[40:, 0]
    others = [second, view.states("b")[:40, 0], shuffle_time(base, seed=1).states("a")[:40, 0]]
    for other in [steps[:40, 0], *others]:
        assert not np.array_equal(first, other)
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.6


@given(samples=st.lists(st.integers(0, len(LENGTHS) - 1), max_size=7), model=st.sampled_from("abc"))
def test_samples_are_read_as_they_are_of_the_whole(
    population: Population, samples: list[int], model: str
) -> None:
    for view in (shuffle_time(population, seed=5), add_twins(population, seed=5)):
        every = 2 if model == "c" else 1
        whole = _cut(view.states(model), every)
        expected = [whole[sample] for sample in samples]
        got = view.states(model, samples=samples)
        np.testing.assert_array_equal(got, np.concatenate([whole[0][:0], *expected]))


def test_sites_of_a_network_keep_their_steps_together() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(2, 3, num_layers=2, batch_first=True)
    base = live_population({"lstm": model}, torch.randn(4, 9, 2), samples=None)
    view = shuffle_time(base, seed=0)
    together = {
        tuple(row)
        for row in np.concatenate([base.states("lstm", s) for s in base.sites("lstm")], axis=1)
    }
    for row in np.concatenate([view.states("lstm", s) for s in view.sites("lstm")], axis=1):
        assert tuple(row) in together


def test_without_time_samples_are_permuted() -> None:
    torch.manual_seed(0)
    models = {
        name: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for name in ("a", "b")
    }
    base = live_population(models, torch.randn(30, 4), layers=["0", "1"], has_time=False)
    view = shuffle_time(base, seed=1)
    orders = {}
    for model in models:
        for site in base.sites(model):
            plain, moved = base.states(model, site), view.states(model, site)
            order = [int(np.flatnonzero((plain == row).all(1))[0]) for row in moved]
            assert sorted(order) == list(range(30))
            orders[model, site] = order
            some = view.states(model, site, samples=[4, 2])
            np.testing.assert_allclose(some, moved[[4, 2]], atol=1e-6)
    assert orders["a", "0"] == orders["a", "1"] != orders["b", "0"]


@pytest.mark.parametrize("by", ["permutation", "rotation"])
def test_a_twin_is_the_network_in_another_basis(population: Population, by: Any) -> None:
    view = add_twins(population, seed=2, by=by)
    assert view.ids == (*population.ids, *map(twin_name, population.ids))
    for model in population.ids:
        states, twin = population.states(model), view.states(twin_name(model))
        np.testing.assert_array_equal(view.states(model), states)
        np.testing.assert_array_equal(view.outputs(twin_name(model)), population.outputs(model))
        solved, *_ = np.linalg.lstsq(states.astype(float), twin.astype(float), rcond=None)
        np.testing.assert_allclose(solved @ solved.T, np.eye(UNITS[model]), atol=1e-5)
        if by == "permutation":
            np.testing.assert_allclose(solved, solved.round(), atol=1e-5)
        assert view.model_hash(model) == population.model_hash(model)
        assert view.model_hash(twin_name(model)) != population.model_hash(model)
        assert view.metadata.loc[twin_name(model), "kind"] == model.upper()
    moved = [m for m in UNITS if not np.array_equal(view.states(m), view.states(twin_name(m)))]
    assert moved
    seeds = {add_twins(population, seed=s, by=by).states("b (twin)").tobytes() for s in range(9)}
    assert len(seeds) > 3


def test_channels_of_feature_maps_are_permuted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(24, 2))
    base = live_population({"net": net}, torch.randn(5, 1, 4, 4), layers=["0"])
    twin = add_twins(base, seed=0).states("net (twin)")
    plain = base.states("net")
    order = [
        channel
        for found in np.moveaxis(twin, 1, 0)
        for channel in range(6)
        if np.array_equal(plain[:, channel], found)
    ]
    assert sorted(order) == list(range(6))
    rotated = add_twins(base, seed=0, by="rotation").states("net (twin)")
    assert rotated.shape == plain.shape
    np.testing.assert_allclose((rotated**2).sum(1), (plain**2).sum(1), rtol=1e-4)


def test_views_select_and_rename(population: Population) -> None:
    view = select_models(population, {"again": "b", "c": "c"})
    assert view.ids == ("again", "c")
    np.testing.assert_array_equal(view.states("again"), population.states("b"))
    assert view.location == population.location
    both = join_populations(population, select_models(population, {"again": "b"}))
    np.testing.assert_array_equal(both.states("again"), both.states("b"))
    with pytest.raises(UnknownName, match="no model 'd'"):
        select_models(population, ["d"])
    with pytest.raises(UnknownName, match="no model 'b'"):
        view.states("b")
    for wrong, message in ((["a", "a"], "every model once"), ([], "got none")):
        with pytest.raises(InvalidInput, match=message):
            select_models(population, wrong)


def test_views_travel_to_processes_and_serve_threads(population: Population) -> None:
    views = [
        shuffle_time(population, seed=1),
        add_twins(population, seed=1, by="rotation"),
        select_models(population, ["c", "a"]),
        shuffle_time(add_twins(population, seed=4), seed=2),
    ]
    for view in views:
        copy = pickle.loads(pickle.dumps(view))
        assert (copy.ids, copy.location) == (view.ids, view.location)
        model = view.ids[-1]
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _, v=view, m=model: v.states(m), range(8)):
                np.testing.assert_array_equal(found, copy.states(model))


def test_what_views_refuse(write_population: Callable[..., Population], tmp_path: Path) -> None:
    rows = np.ones((3, 2), np.float32) * np.arange(3, dtype=np.float32)[:, None]
    short = write_population({"a": rows}, {"a": rows}, rows, [1, 1, 1])
    with pytest.raises(InvalidInput, match="cannot be shuffled: there are no two"):
        shuffle_time(short, seed=0)
    with pytest.raises(InvalidInput, match="'permutation' or 'rotation'"):
        add_twins(short, seed=0, by="shift")  # type: ignore[arg-type]
    with pytest.raises(DuplicateName, match=r"'a \(twin\)'"):
        add_twins(add_twins(short, seed=0), seed=1)
    with pytest.raises(UnknownName):
        add_twins(short, seed=0).states("a (twni)")
    live = live_population({"a": nn.GRU(2, 3, batch_first=True)}, torch.zeros(2, 4, 2))
    with pytest.raises(InvalidInput, match="stay in their process"):
        pickle.dumps(shuffle_time(live, seed=0))


def test_an_embedding_of_a_view_is_not_one_of_the_population(population: Population) -> None:
    view = shuffle_time(population, seed=0)
    embedding = dp.fit(
        select_models(view, ["a", "b"]),
        steps=2,
        embedding_dim=2,
        family_options={"units": 4},
        device="cpu",
        progress=False,
    )
    with pytest.raises(InvalidInput, match="not the one that was embedded"):
        embedding.with_population(population)
