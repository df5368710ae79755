"""Loggers write what the history says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.embedding import fit
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population
from dynamo_plugin.training import Callback, MLflowLogger, TensorBoardLogger, WandbLogger

STEPS = 6


def _logged(write_population: Callable[..., Population], *callbacks: Callback) -> Any:
    rng = np.random.default_rng(0)
    states = {name: rng.normal(size=(40, 3)).astype(np.float32) for name in "ab"}
    outputs = {name: rng.normal(size=(10, 2)).astype(np.float32) for name in "ab"}
    population = write_population(
        states, outputs, rng.normal(size=(40, 2)).astype(np.float32), [4] * 10
    )
    options: dict[str, Any] = {"family_options": {"units": 4}, "embedding_dim": 2, "steps": STEPS}
    return fit(population, device="cpu", progress=False, callbacks=callbacks, **options)


def test_tensorboard_reads_the_history_and_the_thetas(
    write_population: Callable[..., Population], tmp_path: Path
) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    embedding = _logged(write_population, TensorBoardLogger(tmp_path))
    events = reading.EventAccumulator(str(tmp_path)).Reload()
    for name in embedding.history.columns.drop("step"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == embedding.history["step"].tolist()
        values = [scalar.value for scalar in scalars]
        np.testing.assert_allclose(values, embedding.history[name], rtol=1e-6)
    (folder,) = tmp_path.glob("*/theta")
    np.testing.assert_allclose(np.loadtxt(folder / "tensors.tsv"), embedding.thetas, rtol=1e-5)
    assert (folder / "metadata.tsv").read_text().split() == ["a", "b"]


def test_wandb_is_given_settings_and_rows(write_population: Callable[..., Population]) -> None:
    rows: list[dict[str, float]] = []
    config: dict[str, Any] = {}
    run = SimpleNamespace(config=SimpleNamespace(update=config.update), log=rows.append)
    embedding = _logged(write_population, WandbLogger(run))
    assert config["fit"]["steps"] == STEPS
    assert [row["fit/loss"] for row in rows] == embedding.history["loss"].tolist()


def test_a_logger_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInput, match="pip install mlflow"):
        MLflowLogger()
    with pytest.raises(InvalidInput, match="pip install tensorboard"):
        TensorBoardLogger("somewhere")
