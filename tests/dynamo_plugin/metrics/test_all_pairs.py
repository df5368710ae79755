from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

import dynamo_plugin as dp
from dynamo_plugin.errors import (
    CorruptBlock,
    DuplicateName,
    DynamoError,
    InvalidInput,
    StoreExists,
    UnknownName,
)
from dynamo_plugin.metrics import _tiles
from dynamo_plugin.metrics._prepared import PreparedNetworks
from dynamo_plugin.registry.interfaces import OF_EMBEDDING, Invariance, Metric
from dynamo_plugin.store import Population
from tests.dynamo_plugin.metrics.configurations import CONFIGURATIONS, Configuration, label, make
from tests.dynamo_plugin.metrics.conftest import LENGTHS, record


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "_BLOCK", 3)


def read(population: Population, metric: Metric[Any], model: str) -> Any:
    """Return what a metric compares, read without its help."""
    if metric.reads == "outputs":
        return population.outputs(model)
    states = population.states(model)
    if metric.reads == "states":
        return states
    return np.split(states, np.cumsum(LENGTHS)[:-1])


@pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if make(c).reads not in OF_EMBEDDING], ids=label
)
def test_every_pair_is_what_the_metric_says(
    population: Population, configuration: Configuration
) -> None:
    metric = make(configuration)
    name, options = configuration
    result = dp.pairwise(population, name, progress=False, **options)
    inputs = [read(population, metric, model) for model in population.ids]
    for i in (0, 4, 6):  # of every block
        for j in range(len(population)):
            if i == j and metric.value_of_itself is not None:
                assert result.values[i, j] == metric.value_of_itself
                continue
            expected = metric(inputs[i], inputs[j])
            found = result.value(population.ids[i], population.ids[j])
            assert found == pytest.approx(expected, abs=2e-5)
    assert result.ids == population.ids
    assert np.array_equal(result.distances, metric.to_distances(result.values))


@pytest.mark.parametrize("name", ["cka", "pwcca", "rsa"])
def test_threads_and_executors_give_the_same_bits(population: Population, name: str) -> None:
    serial = dp.pairwise(population, name, progress=False)
    threads = dp.pairwise(population, name, workers=3, progress=False)
    assert np.array_equal(threads.values, serial.values)
    with ThreadPoolExecutor(2) as executor:
        pooled = dp.pairwise(population, name, executor=executor, progress=False)
    assert np.array_equal(pooled.values, serial.values)


