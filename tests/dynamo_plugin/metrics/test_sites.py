"""Several sites of a model as one, beside arrays that NumPy joins."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.errors import DuplicateName, DynamoError, InvalidInput, UnknownName
from dynamo_plugin.metrics._reading import Source
from dynamo_plugin.store import Population
from tests.dynamo_plugin.metrics.conftest import LENGTHS


class Deep(nn.Module):
    """Two recurrent layers, and one that sees the last state alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.low = nn.RNN(3, width, batch_first=True)
        self.high = nn.GRU(width, width + 1, batch_first=True)
        self.last = nn.Linear(width + 1, 4)
        self.readout = nn.Linear(4, 2)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        states = self.high(self.low(inputs)[0])[0]
        final = states[torch.arange(len(states)), lengths - 1]
        read: Tensor = self.readout(torch.tanh(self.last(final)))
        return read


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Population:
    torch.manual_seed(0)
    models = {f"net-{index}": Deep(4 + index) for index in range(3)}
    inputs = torch.randn(len(LENGTHS), max(LENGTHS), 3, generator=torch.Generator().manual_seed(1))
    store = str(tmp_path_factory.mktemp("sites") / "population.zarr")
    return dp.capture(models, inputs, store, lengths=LENGTHS, progress=False)


def joined(population: Population, model: str, sites: list[str], **options: Any) -> Any:
    return np.concatenate([population.states(model, site, **options) for site in sites], axis=1)


@pytest.mark.parametrize("samples", [None, [7, 2, 9, 4]])
@pytest.mark.parametrize("rows", [None, 20])
def test_sites_are_joined_unit_by_unit(
    deep: Population, samples: list[int] | None, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_plugin.metrics._reading._PIECE_BYTES", 500)
    sites = ["high", "low"]
    result = dp.pairwise(deep, "procrustes", site=sites, samples=samples, rows=rows, progress=False)
    x, y = (joined(deep, model, sites, samples=samples) for model in ("net-0", "net-2"))
    if rows is not None:
        drawn = np.sort(np.random.default_rng(0).choice(len(x), rows, replace=False))
        x, y = x[drawn], y[drawn]
    expected = dp.metric("procrustes")(x, y)
    assert result.value("net-0", "net-2") == pytest.approx(expected, abs=1e-6)
    assert result.settings["site"] == sites


def test_what_is_read_is_what_numpy_joins(deep: Population) -> None:
    for sites in (["low", "high"], ("high", "low"), ["low"]):
        source = Source.make(
            deep, deep.ids, reads="states", site=sites, samples=None, rows=None, row_seed=0
        )
        assert np.array_equal(source.read("net-1"), joined(deep, "net-1", list(sites)))


def test_sites_by_model(deep: Population) -> None:
    site = {"net-0": ["low", "high"], "net-1": "low", "net-2": ["high"]}
    result = dp.pairwise(deep, "cka", site=site, progress=False)
    x = joined(deep, "net-0", ["low", "high"])
    for model, own in (("net-1", "low"), ("net-2", "high")):
        expected = dp.metric("cka")(x, deep.states(model, own))
        assert result.value("net-0", model) == pytest.approx(expected, abs=1e-6)
    assert result.settings["site"] == site


def test_trials_of_several_sites(deep: Population) -> None:
    sites = ["low", "high"]
    result = dp.pairwise(deep, "dsa", site=sites, rank=3, progress=False)
    trials = [
        np.split(joined(deep, model, sites), np.cumsum(LENGTHS)[:-1]) for model in deep.ids[:2]
    ]
    expected = dp.metric("dsa", rank=3)(*trials)
    assert result.value("net-0", "net-1") == pytest.approx(expected, abs=2e-5)


def test_sites_of_other_dtypes_and_shapes(write_sites: Any) -> None:
    rng = np.random.default_rng(0)
    low, maps = rng.normal(size=(30, 3)), rng.normal(size=(30, 2, 4)).astype(np.float16)
    population = write_sites({"low": low.astype(np.float32), "maps": maps})
    source = Source.make(
        population,
        population.ids,
        reads="states",
        site=["maps", "low"],
        samples=None,
        rows=None,
        row_seed=0,
    )
    found = source.read("a")
    expected = np.concatenate([maps.reshape(30, 8), low.astype(np.float32)], axis=1)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_only_one_site_is_in_memory_twice(write_sites: Any) -> None:
    states = {f"site-{n}": np.ones((30_000, 10), np.float32) for n in range(8)}
    population = write_sites(states)
    source = Source.make(
        population,
        population.ids,
        reads="states",
        site=list(states),
        samples=None,
        rows=None,
        row_seed=0,
    )
    whole = 8 * 30_000 * 10 * 4
    tracemalloc.start()
    found = source.read("a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.nbytes == whole
    assert peak < 1.6 * whole


@pytest.fixture
def write_sites() -> Any:
    """Return a function that stores models `a` and `b` with these sites."""
    from dynamo_plugin.store import PopulationInputs, PopulationWriter, open_population
    from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec

    def write(states: dict[str, Any], *, every: dict[str, int] | None = None) -> Population:
        rows = len(next(iter(states.values())))
        given = PopulationInputs(
            values=np.zeros((rows, 1), np.float32),
            offsets=np.arange(0, rows + 1, rows // 6),
            sample_ids=tuple(map(str, range(6))),
            spec=InputSpec("features", 1),
        )
        store: dict[str, Any] = {}
        writer = PopulationWriter.create(store, given, models=("a", "b"), config={})
        for index, model in enumerate(("a", "b")):
            sites = tuple(
                SiteSpec(site, rows.shape[1:], str(rows.dtype), every=(every or {}).get(site, 1))
                for site, rows in states.items()
            )
            spec = TrajectorySpec("none", sites, OutputSpec("output", (2,), "float32", "sample"))
            block = writer.begin(model, spec, metadata={}, model_hash=f"{index:064x}", index=index)
            for site, values in states.items():
                stride = (every or {}).get(site, 1)
                step = np.arange(rows) % (rows // 6)
                block.append_states(site, values[step % stride == 0])
            block.append_outputs(np.zeros((6, 2), np.float32))
            block.finish()
        return open_population(store)

    return write


def test_sites_at_different_steps(write_sites: Any) -> None:
    states = {name: np.random.default_rng(0).normal(size=(30, 3)) for name in ("x", "y")}
    population = write_sites(states, every={"y": 2})
    with pytest.raises(InvalidInput, match="'a', 'x' has one row per step, 'y' per 2 steps"):
        dp.pairwise(population, "cka", site=["x", "y"], progress=False)


@pytest.mark.parametrize(
    ("site", "error", "match"),
    [
        (["low", "low"], DuplicateName, "'low' is named twice"),
        ([], InvalidInput, "a list of names"),
        ([0], InvalidInput, "a list of names"),
        (["low", "hihg"], UnknownName, "Did you mean 'high'"),
        ({"net-0": ["low"], "net-1": ["low", "high"]}, InvalidInput, "none for model 'net-2'"),
        (None, InvalidInput, "low, high"),
    ],
)
def test_mistakes_are_named(
    deep: Population, site: Any, error: type[DynamoError], match: str
) -> None:
    with pytest.raises(error, match=match):
        dp.pairwise(deep, "cka", site=site, progress=False)
