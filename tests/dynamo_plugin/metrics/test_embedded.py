"""Distances of what an embedding holds, beside NumPy, SciPy and loops over rendered networks."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist, squareform

import dynamo_plugin as dp
from dynamo_plugin.embedding import ModelEmbedding, geometry
from dynamo_plugin.errors import InvalidInput, StoreNotFound, UnknownName
from dynamo_plugin.metrics import _tiles, embedded
from dynamo_plugin.metrics._embedded_reading import EmbeddedSource
from dynamo_plugin.registry.interfaces import Invariance, Metric, Reads
from dynamo_plugin.store import Population
from tests.dynamo_plugin.metrics.conftest import record
from tests.dynamo_plugin.metrics.test_all_pairs import Elsewhere

KINDS: tuple[Literal["theta", "pullback", "functional"], ...] = ("theta", "pullback", "functional")

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "_BLOCK", 3)


def fitted(population: Population, **options: Any) -> ModelEmbedding:
    settings = {"embedding_dim": 3, "steps": 10, "theta_std": 1.0, "held_out": 0.4} | options
    return dp.fit(population, device="cpu", progress=False, family_options={"units": 6}, **settings)


@pytest.fixture(scope="session")
def aligned(population: Population) -> ModelEmbedding:
    """With one map V(theta) for all models."""
    return fitted(population, alignment_weight=1.0)


@pytest.fixture(scope="session")
def plain(population: Population) -> ModelEmbedding:
    """Compared by the states of the meta-model."""
    return fitted(population, alignment_weight=0.0)


def rendered_differences(
    embedding: ModelEmbedding, samples: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return (model, model) distances, network by network, sample by sample and step by step."""
    chosen = embedding.held_out_samples.tolist() if samples is None else np.asarray(samples)
    found: list[list[NDArray[Any]]] = []
    for model in embedding.ids:
        network = embedding.render(model)
        rows: dict[str, list[NDArray[Any]]] = {}
        for sample in chosen:
            batch = embedding.population.inputs.batch([int(sample)])
            with torch.no_grad():
                states = network.trajectory(batch.values, lengths=batch.lengths).states
            for stage, values in states.items():
                rows.setdefault(stage, []).append(values[0].double().numpy())
        found.append([np.concatenate(stage) for stage in rows.values()])
    square = np.zeros((len(found), len(found)))
    for i, one in enumerate(found):
        for j, other in enumerate(found):
            means = [np.square(a - b).mean() for a, b in zip(one, other, strict=True)]
            square[i, j] = np.sqrt(np.mean(means))
    return square


@every_kind
@pytest.mark.parametrize("which", ["aligned", "plain"])
def test_they_are_the_distances_of_the_embedding(
    which: str, kind: Literal["theta", "pullback", "functional"], request: pytest.FixtureRequest
) -> None:
    embedding: ModelEmbedding = request.getfixturevalue(which)
    result = dp.pairwise(embedding, kind, progress=False)
    expected = embedding.distances(kind)
    pd_found = result.to_dataframe()
    assert list(pd_found.index) == list(expected.index)
    np.testing.assert_allclose(result.values, expected, rtol=1e-6, atol=1e-9)
    assert np.array_equal(result.values, result.values.T)
    assert np.array_equal(result.distances, result.values)
    assert not np.diag(result.values).any()
    assert (result.kind, result.symmetric, result.is_metric) == ("distance", True, True)
    assert result.population == embedding.population.location


def test_thetas_by_scipy(plain: ModelEmbedding) -> None:
    found = dp.pairwise(plain, "theta", progress=False)
    expected = squareform(pdist(plain.thetas.double().numpy()))
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


def test_the_pull_back_metric_by_its_formula(plain: ModelEmbedding) -> None:
    found = dp.pairwise(plain, "pullback", models=plain.ids[4:1:-1], progress=False)
    metric = geometry.pullback_metric(plain)
    difference = (plain.theta("net-4") - plain.theta("net-2")).double().numpy()
    expected = np.sqrt(difference @ metric @ difference)
    assert found.ids == ("net-4", "net-3", "net-2")
    assert found.value("net-4", "net-2") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("samples", [None, [7, 0, 3]])
def test_functions_by_a_loop_over_rendered_networks(
    plain: ModelEmbedding, samples: list[int] | None
) -> None:
    found = dp.pairwise(plain, "functional", samples=samples, progress=False)
    np.testing.assert_allclose(found.values, rendered_differences(plain, samples), rtol=1e-5)
    assert found.settings["samples"] == len(samples or plain.held_out_samples)


