"""Populations that earlier releases wrote stay readable: one tiny store per format version.

Their values are ramps, so that what they must hold is written down here and not taken from them.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamo_plugin.errors import UnsupportedFormat
from dynamo_plugin.store import PopulationWriter, open_population, verify_population

GOLDEN = Path(__file__).parent / "golden"


def ramp(*shape: int, dtype: str = "float32", start: int = 0) -> NDArray[Any]:
    return (np.arange(np.prod(shape)).reshape(shape) / 8 + start).astype(dtype)


def unpacked(version: int, folder: Path) -> Path:
    with zipfile.ZipFile(GOLDEN / f"v{version}.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_every_version_is_read(version: int, tmp_path: Path) -> None:
    store = unpacked(version, tmp_path / "population.zarr")
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    population = open_population(store)
    assert population.ids == ("gru", "RNN/2")
    assert population.config["note"] == "golden"
    assert population.metadata["index"].tolist() == [0, 1]
    assert population.sample_ids == ("first", "zweites ä", "third")
    inputs = population.inputs
    np.testing.assert_array_equal(inputs.values, np.arange(9) % 5)
    np.testing.assert_array_equal(inputs.offsets, [0, 3, 4, 9])
    np.testing.assert_array_equal(inputs.targets, [0, 1, 1])
    for index, (model, units) in enumerate({"gru": 3, "RNN/2": 2}.items()):
        assert population.sites(model) == ("rnn", "Summary")
        states = ramp(9, units, start=index)
        np.testing.assert_array_equal(population.states(model, "rnn"), states, strict=True)
        chosen = population.states(model, "rnn", samples=[2, 0])
        np.testing.assert_array_equal(chosen, np.concatenate([states[4:], states[:3]]))
        summary = ramp(3, units, 2, dtype="float16")
        np.testing.assert_array_equal(population.states(model, "Summary"), summary, strict=True)
        outputs = ramp(3, 2, dtype="float64", start=-index)
        np.testing.assert_array_equal(population.outputs(model), outputs, strict=True)
    assert verify_population(store).ok
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_an_old_version_is_not_continued(tmp_path: Path) -> None:
    store = unpacked(1, tmp_path)
    inputs = open_population(store).inputs
    with pytest.raises(UnsupportedFormat, match=r"version 1, which can be read but not continued"):
        PopulationWriter.resume(store, inputs, config={"note": "golden"})
