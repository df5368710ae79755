"""Captures whose states are made smaller: what is stored, and that nothing is fitted twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from dynamo_plugin.embedding import fit
from dynamo_plugin.errors import (
    CorruptBlock,
    InvalidInput,
    NonFiniteStates,
    StoreError,
    UnknownName,
)
from dynamo_plugin.recording import Reduction, capture, fitting
from dynamo_plugin.recording import ledgers as ledgers_module
from dynamo_plugin.recording.sampling import draw_samples
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.store import Population, open_population, verify_population
from dynamo_plugin.store._local import LocalLocation
from dynamo_plugin.types import (
    OutputSpec,
    SequenceBatch,
    SiteSpec,
    Trajectory,
    TrajectorySpec,
)

LENGTHS = [3, 1, 6, 6, 2, 4, 1, 5, 6, 3]
PCA_RULES = {
    "*layer0": Reduction(every=2, project=3, projection="pca", pca_samples=7, seed=2),
    "*layer1": Reduction(project=2, projection="pca"),
}


def net(seed: int = 0, units: int = 6) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.GRU(2, units, num_layers=2, batch_first=True)


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 2, generator=generator) for length in LENGTHS]


def run(models: Any, store: Any = None, **options: Any) -> Population:
    options = {"batch_size": 3, "progress": False} | options
    return capture(
        models, options.pop("inputs", sequences()), {} if store is None else store, **options
    )


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about power failures, and flushing takes most of the time."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)


def steps(every: int) -> Any:
    """Which rows are those of steps 0, every, ..."""
    return np.concatenate([np.arange(length) % every == 0 for length in LENGTHS])


def test_components_are_those_of_the_drawn_samples(small_blocks: None) -> None:
    models = {"a": net(), "b": net(1, 9)}
    whole, kept = run(models), run(models, reduce=PCA_RULES)
    for model_id, (site, rule) in itertools.product(
        models, zip(("gru.layer0", "gru.layer1"), PCA_RULES.values(), strict=True)
    ):
        drawn = draw_samples(rule.pca_samples, len(LENGTHS), rule.seed)
        owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
        states = whole.states(model_id, site).astype(np.float64)
        chosen = states[steps(rule.every) & np.isin(owner, drawn)]
        expected = PCA(n_components=rule.project, svd_solver="full").fit(chosen)
        found = kept.projection(model_id, site)
        # another batch changes the last bits of float32 states
        assert found.variances is not None
        np.testing.assert_allclose(found.mean, expected.mean_, atol=1e-6)
        np.testing.assert_allclose(found.variances, expected.explained_variance_, rtol=1e-6)
        rest = chosen.var(0, ddof=1).sum() - expected.explained_variance_.sum()
        assert found.residual_variance == pytest.approx(rest, rel=1e-6)
        signs = np.sign((found.matrix * expected.components_).sum(1))
        np.testing.assert_allclose(found.matrix, expected.components_ * signs[:, None], atol=1e-5)
        scores = expected.transform(states[steps(rule.every)]) * signs
        stored = kept.states(model_id, site)
        assert stored.dtype == np.float32
        np.testing.assert_allclose(stored, scores, rtol=1e-5, atol=1e-6)
        restored = expected.inverse_transform(scores * signs)
        np.testing.assert_allclose(found.restore(stored), restored, rtol=1e-5, atol=1e-6)
        scores = found.project(states[:4])
        np.testing.assert_allclose(scores, (states[:4] - found.mean) @ found.matrix.T, rtol=1e-12)
        expected_scores = expected.transform(states[:4]) * signs
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept.outputs("a"), whole.outputs("a"))


def test_samples_are_read_where_every_step_is_stored_or_some() -> None:
    whole = run({"a": net()})
    kept = run({"a": net()}, reduce={"*": {"every": 3}})
    assert kept.spec("a").sites[0].every == 3
    for samples in ([4], [9, 0, 3], None):
        rows = [
            whole.states("a", "gru.layer1", samples=[sample])[::3]
            for sample in (samples or range(len(LENGTHS)))
        ]
        np.testing.assert_array_equal(
            kept.states("a", "gru.layer1", samples=samples), np.concatenate(rows)
        )


def test_random_projections_are_shared_and_map_back() -> None:
    models = {"a": net(), "b": net(1)}
    whole = run(models)
    kept = run(models, reduce={"*": Reduction(project=200 // 40, dtype="float16")})
    first = kept.projection("a", "gru.layer0")
    assert first.kind == "random"
    assert not first.mean.any()
    np.testing.assert_array_equal(first.matrix, kept.projection("b", "gru.layer1").matrix)
    states = whole.states("b", "gru.layer1").astype(np.float64)
    assert kept.states("b", "gru.layer1").dtype == np.float16
    np.testing.assert_allclose(
        kept.states("b", "gru.layer1"), states @ first.matrix.T, rtol=1e-3, atol=1e-3
    )
    assert kept.spec("b").sites[0].source_dtype == "float32"
    with pytest.raises(InvalidInput, match="stored without a projection"):
        whole.projection("a", "gru.layer0")
    with pytest.raises(UnknownName, match=r"no site 'gru.layer2'"):
        kept.projection("a", "gru.layer2")
    with pytest.raises(InvalidInput, match="Expected the name of one of the sites"):
        kept.projection("a")


def files_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and "lease" not in path.name
    }


class Fits:
    """Counts the models that principal components are fitted of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = fitting.fit_components

        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            return original(*arguments, **options)

        monkeypatch.setattr("dynamo_plugin.recording.model_run.fit_components", counted)