def test_functions_of_networks_with_several_stages() -> None:
    torch.manual_seed(0)
    models = {
        f"net-{index}": torch.nn.Sequential(
            torch.nn.Linear(4, 3 + index),
            torch.nn.Tanh(),
            torch.nn.Linear(3 + index, 6),
            torch.nn.Tanh(),
            torch.nn.Linear(6, 2),
        )
        for index in range(4)
    }
    population = dp.capture(models, torch.randn(20, 4), {}, layers=["1", "3"], progress=False)
    embedding = fitted(
        population, family="residual", alignment_weight=0.0, output_loss="mse", held_out=0.5
    )
    found = dp.pairwise(embedding, "functional", progress=False)
    assert len(embedding.meta_model.stage_units) == 2
    np.testing.assert_allclose(found.values, rendered_differences(embedding), rtol=1e-5)
    np.testing.assert_allclose(found.values, embedding.distances("functional"), rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1e4))
def test_near_networks_keep_their_digits(seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(30, 4)) + offset
    networks = [common + 1e-3 * rng.normal(size=(30, 4)) for _ in range(5)]
    metric = dp.metric("functional")
    values = metric.compare_many([metric.prepare(states) for states in networks])
    expected = squareform(pdist([states.ravel() for states in networks])) / np.sqrt(120)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = dp.metric("functional")
    networks = [metric.prepare(x) for x in np.random.default_rng(0).normal(size=(4, 9, 3))]
    whole = metric.compare_many(networks[:1], networks[1:])
    monkeypatch.setattr(embedded, "_PIECE", 20)
    assert metric.compare_many(networks[:1], networks[1:]) == pytest.approx(whole, rel=1e-12)


def test_stages_weigh_the_same() -> None:
    rng = np.random.default_rng(0)
    one, other = ([rng.normal(size=shape) for shape in ((5, 2), (7, 3))] for _ in range(2))
    means = [np.square(a - b).mean() for a, b in zip(one, other, strict=True)]
    metric = dp.metric("functional")
    assert metric.compare(metric.prepare(one), metric.prepare(other)) == pytest.approx(
        np.sqrt(np.mean(means))
    )
    with pytest.raises(InvalidInput, match="same meta-model"):
        metric.compare(metric.prepare(one), metric.prepare(other[0]))


@every_kind
def test_threads_memory_and_other_processes(
    aligned: ModelEmbedding, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = dp.pairwise(aligned, kind, progress=False)
    threads = dp.pairwise(aligned, kind, workers=3, progress=False)
    elsewhere = dp.pairwise(aligned, kind, executor=Elsewhere(), progress=False)
    small = dp.pairwise(aligned, kind, memory=1, progress=False)
    assert np.array_equal(threads.values, serial.values)
    assert np.array_equal(elsewhere.values, serial.values)
    np.testing.assert_allclose(small.values, serial.values, rtol=1e-6)
    monkeypatch.setattr(geometry, "ROWS", 15)  # a sample at a time
    batched = dp.pairwise(aligned, kind, progress=False)
    np.testing.assert_allclose(batched.values, serial.values, rtol=1e-5)


@pytest.mark.parametrize("name", ["cka", "dsa", "disagreement"])
def test_metrics_of_the_population_are_of_the_models_of_the_embedding(
    plain: ModelEmbedding, population: Population, name: str
) -> None:
    more = record({}, count=9)
    assert more.ids[:7] == plain.ids
    found = dp.pairwise(plain.with_population(more), name, progress=False)
    expected = dp.pairwise(population, name, progress=False)
    assert found.ids == plain.ids
    assert np.array_equal(found.values, expected.values)
    assert found.population == more.location
    options: dict[str, Any] = {"models": ("net-1", "net-0"), "samples": [3, 2, 9, 5]}
    some = dp.pairwise(plain, name, progress=False, **options)
    expected = dp.pairwise(population, name, progress=False, **options)
    assert np.array_equal(some.values, expected.values)


@every_kind
def test_a_population_is_not_enough(population: Population, kind: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{kind}.*got a population.*dynamo_plugin.fit"):
        dp.pairwise(population, kind, progress=False)


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("theta", {"site": "rnn"}, "no recorded site"),
        ("functional", {"site": ["rnn"]}, "no recorded site"),
        ("functional", {"rows": 5}, "rows"),
        ("theta", {"samples": [0]}, "no samples"),
        ("pullback", {"samples": [0]}, "no samples"),
        ("functional", {"samples": [12]}, "from 0 to 11"),
        ("functional", {"samples": [0.5]}, "sample numbers"),
        ("theta", {"directions": 3}, "directions"),
    ],
)
def test_options_that_do_not_go_together(
    plain: ModelEmbedding, kind: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidInput, match=match):
        dp.pairwise(plain, kind, progress=False, **options)


