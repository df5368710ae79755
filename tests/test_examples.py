"""The examples run: on small data made here, and on the real data where it is."""

from __future__ import annotations

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

import dynamo_plugin as dp

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = os.environ.get("DYNAMO_DATA")


def _imdb(tmp_path: Path, data: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [
        sys.executable,
        str(EXAMPLES / "imdb_sentiment.py"),
        *("--data", str(data), "--output", str(tmp_path / "imdb")),
        *("--json", str(tmp_path / "rows.json"), *arguments),
    ]
    subprocess.run(command, check=True, capture_output=True)
    rows: list[dict[str, Any]] = json.loads((tmp_path / "rows.json").read_text())
    return rows


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
    population = dp.open_population(tmp_path / "imdb" / "seed-0" / "population.zarr")
    assert len(population.ids) == 4
    assert dp.load_embedding(tmp_path / "imdb" / "seed-0" / "embedding").ids == population.ids
    assert (tmp_path / "imdb" / "seed-0" / "report.html").stat().st_size > 1e6


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