class Elsewhere(Executor):
    """Sends everything as to another process, and forgets what this one keeps."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        sent = pickle.loads(pickle.dumps((fn, args, kwargs)))
        kept = dict(_tiles._kept)
        _tiles._kept.clear()
        future.set_result(sent[0](*sent[1], **sent[2]))
        _tiles._kept.clear()
        _tiles._kept.update(kept)
        return future


@pytest.mark.parametrize("name", ["cka", "dsa", "disagreement"])
def test_what_is_sent_elsewhere_gives_the_same_bits(population: Population, name: str) -> None:
    options: dict[str, Any] = {"samples": list(range(11)), "progress": False}
    serial = dp.pairwise(population, name, **options)
    elsewhere = dp.pairwise(population, name, executor=Elsewhere(), **options)
    assert np.array_equal(elsewhere.values, serial.values)
    assert not _tiles._kept


@pytest.mark.slow
def test_processes_give_the_same_bits(population: Population) -> None:
    options: dict[str, Any] = {"side": "first", "progress": False}
    serial = dp.pairwise(population, "pwcca", **options)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        elsewhere = dp.pairwise(population, "pwcca", executor=executor, **options)
    assert np.array_equal(elsewhere.values, serial.values)


def test_populations_can_be_sent_to_other_processes(population: Population) -> None:
    other = pickle.loads(pickle.dumps(population))
    assert other.ids == population.ids
    assert np.array_equal(other.states("net-3"), population.states("net-3"))
    third = record({}, count=1)
    with pytest.raises(InvalidInput, match="memory"):
        pickle.dumps(third)


def test_joined_populations_can_be_sent(population: Population, tmp_path: Path) -> None:
    import torch

    from tests.dynamo_plugin.metrics.conftest import Classifier

    torch.manual_seed(5)
    inputs = torch.randn(len(LENGTHS), max(LENGTHS), 3, generator=torch.Generator().manual_seed(1))
    extra = {"extra": Classifier(torch.nn.GRU(3, 4, batch_first=True))}
    store = str(tmp_path / "more.zarr")
    more = dp.capture(extra, inputs, store, lengths=LENGTHS, progress=False)
    joined = dp.join_populations(population, more)
    other = pickle.loads(pickle.dumps(joined))
    assert other.ids == (*population.ids, "extra")
    assert np.array_equal(other.states("extra"), more.states("extra"))
    found = dp.pairwise(joined, "cka", progress=False)
    expected = dp.metric("cka")(population.states("net-0"), more.states("extra"))
    assert found.value("net-0", "extra") == pytest.approx(expected, abs=1e-6)


def test_some_models_in_another_order(population: Population) -> None:
    whole = dp.pairwise(population, "cka", progress=False)
    part = dp.pairwise(population, "cka", models=("net-5", "net-1"), progress=False)
    assert part.ids == ("net-5", "net-1")
    assert part.value("net-5", "net-1") == pytest.approx(whole.value("net-1", "net-5"), abs=1e-6)


def test_some_samples(population: Population) -> None:
    samples = [7, 2, 9]
    found = dp.pairwise(population, "cka", samples=samples, progress=False)
    x, y = (population.states(model, samples=samples) for model in ("net-0", "net-4"))
    assert found.value("net-0", "net-4") == pytest.approx(dp.metric("cka")(x, y), abs=1e-6)
    assert found.settings["samples"] == 3


@pytest.mark.parametrize("samples", [None, [3, 0, 11, 5]])
def test_rows_are_drawn_once_for_all_models(
    population: Population, samples: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in pieces of a few rows
    monkeypatch.setattr("dynamo_plugin.metrics._reading._PIECE_BYTES", 200)
    found = dp.pairwise(population, "cka", samples=samples, rows=15, row_seed=4, progress=False)
    x, y = (population.states(model, samples=samples) for model in ("net-0", "net-4"))
    drawn = np.sort(np.random.default_rng(4).choice(len(x), 15, replace=False))
    assert found.value("net-0", "net-4") == pytest.approx(
        dp.metric("cka")(x[drawn], y[drawn]), abs=1e-6
    )
    assert found.settings["rows"] == 15
    everything = dp.pairwise(population, "cka", samples=samples, rows=10**6, progress=False)
    assert everything.settings["rows"] is None


def test_memory_changes_how_often_models_are_read_only(population: Population) -> None:
    whole = dp.pairwise(population, "cka", progress=False)
    small = dp.pairwise(population, "cka", memory=1, progress=False)
    assert small.values == pytest.approx(whole.values, abs=1e-6)


def test_every_model_is_prepared_once_where_memory_allows(population: Population) -> None:
    metric = Counting()
    dp.pairwise(population, metric, progress=False)
    assert metric.prepared == sorted(metric.prepared)
    assert len(metric.prepared) == len(population)
    Counting.prepared.clear()
    dp.pairwise(population, metric, memory=1, progress=False)
    assert len(metric.prepared) > len(population)


@dataclass(frozen=True)
class Counting(Metric[NDArray[np.float64]]):
    """Difference of mean states; counts what it does, and fails when it is told to."""

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "none"
    prepared: ClassVar[list[float]] = []
    compared: ClassVar[list[int]] = []
    fail_after: ClassVar[int | None] = None

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset()

    def prepare(self, states: ArrayLike) -> NDArray[np.float64]:
        self.prepared.append(len(self.prepared))
        return np.array([np.asarray(states, dtype=np.float64).mean()])

    def compare(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        return float(np.abs(first - second).sum())

    def compare_many(
        self,
        first: Sequence[NDArray[np.float64]],
        second: Sequence[NDArray[np.float64]] | None = None,
    ) -> NDArray[np.float64]:
        if self.fail_after is not None and len(self.compared) == self.fail_after:
            raise KeyboardInterrupt
        self.compared.append(1)
        return super().compare_many(first, second)


@pytest.fixture(autouse=True)
def fresh_counts() -> None:
    Counting.prepared.clear()
    Counting.compared.clear()
    Counting.fail_after = None


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_comparison_goes_on(
    population: Population, tmp_path: Path, workers: int
) -> None:
    whole = dp.pairwise(population, Counting(), progress=False)
    tiles = len(Counting.compared)
    Counting.compared.clear()
    Counting.fail_after = 4
    folder = tmp_path / "tiles"
    options: dict[str, Any] = {"checkpoints": folder, "workers": workers, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        dp.pairwise(population, Counting(), **options)
    Counting.fail_after = None
    kept = len(list(folder.glob("tile-*")))
    assert 0 < kept < tiles
    with pytest.raises(StoreExists, match="resume=True"):
        dp.pairwise(population, Counting(), **options)
    Counting.compared.clear()
    result = dp.pairwise(population, Counting(), resume=True, **options)
    assert np.array_equal(result.values, whole.values)
    assert len(Counting.compared) == tiles - kept
    assert not folder.exists()


@pytest.fixture
def unfinished(population: Population, tmp_path: Path) -> Path:
    Counting.fail_after = 4
    folder = tmp_path / "tiles"
    with pytest.raises(KeyboardInterrupt):
        dp.pairwise(population, Counting(), checkpoints=folder, progress=False)
    Counting.fail_after = None
    return folder


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metric": "cka"}, "metric"),
        ({"rows": 20}, "rows"),
        ({"samples": [0, 1, 2]}, "sample_numbers"),
        ({"models": ("net-1", "net-0")}, "order"),
    ],
)
def test_another_comparison_is_not_mixed_in(
    population: Population, unfinished: Path, options: dict[str, Any], match: str
) -> None:
    metric = options.pop("metric", Counting())
    with pytest.raises(InvalidInput, match=f"another comparison: .*{match}"):
        dp.pairwise(
            population, metric, checkpoints=unfinished, resume=True, progress=False, **options
        )


def test_damaged_tiles_are_computed_again(population: Population, unfinished: Path) -> None:
    whole = dp.pairwise(population, Counting(), progress=False)
    first, second, *_ = sorted(unfinished.glob("tile-*"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(bytes(content))
    second.write_bytes(b"")
    result = dp.pairwise(
        population, Counting(), checkpoints=unfinished, resume=True, progress=False
    )
    assert np.array_equal(result.values, whole.values)


def test_a_damaged_description_is_said(population: Population, unfinished: Path) -> None:
    (unfinished / "comparison.json").write_text("{")
    with pytest.raises(CorruptBlock, match="Delete the folder"):
        dp.pairwise(population, Counting(), checkpoints=unfinished, resume=True, progress=False)


def test_other_folders_are_not_touched(population: Population, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(StoreExists, match="not touched"):
        dp.pairwise(population, "cka", checkpoints=tmp_path, progress=False)


def test_blocks_of_what_is_there_count(
    population: Population, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dp.pairwise(population, Counting(), progress=False)
    monkeypatch.setattr(_tiles, "_BLOCK", 5)
    result = dp.pairwise(
        population, Counting(), checkpoints=unfinished, resume=True, progress=False
    )
    assert np.array_equal(result.values, whole.values)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"models": ("net-0",)}, InvalidInput, "at least 2 models"),
        ({"models": ("net-0", "net-9")}, UnknownName, "net-9"),
        ({"models": ("net-0", "net-1", "net-0")}, DuplicateName, "named twice"),
        ({"samples": [0, 12]}, InvalidInput, "from 0 to 11"),
        ({"samples": []}, InvalidInput, "sample numbers"),
        ({"samples": [0.5]}, InvalidInput, "sample numbers"),
        ({"rows": 0}, InvalidInput, "rows"),
        ({"rows": 3}, InvalidInput, "'net-0': Expected at least 4 samples"),
        ({"workers": 0}, InvalidInput, "workers"),
        ({"site": "rnm"}, UnknownName, "rnn"),
        ({"site": {"net-0": "rnn"}}, InvalidInput, "net-1"),
        ({"resume": True}, InvalidInput, "checkpoints"),
        ({"estimater": "biased"}, InvalidInput, "estimator"),
    ],
)
def test_mistakes_are_named(
    population: Population, options: dict[str, Any], error: type[DynamoError], match: str
) -> None:
    with pytest.raises(error, match=match):
        dp.pairwise(population, "cka", progress=False, **options)


def test_other_mistakes(population: Population) -> None:
    with pytest.raises(InvalidInput, match="Expected a population"):
        dp.pairwise("population.zarr", "cka")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="made already"):
        dp.pairwise(population, dp.metric("cka"), estimator="biased")
    with pytest.raises(InvalidInput, match="the name of a metric"):
        dp.pairwise(population, 3)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as executor, pytest.raises(InvalidInput, match="one of them"):
        dp.pairwise(population, "cka", executor=executor, workers=2)


def test_models_at_different_steps_are_refused(write_population: Any) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 2)).astype(np.float32)
    states = {name: rng.normal(size=(20, 3)).astype(np.float32) for name in ("a", "b")}
    outputs = {name: rng.normal(size=(4, 2)).astype(np.float32) for name in ("a", "b")}
    uneven = write_population(states, outputs, inputs, [5] * 4, every={"b": 2})
    with pytest.raises(InvalidInput, match="'a' has one row per step, 'b' per 2 steps"):
        dp.pairwise(uneven, "cka", progress=False)
    even = write_population(states, outputs, inputs, [5] * 4, every={"a": 2, "b": 2})
    kept = np.tile(np.arange(5) % 2 == 0, 4)
    expected = dp.metric("cka")(states["a"][kept], states["b"][kept])
    found = dp.pairwise(even, "cka", progress=False)
    assert found.value("a", "b") == pytest.approx(expected, abs=1e-6)


def test_values_that_are_not_finite_are_no_result(population: Population) -> None:
    class Undefined(Counting):
        def compare(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
            return float("nan")

    with pytest.raises(InvalidInput, match="not finite"):
        dp.pairwise(population, Undefined(), progress=False)


def test_prepared_networks_are_dropped_by_age() -> None:
    kept = PreparedNetworks(100)
    made: list[str] = []

    def make(name: str) -> Any:
        def run() -> NDArray[np.float64]:
            made.append(name)
            return np.zeros(5)

        return run

    for name in ("a", "b", "c", "c", "b", "a"):
        kept.get(name, make(name))
    assert made == ["a", "b", "c", "a"]


def test_what_fails_to_be_prepared_is_tried_again() -> None:
    kept = PreparedNetworks(100)

    def fail() -> Any:
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        kept.get("a", fail)
    assert kept.get("a", lambda: 1) == 1


def test_the_tiles_are_all_pairs_of_blocks() -> None:
    for blocks in range(1, 6):
        tiles = _tiles.make_tiles(blocks)
        expected = {(i, j) for i in range(blocks) for j in range(i, blocks)}
        assert set(tiles) == expected
        assert len(tiles) == len(expected)


def test_metrics_are_as_they_were(population: Population) -> None:
    metric = dp.metric("cka", estimator="unbiased")
    before = copy.deepcopy(metric)
    dp.pairwise(population, metric, progress=False)
    assert metric == before
