"""Projections in the store: what is written, read back, and noticed when it is damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from dynamo_plugin.errors import IncompleteCapture, InvalidInput, StoreError, UnknownName
from dynamo_plugin.store import (
    PopulationInputs,
    PopulationWriter,
    open_population,
    verify_population,
)
from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec

PCA: dict[str, Any] = {
    "source_shape": [2, 4],
    "pool": None,
    "pooled_shape": [2, 4],
    "projection": "pca",
    "seed": 0,
    "pca_samples": 3,
}
SPEC = TrajectorySpec(
    "none",
    (
        SiteSpec("Layer/1", (3,), "float32", every=2, reduction=PCA),
        SiteSpec("plain", (2,), "float32"),
    ),
    OutputSpec("o", (1,), "float32", "sample"),
)
INPUTS = PopulationInputs(
    values=np.arange(9),
    offsets=np.array([0, 4, 5, 9]),
    sample_ids=("a", "b", "c"),
    spec=InputSpec("ids", 9),
)


@pytest.fixture
def parts() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "mean": rng.normal(size=8),
        "components": np.linalg.qr(rng.normal(size=(8, 3)))[0].T,
        "variances": np.array([3.0, 2.0, 1.0, 0.5]),
    }


@pytest.fixture
def files(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)
    stored: dict[str, Any] = {}
    with PopulationWriter.create(MemoryStore(stored), INPUTS, config={}, models=["m"]) as writer:
        model = writer.begin("m", SPEC, metadata={}, model_hash="h", index=0)
        model.append_projection("Layer/1", **parts)
        model.append_states("Layer/1", np.arange(15, dtype=np.float32).reshape(5, 3))
        model.append_states("plain", np.ones((9, 2), np.float32))
        model.append_outputs(np.ones((3, 1), np.float32))
        model.finish()
    return {key: buffer.to_bytes() for key, buffer in stored.items()}


def as_store(files: dict[str, bytes]) -> MemoryStore:
    return MemoryStore({key: cpu.Buffer.from_bytes(data) for key, data in files.items()})


def test_a_projection_comes_back(files: dict[str, bytes], parts: dict[str, Any]) -> None:
    population = open_population(as_store(files))
    found = population.projection("m", "Layer/1")
    assert (found.kind, found.shape, found.residual_variance) == ("pca", (2, 4), 0.5)
    np.testing.assert_array_equal(found.mean, parts["mean"])
    np.testing.assert_array_equal(found.matrix, parts["components"])
    assert found.variances is not None
    np.testing.assert_array_equal(found.variances, [3.0, 2.0, 1.0])
    states = population.states("m", "Layer/1", samples=[2, 0])
    np.testing.assert_array_equal(states[:, 0], [9, 12, 0, 3])
    restored = found.restore(states)
    assert restored.shape == (4, 2, 4)
    np.testing.assert_allclose(found.project(restored), states, atol=1e-12)
    with pytest.raises(UnknownName, match="no model 'n'"):
        population.projection("n", "Layer/1")
    assert verify_population(as_store(files)).ok


def test_other_readers_see_plain_arrays(files: dict[str, bytes], parts: dict[str, Any]) -> None:
    group: Any = zarr.open_group(as_store(files), mode="r")
    (folder,) = group["models/m/reductions"].group_keys()
    assert folder.startswith("layer_1~")
    found = group[f"models/m/reductions/{folder}"]
    for name, values in parts.items():
        np.testing.assert_array_equal(found[name][:], values)
        assert found[name].attrs["dynamo"] == {"site": "Layer/1"}
    assert found["components"].metadata.dimension_names == ("component", "unit")


def test_every_damage_is_noticed(files: dict[str, bytes], parts: dict[str, Any]) -> None:
    keys = [key for key in files if "/reductions/" in key]
    assert sum("/c." in key for key in keys) == 2 + 3 + 1
    for key in keys:
        data = files[key]
        for damaged in (None, b"", data[:-1], data[:5] + bytes([data[5] ^ 1]) + data[6:]):
            changed = {k: v for k, v in files.items() if k != key}
            if damaged is not None:
                changed[key] = damaged
            assert not verify_population(as_store(changed)).ok, key
            try:
                found = open_population(as_store(changed)).projection("m", "Layer/1")
            except StoreError:
                continue
            # only other readers need the documents of groups
            assert key.endswith(("reductions/zarr.json", "/zarr.json"))
            np.testing.assert_array_equal(found.matrix, parts["components"])


def test_a_model_is_not_complete_without_it(parts: dict[str, Any]) -> None:
    store = MemoryStore()
    with PopulationWriter.create(store, INPUTS, config={}) as writer:
        model = writer.begin("m", SPEC, metadata={}, model_hash="h", index=0)
        with pytest.raises(UnknownName, match="No projection is stored for a site 'plain'"):
            model.append_projection("plain", **parts)
        with pytest.raises(InvalidInput, match=r"Expected rows of shape \(rows, 8\)"):
            model.append_projection("Layer/1", **(parts | {"components": np.ones((3, 7))}))
        model.append_states("Layer/1", np.ones((5, 3), np.float32))
        model.append_states("plain", np.ones((9, 2), np.float32))
        model.append_outputs(np.ones((3, 1), np.float32))
        with pytest.raises(IncompleteCapture, match="array 'components' of the reduction of site"):
            model.finish()


@pytest.mark.parametrize(
    "change",
    [
        {"projection": "fourier"},
        {"seed": None},
        {"seed": -1},
        {"pooled_shape": None},
        {"pooled_shape": [2, 0]},
        {"pooled_shape": [2]},
        {"pooled_shape": 8},
    ],
)
def test_what_a_spec_says_must_make_sense(change: dict[str, Any]) -> None:
    site = replace(SPEC.sites[0], reduction=PCA | change)
    writer = PopulationWriter.create(MemoryStore(), INPUTS, config={})
    with writer, pytest.raises(InvalidInput, match="Expected a projection"):
        writer.begin("m", replace(SPEC, sites=(site,)), metadata={}, model_hash="h", index=0)
