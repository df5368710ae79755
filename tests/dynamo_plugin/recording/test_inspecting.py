"""`inspect_models` against what a capture then writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording import Reduction, capture, inspect_models

LENGTHS = [3, 1, 6, 6, 2, 4, 1, 5, 6, 3]
RULES = {
    "*layer0": Reduction(every=2, project=3, projection="pca"),
    "*layer1": Reduction(project=2, dtype="float16"),
}


def net(units: int = 4, features: int = 2) -> nn.Module:
    return nn.GRU(features, units, num_layers=2, batch_first=True)


def sequences() -> list[torch.Tensor]:
    return [torch.randn(length, 2) for length in LENGTHS]


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("reduce", [None, RULES])
@pytest.mark.parametrize("block_bytes", [60, 2**20])
def test_the_weight_is_what_a_capture_then_weighs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ragged: bool,
    reduce: Any,
    block_bytes: int,
) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("dynamo_plugin.store._blocking.TEXT_BLOCK_ROWS", 3)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    models = {"a": net(4), "b": net(5)}
    inputs: Any = sequences() if ragged else torch.randn(10, 4, 2)
    options: dict[str, Any] = {
        "reduce": reduce,
        "samples": 8,
        "batch_size": 3,
        "targets": np.arange(10),
        "sample_ids": [f"{'é' * index}-{index}" for index in range(10)],
    }
    store = tmp_path / "population.zarr"
    report = inspect_models(models, inputs, store, **options)
    assert not store.exists()
    population = capture(models, inputs, store, progress=False, **options)
    files = [path for path in store.rglob("*") if path.is_file() and path.parent.name != "leases"]
    blocks = [path for path in files if path.name.startswith("c.")]
    assert report.weight.bytes == sum(path.stat().st_size for path in blocks)
    assert report.weight.files == len(files)
    assert report.weight.on_disk >= sum(path.stat().st_size for path in files)
    assert (report.samples, report.steps) == (8, population.offsets[-1])
    table = report.to_dataframe()
    for model in models:
        spec, rows = population.spec(model), table[table["model"] == model]
        assert rows["name"].tolist() == [*population.sites(model), spec.output.group]
        assert rows["adapter"].unique().tolist() == [spec.adapter]
        for place, site in enumerate(spec.sites):
            row = rows.iloc[place]
            assert (row["shape"], row["dtype"], row["axis"]) == (site.shape, site.dtype, site.axis)
            assert row["every"] == site.every
            assert row["source_shape"] == ((4,) if model == "a" else (5,))
            stored = population.states(model, site.name)
            assert row["bytes_per_sample"] == stored.nbytes / 8


def test_models_are_left_as_they_were_and_nothing_is_kept() -> None:
    model = net().train()
    report = inspect_models({"a": model}, sequences())
    assert report.ok
    assert report.fits is None
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def made(units: int, calls: list[int]) -> nn.Module:
    calls.append(units)
    return net(units)


def test_of_many_models_one_of_each_kind_is_made() -> None:
    calls: list[int] = []
    models: dict[str, Any] = {f"m{i}": partial(made, 3, calls) for i in range(12)}
    models |= {f"n{i}": net(6) for i in range(3)} | {f"o{i}": lambda: net(7) for i in range(4)}
    report = inspect_models(models, sequences())
    looked_at = [(model.id, model.models) for model in report.models]
    assert looked_at == [("m0", 12), ("n0", 3), ("o0", 4)]
    assert calls == [3]
    assert report.model_count == 19
    whole = inspect_models(models, sequences(), every_model=True)
    assert len(whole.models) == 19
    assert whole.weight == report.weight
    few = inspect_models({f"m{i}": partial(made, 3, calls) for i in range(8)}, sequences())
    assert [model.models for model in few.models] == [1] * 8


def test_a_model_that_cannot_be_recorded_is_a_line() -> None:
    def broken() -> nn.Module:
        raise MemoryError("too large")

    models: dict[str, Any] = {
        "good": net(),
        "dim": net(features=3),
        "bad": broken,
        "odd": nn.Linear(2, 2),
    }
    report = inspect_models(models, sequences(), reduce={"gru.layer1": {"project": 4}})
    assert not report.ok
    told = {model.id: model.error for model in report.models}
    assert told["good"] is None
    assert told["bad"] == "MemoryError: too large"
    assert "RuntimeError" in str(told["dim"])
    assert "no adapter takes Linear" in str(told["odd"])
    good = next(model for model in report.models if model.id == "good")
    assert report.weight == report.inputs + good.weight
    assert report.to_dataframe()["error"].notna().sum() == 3
    summary = report.summary()
    assert summary["ok"] is False
    unknown = inspect_models({"a": net()}, sequences(), reduce={"layer9": {}}).models[0]
    assert unknown.adapter == "torch_recurrent"
    assert unknown.error is not None
    assert unknown.error.startswith("reduce: 'layer9' matches no site")


def test_the_time_is_that_of_a_batch_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Slow(nn.GRU):
        def forward(self, *arguments: Any) -> Any:
            now[0] += 1
            return super().forward(*arguments)

    def seconds(samples: int, models: str = "a", **options: Any) -> float:
        built = {name: Slow(2, 3, batch_first=True) for name in models}
        inputs = torch.zeros(samples, 4, 2)
        return inspect_models(built, inputs, batch_size=10, **options).seconds

    described = seconds(10) - 1
    assert described >= 1
    assert seconds(1000) == described + 100
    assert seconds(1000, "abc") == 3 * (described + 100)
    assert seconds(1000, "abc", workers=2) == 1.5 * (described + 100)
    assert seconds(1000, "abc", workers=9) == described + 100
    fitted = Reduction(project=2, projection="pca", pca_samples=500)
    assert seconds(1000, reduce={"*": fitted}) == pytest.approx(described + 150)


def test_room_is_that_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "not" / "yet" / "there.zarr"
    report = inspect_models({"a": net()}, sequences(), target)
    assert report.fits
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 10}))
    assert inspect_models({"a": net()}, sequences(), target).fits is False
    elsewhere = inspect_models({"a": net()}, sequences(), "s3://bucket/population.zarr")
    assert (elsewhere.fits, elsewhere.location) == (None, "s3://bucket/population.zarr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"workers": 0}, "workers must be a positive integer"),
        ({"threads": 0}, "threads must be a positive integer"),
        ({"reduce": {"*": {"every": 0}}}, "every must be a positive integer"),
        ({"samples": 11}, "from 1 to 10"),
        ({"output_groups": {"b": "x"}}, "Known: a"),
        ({"models": {}}, "models are empty"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        inspect_models(**({"models": {"a": net()}, "inputs": sequences()} | options))