def test_a_capture_that_is_stopped_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"a": net()}
    run(models, tmp_path / "whole", reduce=PCA_RULES)
    expected = files_of(tmp_path / "whole")
    original = LocalLocation.set_parts
    for allowed in range(0, 400, 7):
        written = 0

        def stopping(self: Any, key: str, parts: Any, allowed: int = allowed) -> None:
            nonlocal written
            written += 1
            if written > allowed:
                raise StoreError("full")
            original(self, key, parts)

        store = tmp_path / f"stopped-{allowed}"
        with monkeypatch.context() as patch:
            patch.setattr(LocalLocation, "set_parts", stopping)
            try:
                run(models, store, reduce=PCA_RULES)
                break
            except StoreError:
                pass
        fitted = all(
            (store / f"models/a/reductions/gru.layer{layer}/variances/commits/0.json").exists()
            for layer in (0, 1)
        )
        with monkeypatch.context() as patch:
            fits = Fits(patch)
            run(models, store, reduce=PCA_RULES, resume=True)
        assert fits.count == (not fitted)
        assert files_of(store) == expected
    assert allowed > 60
    assert verify_population(tmp_path / "whole").ok


def inline() -> Executor:
    class Inline(Executor):
        def submit(self, function: Callable[..., Any], /, *a: Any, **k: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(function(*a, **k))
            except Exception as error:
                future.set_exception(error)
            return future

    return Inline()


def test_a_worker_that_reports_in_parts_fits_once(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run({"a": net()}, tmp_path / "whole", reduce=PCA_RULES)
    monkeypatch.setattr(ledgers_module, "SPAN_BYTES", 1)
    fits = Fits(monkeypatch)
    run({"a": net()}, tmp_path / "parts", reduce=PCA_RULES, executor=inline())
    assert fits.count == 1
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_threads_write_what_a_serial_capture_writes(tmp_path: Path) -> None:
    models = {f"m{seed}": net(seed) for seed in range(4)}
    run(models, tmp_path / "serial", reduce=PCA_RULES)
    with ThreadPoolExecutor(3) as executor:
        run(models, tmp_path / "threads", reduce=PCA_RULES, executor=executor)
    assert files_of(tmp_path / "threads") == files_of(tmp_path / "serial")


@pytest.mark.slow
def test_processes_write_what_a_serial_capture_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = nn.GRU(2, 6, num_layers=2, batch_first=True)
    models = {f"m{i}": partial(nn.Sequential, weights) for i in range(3)}
    rules = {f"0.{pattern}": rule for pattern, rule in PCA_RULES.items()}
    run(models, tmp_path / "serial", reduce=rules)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        run(models, tmp_path / "processes", reduce=rules, executor=executor)
    assert files_of(tmp_path / "processes") == files_of(tmp_path / "serial")


def otherwise(*arguments: Any, **options: Any) -> Iterator[Any]:
    """A fit that comes out differently, as on another machine it might."""
    for name, parts in fitting.fit_components(*arguments, **options):
        yield name, parts | {"components": -parts["components"]}


@pytest.mark.parametrize(
    ("name", "damage"),
    [("components", "data"), ("mean", "record"), ("variances", "all"), ("components", "all")],
)
@pytest.mark.parametrize("executor", [None, inline()], ids=["here", "elsewhere"])
def test_states_never_outlive_what_they_were_projected_by(
    tmp_path: Path,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: str,
    executor: Executor | None,
) -> None:
    monkeypatch.setattr(ledgers_module, "SPAN_BYTES", 1)
    run({"a": net(), "b": net(1)}, tmp_path, reduce=PCA_RULES)
    before = open_population(tmp_path)
    folder = tmp_path / "models" / "a" / "reductions" / "gru.layer0" / name
    (data,) = (path for path in folder.iterdir() if path.name.startswith("c.0"))
    if damage == "data":
        content = bytearray(data.read_bytes())
        content[3] ^= 4
        data.write_bytes(content)
        with pytest.raises(CorruptBlock, match=f"array '{name}' of the reduction"):
            open_population(tmp_path).projection("a", "gru.layer0")
    if damage != "data":
        (folder / "commits" / "0.json").unlink()
    if damage == "all":
        data.unlink()
    report = verify_population(tmp_path)
    assert {problem.array for problem in report.problems} == {
        f"models/a/reductions/gru.layer0/{name}"
    }
    monkeypatch.setattr("dynamo_plugin.recording.model_run.fit_components", otherwise)
    repair = {"repair": True} if damage != "all" else {"resume": True}
    again = run({"a": net(), "b": net(1)}, tmp_path, reduce=PCA_RULES, executor=executor, **repair)
    assert verify_population(tmp_path).ok
    whole = run({"a": net()}).states("a", "gru.layer0")[steps(2)]
    expected = again.projection("a", "gru.layer0").project(whole)
    np.testing.assert_allclose(again.states("a", "gru.layer0"), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(again.states("b", "gru.layer0"), before.states("b", "gru.layer0"))


def test_other_reductions_are_not_gone_on_with(tmp_path: Path) -> None:
    run({"a": net()}, tmp_path, reduce=PCA_RULES)
    for other in (
        None,
        dict(reversed(PCA_RULES.items())),
        PCA_RULES | {"*layer1": Reduction(project=2, projection="pca", seed=1)},
    ):
        with pytest.raises(InvalidInput, match=r"configuration with which .*reduce"):
            run({"a": net()}, tmp_path, reduce=other, resume=True)
    assert run({"a": net()}, tmp_path, reduce=PCA_RULES, resume=True).ids == ("a",)


def test_too_few_rows_and_states_that_are_not_finite() -> None:
    rule = {"*": Reduction(project=5, projection="pca", pca_samples=1)}
    with pytest.raises(InvalidInput, match=r"model 'a': site 'gru.layer0': 5 principal components"):
        run({"a": net()}, inputs=torch.randn(4, 2, 2), reduce=rule)
    broken = net()
    with torch.no_grad():
        broken.weight_ih_l0[0, 0] = torch.inf  # type: ignore[operator]
    inputs = [torch.tensor([[0.5, 1.0]] * 3), torch.tensor([[0.5, 1.0], [-1.0, torch.pi]])]
    rule = {"*layer0": Reduction(project=1, projection="pca"), "*": Reduction()}
    with torch.no_grad():
        broken.weight_hh_l0[:] = torch.nan  # type: ignore[operator]
    with pytest.raises(NonFiniteStates, match=r"'gru.layer0' is not finite at sample 'sample-0'"):
        run({"a": broken}, inputs=inputs, reduce=rule)
    with pytest.raises(UnknownName, match=r"model 'a': reduce: 'gru.layer7' matches no site"):
        run({"a": net()}, reduce={"gru.layer7": {}})


class Padded(Adapter):
    """Each step's features are an image; what lies past the end of a sample is not a number."""

    def supports(self, model: object) -> bool:
        return True

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        return TrajectorySpec(
            "padded",
            (SiteSpec("map", (3, 2, 4), "float32"), SiteSpec("last", (24,), "float64", "sample")),
            OutputSpec("sum", (24,), "float32", "sample"),
            {"ragged_batches": True},
        )

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        real = torch.arange(inputs.values.shape[1]) < inputs.lengths[:, None]
        values = inputs.values.where(real[..., None], torch.nan)
        last = inputs.values[torch.arange(len(real)), inputs.lengths - 1]
        states = {"map": values.unflatten(-1, (3, 2, 4)), "last": last.double()}
        return Trajectory(states, {"sum": inputs.values.sum(1)}, inputs.lengths)


def test_padding_counts_for_nothing() -> None:
    inputs = [torch.randn(length, 24) for length in LENGTHS]
    rules = {
        "map": Reduction(every=2, pool="mean", pool_size=2, project=3, projection="pca"),
        "last": Reduction(project=4, projection="pca", dtype="float16"),
    }
    kept = run({"a": nn.Identity()}, inputs=inputs, adapter=Padded(), reduce=rules)
    rows = torch.cat(inputs).numpy()[steps(2)].astype(np.float64)
    pooled = rows.reshape(-1, 3, 2, 2, 2).mean(4).reshape(len(rows), 12)
    last = np.stack([x[-1].numpy() for x in inputs]).astype(np.float64)
    for site, expected in (("map", pooled), ("last", last)):
        found, stored = kept.projection("a", site), kept.states("a", site)
        pca = PCA(n_components=len(found.matrix), svd_solver="full").fit(expected)
        scores = pca.transform(expected) * np.sign((found.matrix * pca.components_).sum(1))
        tolerance = 1e-5 if site == "map" else 5e-3
        np.testing.assert_allclose(stored, scores, rtol=tolerance, atol=tolerance)
        shape = (3, 2, 2) if site == "map" else (24,)
        assert found.restore(stored).shape == (len(expected), *shape)
    assert kept.spec("a").sites[1].source_dtype == "float64"


def test_sites_that_do_not_fit_together_are_fitted_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"*": Reduction(project=2, projection="pca")}
    run({"a": net()}, tmp_path / "together", reduce=rules)
    monkeypatch.setattr(fitting, "FIT_BYTES", 1)
    run({"a": net()}, tmp_path / "apart", reduce=rules)
    assert files_of(tmp_path / "apart") == files_of(tmp_path / "together")


def test_reduced_states_can_be_fitted() -> None:
    population = run(
        {f"m{seed}": net(seed, 5 + seed % 2) for seed in range(4)},
        reduce={"*": Reduction(every=2, project=3, projection="pca", dtype="float16")},
        output_groups={f"m{seed}": f"{seed % 2}" for seed in range(4)},
    )
    embedding = fit(population, steps=20, embedding_dim=2, progress=False)
    assert np.isfinite(embedding.history["loss"]).all()
    assert embedding.state_maps.units == {"hidden": (6, 6, 6, 6)}


@pytest.mark.parametrize("samples", [4, [7, 0, 3]])
def test_only_some_samples_are_shown(samples: Any, tmp_path: Path) -> None:
    whole = run({"a": net()}, targets=np.arange(len(LENGTHS)))
    part = run({"a": net()}, tmp_path, targets=np.arange(len(LENGTHS)), samples=samples)
    numbers = draw_samples(4, 10, 0).tolist() if samples == 4 else samples
    assert part.sample_ids == tuple(f"sample-{number}" for number in numbers)
    assert part.inputs.targets is not None
    assert part.inputs.targets.tolist() == numbers
    layer = "gru.layer1"
    np.testing.assert_allclose(
        part.states("a", layer), whole.states("a", layer, samples=numbers), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        part.outputs("a"), whole.outputs("a", samples=numbers), rtol=1e-5, atol=1e-6
    )
    said = part.config["samples"]
    assert isinstance(said, dict)
    assert (said["of"], said["count"]) == (10, len(numbers))
    again = {"targets": np.arange(len(LENGTHS)), "resume": True}
    assert run({"a": net()}, tmp_path, samples=samples, **again).ids == ("a",)
    for other in ({}, {"samples": 5}, {"samples": 4, "sample_seed": 1}, {"samples": [0, 7, 3]}):
        with pytest.raises(InvalidInput, match=r"configuration with which .*samples"):
            run({"a": net()}, tmp_path, **(again | other))
