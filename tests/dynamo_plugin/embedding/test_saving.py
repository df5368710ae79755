"""Embeddings on disk: to the bit, whole or not at all, and never by running code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from dynamo_plugin.embedding import ModelEmbedding, load_embedding
from dynamo_plugin.errors import (
    CorruptBlock,
    StoreExists,
    StoreNotFound,
    UnknownName,
    UnsupportedFormat,
)
from dynamo_plugin.store import Population


@pytest.fixture
def folder(embedding: ModelEmbedding, tmp_path: Path) -> Path:
    return embedding.save(tmp_path / "embedding")


def test_round_trip_to_the_bit(embedding: ModelEmbedding, folder: Path) -> None:
    loaded = load_embedding(folder)
    assert loaded.ids == embedding.ids
    assert loaded.output_groups == embedding.output_groups
    assert loaded.config == embedding.config
    assert loaded.provenance == embedding.provenance
    assert torch.equal(loaded.thetas, embedding.thetas)
    assert torch.equal(loaded.held_out_samples, embedding.held_out_samples)
    pd.testing.assert_frame_equal(loaded.metadata, embedding.metadata)
    pd.testing.assert_frame_equal(loaded.history, embedding.history)
    inputs = torch.randint(0, 9, (3, 5))
    for model in embedding.ids:
        assert torch.equal(loaded.render(model)(inputs), embedding.render(model)(inputs))
        assert torch.equal(
            loaded.render(model).base_states(inputs), embedding.render(model).base_states(inputs)
        )
    assert loaded.population.ids == embedding.population.ids


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_versions_are_read(version: int) -> None:
    """Written before stages (1), before resumed fits (2) and before leading dimensions (3);
    `expected.json` holds what the code of then computed."""
    golden = Path(__file__).parent / "golden" / f"version{version}"
    expected = json.loads((golden / "expected.json").read_text())
    inputs = torch.tensor(expected["inputs"])
    loaded = load_embedding(golden)
    assert loaded.config.state_map == "affine"
    assert (loaded.common_maps is None) == (version == 1)
    assert loaded.stopped is None
    assert loaded.config.leading_dim == loaded.thetas.shape[1]
    assert loaded.config.family_options["readout"] == "shared"
    for model, values in expected["models"].items():
        network = loaded.render(model)
        torch.testing.assert_close(network(inputs), torch.tensor(values["outputs"]))
        states = network.base_states(inputs)
        torch.testing.assert_close(states, torch.tensor(values["base_states"]))


def test_holds_no_pickle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "embedding.json",
        "tensors.safetensors",
    ]


def test_the_population_is_found_when_both_have_moved(
    embedding: ModelEmbedding, population: Population, tmp_path: Path
) -> None:
    source = Path(population.location.removeprefix("file://"))
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(source, before / "population.zarr")
    from dynamo_plugin.store import open_population

    moved = embedding.with_population(open_population(str(before / "population.zarr")))
    moved.save(before / "embedding")
    before.rename(after)
    assert str(after) in load_embedding(after / "embedding").population.location


def test_a_missing_population_says_how_to_mend_it(
    embedding: ModelEmbedding, folder: Path, population: Population
) -> None:
    document = json.loads((folder / "embedding.json").read_text())
    document["provenance"]["population"] = str(folder.parent / "gone.zarr")
    document["population_relative"] = None
    (folder / "embedding.json").write_text(json.dumps(document))
    with pytest.raises(StoreNotFound, match=r"load_embedding\(path, population=...\)"):
        _ = load_embedding(folder).population
    assert load_embedding(folder, population=population).population is population


def test_nothing_is_overwritten_unasked(embedding: ModelEmbedding, folder: Path) -> None:
    before = (folder / "tensors.safetensors").read_bytes()
    with pytest.raises(StoreExists, match="There is an embedding at"):
        embedding.save(folder)
    assert (folder / "tensors.safetensors").read_bytes() == before
    embedding.save(folder, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["embedding"]


def test_what_is_no_embedding_is_never_touched(embedding: ModelEmbedding, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreExists, match="is no embedding"):
        embedding.save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_write_leaves_nothing_and_keeps_the_old(
    embedding: ModelEmbedding, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    before = (folder / "embedding.json").read_bytes()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        embedding.save(folder, overwrite=True)
    assert (folder / "embedding.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["embedding"]


def test_a_flipped_byte_is_found(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptBlock, match="checksum differs"):
        load_embedding(folder)


@pytest.mark.parametrize("name", ["embedding.json", "tensors.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StoreNotFound, match=f"{name} is missing"):
        load_embedding(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99 .* reads versions up to 4"),
        ({"format": "something"}, "does not describe a dynamo-embedding"),
        ({"spec": {}}, "KeyError"),
        ({"version": 2, "config": {"family": "transformer"}}, "something else with the same"),
        ({"units": {"hidden": [1, 1, 1]}}, "size mismatch"),
    ],
)
def test_other_documents_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "embedding.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnsupportedFormat, match=message):
        load_embedding(folder)


def test_a_truncated_document_is_refused(folder: Path) -> None:
    path = folder / "embedding.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UnsupportedFormat, match="is not JSON"):
        load_embedding(folder)


def test_an_unknown_family_suggests(folder: Path) -> None:
    path = folder / "embedding.json"
    document = json.loads(path.read_text())
    document["config"]["family"] = "grux"
    path.write_text(json.dumps(document))
    with pytest.raises(UnknownName, match="Did you mean 'gru'"):
        load_embedding(folder)
