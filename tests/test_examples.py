"""The examples run: on small data made here, and on the real data where it is."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import dynamo_plugin as dp

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = os.environ.get("DYNAMO_DATA")


def _run(script: str, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run an example with a folder for its results, and return the rows it wrote."""
    command = [
        *(sys.executable, str(EXAMPLES / script), "--output", str(tmp_path / "results")),
        *("--json", str(tmp_path / "rows.json"), *arguments),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads((tmp_path / "rows.json").read_text())
    return rows


def _imdb(tmp_path: Path, data: Path, *arguments: str) -> list[dict[str, Any]]:
    return _run("imdb_sentiment.py", tmp_path, "--data", str(data), *arguments)


def _check_kept(folder: Path, models: int) -> dp.ModelEmbedding:
    """Return the embedding that an example left, beside a report."""
    embedding = dp.load_embedding(folder / "embedding")
    assert len(embedding.ids) == models
    assert (folder / "report.html").stat().st_size > 1e6
    return embedding


def test_imdb_sentiment_on_reviews_made_here(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs the `data` extra")
    rng = np.random.default_rng(0)
    words = {0: ["awful", "boring", "bad"], 1: ["great", "moving", "good"]}
    labels = rng.integers(0, 2, 400).astype("int8")
    texts = [
        " ".join(rng.choice([*words[label], "the", "film", "was"], rng.integers(3, 12)))
        for label in labels
    ]
    split = ["train"] * 200 + ["test"] * 200
    reviews = pd.DataFrame({"split": split, "label": labels, "text": texts})
    # The example takes 2,000 test reviews.
    reviews = pd.concat([reviews, *[reviews[200:]] * 9], ignore_index=True)
    reviews.to_parquet(tmp_path / "reviews.parquet")
    (row,) = _imdb(
        tmp_path,
        tmp_path / "reviews.parquet",
        *("--networks", "2", "--units", "8", "--token-dim", "4", "--vocabulary", "12"),
        *("--network-steps", "60", "--capture", "60", "--steps", "60", "--tokens", "8"),
    )
    assert row["accuracy_many"] > 0.8
    assert row["hidden_r2"] > 0.5
    population = dp.open_population(tmp_path / "results" / "seed-0" / "population.zarr")
    assert len(population.ids) == 4
    assert dp.load_embedding(tmp_path / "results" / "seed-0" / "embedding").ids == population.ids
    assert (tmp_path / "results" / "seed-0" / "report.html").stat().st_size > 1e6


def test_imdb_sentiment_reads_what_datasets_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the `data` extra")
    for split in ("train", "test"):
        frame = pd.DataFrame({"text": [f"{split} {i}" for i in range(3)], "label": [0, 1, 0]})
        frame.to_parquet(tmp_path / f"{split}.parquet")

    def from_local_files(name: str) -> Any:
        assert name == "imdb"
        files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
        return original("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", from_local_files)
    example = runpy.run_path(str(EXAMPLES / "imdb_sentiment.py"))
    reviews = example["load_reviews"](None)
    assert list(reviews["split"]) == ["train"] * 3 + ["test"] * 3
    assert list(reviews["text"][:2]) == ["train 0", "train 1"]
    assert list(reviews["label"]) == [0, 1, 0, 0, 1, 0]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.skipif(DATA is None, reason="DYNAMO_DATA does not say where the real data is")
def test_imdb_sentiment_on_the_real_reviews(tmp_path: Path) -> None:
    rows = _imdb(tmp_path, Path(str(DATA)) / "imdb.parquet", "--seeds", "0", "1", "2")
    for row in rows:
        assert row["hidden_r2"] > 0.70
        assert row["output_agreement"] > 0.84
        assert row["silhouette"] > 0.12
        assert row["p"] < 0.05


def _patterns(tmp_path: Path) -> Path:
    """Write images of stripes, whose direction and colour say the label."""
    image = pytest.importorskip("PIL.Image", reason="the `data` extra")
    pytest.importorskip("pyarrow", reason="the `data` extra")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(500):
        label = int(rng.integers(4))
        stripes = np.sin(np.arange(32) + rng.uniform(0, 6))[:, None] * np.ones(32)
        stripes = stripes.T if label % 2 else stripes
        colour = np.array([1.0, 0.3, 0.3] if label // 2 else [0.3, 0.3, 1.0])
        pixels = (stripes[..., None] * colour + 1) / 2 + rng.normal(0, 0.05, (32, 32, 3))
        code = io.BytesIO()
        image.fromarray((pixels.clip(0, 1) * 255).astype("uint8")).save(code, "JPEG")
        split = "train" if number < 400 else "test"
        rows.append({"split": split, "label": label, "jpeg": code.getvalue()})
    pd.DataFrame(rows).to_parquet(tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["augmentation", "size"])
def test_cifar_resnets_on_images_made_here(tmp_path: Path, condition: str) -> None:
    rows = _run(
        "cifar_resnets.py",
        tmp_path,
        *("--data", str(_patterns(tmp_path)), "--condition", condition, "--weak", "shift"),
        *("--networks", "2", "--width", "4", "--network-steps", "20", "--capture", "60"),
        *("--hidden-losses", "l1", "--output-weights", "0", "1", "--steps", "50"),
        *("--meta-depth", "14", "--meta-width", "8", "--set", "embedding_dim=2"),
    )
    assert [(row["loss"], row["lambda"]) for row in rows] == [("l1", 0), ("l1", 1)]
    for row in rows:
        assert row["r2"] > 0.3
        assert {"theta", "pullback", "functional", "cka", "procrustes"} <= set(row)
        embedding = _check_kept(
            tmp_path / "results" / f"{condition}-0" / f"l1-{row['lambda']:g}", 4
        )
        assert embedding.config.output_weight == row["lambda"]
        assert embedding.config.embedding_dim == 2


@pytest.mark.slow
def test_transformer_tasks(tmp_path: Path) -> None:
    rows = _run(
        "transformer_tasks.py",
        tmp_path,
        *("--networks", "2", "--units", "8", "--vocabulary", "4", "--tokens", "6"),
        *("--network-steps", "60", "--capture", "80", "--steps", "60", "--seeds", "3"),
        *("--meta-units", "16", "--set", "embedding_dim=2"),
    )
    variants = [(row["condition"], row["theta as"]) for row in rows]
    assert variants == [(c, t) for c in ("tasks", "null") for t in ("bias", "film")]
    for row in rows:
        assert row["r2"] > 0.3
        assert row["seed"] == 3
        folder = tmp_path / "results" / f"{row['condition']}-3" / row["theta as"]
        embedding = _check_kept(folder, 4)
        assert embedding.config.family_options["conditioning"] == row["theta as"]


def test_the_tasks_of_transformers_are_what_they_are_called() -> None:
    example = _namespace("transformer_tasks.py")
    tokens = torch.tensor([[2, 0, 0, 2, 2, 1]])
    assert example["copied"](tokens, 3).tolist() == [[2, 2, 2, 2, 0, 0]]
    assert example["most_frequent"](tokens, 3).tolist() == [[2, 0, 0, 0, 2, 2]]


def test_two_output_groups_on_texts_made_here(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the `data` extra")
    rng = np.random.default_rng(0)
    for name, telling in (("imdb", ["bad", "good"]), ("ag_news", ["war", "goal", "bank", "atom"])):
        labels = rng.integers(0, len(telling), 400)
        texts = [
            " ".join(rng.choice([telling[label], "the", "of"], rng.integers(3, 12)))
            for label in labels
        ]
        frame = pd.DataFrame({"label": labels, "text": texts})
        frame.assign(split=["train"] * 300 + ["test"] * 100).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    rows = _run(
        "two_output_groups.py",
        tmp_path,
        *("--data", str(tmp_path), "--networks", "2", "--units", "16", "--token-dim", "4"),
        *("--vocabulary", "12", "--network-steps", "80", "--capture", "100", "--steps", "80"),
        *("--tokens", "8"),
    )
    assert [row["variant"] for row in rows] == ["paper", "default"]
    for row in rows:
        assert row["accuracy reviews"] > 0.8
        assert row["r2"] > 0.4
        answers = {(a["mean theta of"], a["asked about"]): a["accuracy"] for a in row["answers"]}
        assert answers["reviews", "reviews"] > 0.7
        assert answers["news", "news"] > 0.5
        embedding = _check_kept(tmp_path / "results" / "seed-0" / row["variant"], 4)
        theta = embedding.thetas[0]
        shapes = {
            group: embedding.render(theta, output_group=group)(torch.tensor([[1]])).shape
            for group in ("reviews", "news")
        }
        assert shapes == {"reviews": (1, 2), "news": (1, 4)}
    assert embedding.config.alignment_weight == 1


def test_strong_augmentation_keeps_images_images() -> None:
    example = _namespace("_augmentation.py")
    images = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, augment in example["AUGMENTATIONS"].items():
        varied = augment(images.clone(), torch.Generator().manual_seed(1))
        assert varied.shape == images.shape, name
        assert 0 <= float(varied.min()) <= float(varied.max()) <= 1, name
    shifted = example["shift_and_flip"](images, torch.Generator().manual_seed(1))
    for number, image in enumerate(images[:5]):  # each is among all that shifts and flips can give
        padded = F.pad(image, (4, 4, 4, 4))
        found = [
            torch.equal(shifted[number], crop if not flip else crop.flip(2))
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            for crop in [padded[:, top : top + 32, left : left + 32]]
        ]
        assert any(found)


def test_operations_that_do_nothing_at_strength_zero() -> None:
    example = _namespace("_augmentation.py")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for number, operation in enumerate(example["OPERATIONS"][:-1]):  # the last has no strength
        same = operation(images, torch.zeros(4))
        torch.testing.assert_close(same, images, atol=1 / 255, rtol=0, msg=str(number))
        if number:
            assert not torch.allclose(operation(images, torch.ones(4)), images, atol=0.02), number


def _namespace(script: str) -> dict[str, Any]:
    """Return what an example defines."""
    folder = str(EXAMPLES)
    sys.path.insert(0, folder)  # examples import their neighbours, as scripts do
    try:
        return runpy.run_path(str(EXAMPLES / script))
    finally:
        sys.path.remove(folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_transformer_tasks_are_told_apart(tmp_path: Path) -> None:
    tasks, null = _run("transformer_tasks.py", tmp_path, "--conditionings", "film")
    assert tasks["accuracy"] > 0.95
    assert tasks["r2"] > 0.85
    assert tasks["agree"] > 0.95
    assert tasks["k-means"] == 1
    assert tasks["theta"] > 0.5
    assert null["p"] > 0.05


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.skipif(DATA is None, reason="DYNAMO_DATA does not say where the real data is")
def test_cifar_resnets_on_the_real_images(tmp_path: Path) -> None:
    data = Path(str(DATA)) / "cifar10_subset.parquet"
    with_outputs, without = _run(
        "cifar_resnets.py", tmp_path, "--data", str(data), "--hidden-losses", "l2"
    )
    assert with_outputs["r2"] > 0.6
    assert with_outputs["agree"] > 0.6
    assert without["r2"] > 0.68
    for row in (with_outputs, without):
        assert row["k-means"] == 1
        assert row["theta"] > row["cka"] > row["procrustes"]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.skipif(DATA is None, reason="DYNAMO_DATA does not say where the real data is")
def test_two_output_groups_on_the_real_texts(tmp_path: Path) -> None:
    rows = _run("two_output_groups.py", tmp_path, "--data", str(DATA))
    for row in rows:
        for group in ("reviews", "news"):
            assert row[f"agree {group}"] > 0.8
            assert row[f"r2 {group}"] > 0.8


def test_what_thetas_do(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    sizes = ["--networks", "3", "--network-steps", "40", "--steps", "30"]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "what_thetas_do.py", "--output", figures, *sizes],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line in ("weights_score", "geodesic", "best network"):
        assert line in done.stdout
    assert {page.stem for page in figures.iterdir()} == {
        "fidelity",
        "average",
        "interpolation",
        "landscape",
    }