def test_models_that_were_not_embedded(plain: ModelEmbedding) -> None:
    with pytest.raises(UnknownName, match="The embedding has no model 'net-8'"):
        dp.pairwise(plain, "cka", models=("net-0", "net-8"), progress=False)


def test_thetas_need_no_population(plain: ModelEmbedding, tmp_path: Path) -> None:
    plain.save(tmp_path / "embedding")
    gone = dataclasses.replace(
        plain,
        bound_population=None,
        provenance=dataclasses.replace(plain.provenance, population=str(tmp_path / "gone.zarr")),
    )
    found = dp.pairwise(gone, "theta", progress=False)
    assert np.array_equal(found.values, dp.pairwise(plain, "theta", progress=False).values)
    for name in ("functional", "pullback", "cka"):
        with pytest.raises(StoreNotFound, match="gone"):
            dp.pairwise(gone, name, progress=False)


def test_thetas_of_different_embeddings() -> None:
    with pytest.raises(InvalidInput, match="got 3 and 4"):
        dp.metric("theta")(np.zeros(3), np.zeros(4))


def test_results_go_where_others_go(plain: ModelEmbedding, tmp_path: Path) -> None:
    result = dp.pairwise(plain, "functional", progress=False)
    loaded = dp.PairwiseDistances.load(result.save(tmp_path / "functional.json"))
    assert np.array_equal(loaded.values, result.values)
    assert loaded.summary() == result.summary()
    assert result.embed().shape == (7, 2)
    assert result.linkage().shape == (6, 4)
    assert result.to_xarray()["distance"].shape == (7, 7)
    for kind in ("heatmap", "dendrogram", "embedding"):
        result.plot(kind=kind).write_html(tmp_path / f"{kind}.html")


@pytest.mark.parametrize("change", ["theta", "meta_model", "samples", "kind"])
def test_another_embedding_is_not_mixed_in(
    plain: ModelEmbedding, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tiles"
    read, count = EmbeddedSource.read, 0

    def interrupted(self: EmbeddedSource, model: str) -> Any:
        nonlocal count
        count += 1
        if count > 3:
            raise KeyboardInterrupt
        return read(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedSource, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dp.pairwise(plain, "functional", checkpoints=folder, progress=False)
    other, kind = plain, "functional"
    options: dict[str, Any] = {}
    if change == "theta":
        other = dataclasses.replace(plain, thetas=plain.thetas + 1e-3)
    elif change == "meta_model":
        other = dataclasses.replace(plain, meta_model=copy.deepcopy(plain.meta_model))
        next(other.meta_model.parameters()).data += 1e-3
    elif change == "samples":
        options = {"samples": plain.held_out_samples.numpy()[::-1]}
    else:
        kind = "theta"
    again: dict[str, Any] = {"checkpoints": folder, "resume": True, "progress": False}
    with pytest.raises(InvalidInput, match="another comparison"):
        dp.pairwise(other, kind, **again, **options)
    result = dp.pairwise(plain, "functional", **again)
    whole = dp.pairwise(plain, "functional", progress=False)
    assert np.array_equal(result.values, whole.values)
    assert not folder.exists()


@dataclasses.dataclass(frozen=True)
class MeanRendered(Metric[float]):
    """A plugin's: difference of mean rendered states."""

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "none"
    reads: ClassVar[Reads] = "rendered"

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset()

    def prepare(self, states: Any) -> float:
        (hidden,) = states
        return float(hidden.mean())

    def compare(self, first: float, second: float) -> float:
        return abs(first - second)


def test_metrics_of_others_can_read_rendered_states(plain: ModelEmbedding) -> None:
    found = dp.pairwise(plain, MeanRendered(), progress=False)
    means = []
    for model in ("net-0", "net-5"):
        network, rows = plain.render(model), []
        for sample in plain.held_out_samples.tolist():
            batch = plain.population.inputs.batch([sample])
            states = network.trajectory(batch.values, lengths=batch.lengths).states["hidden"]
            rows.append(states[0].detach().numpy())
        means.append(np.concatenate(rows).mean())
    assert found.value("net-0", "net-5") == pytest.approx(abs(means[0] - means[1]), rel=1e-4)
