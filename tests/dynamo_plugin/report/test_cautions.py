from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dynamo_plugin.analyses import FidelityResult
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.report._cautions import find_cautions


def settled(rows: int = 25) -> pd.DataFrame:
    """A history that has come to rest."""
    step = np.arange(1, rows + 1) * 10
    return pd.DataFrame(
        {
            "step": step,
            "held_out_hidden_r2": 0.9 - 0.5 * np.exp(-step / 30),
            "theta_norm": 1.0,
            "theta_movement": 0.2 * np.exp(-step / 30),
        }
    )


def faithful(**columns: Any) -> FidelityResult:
    table = pd.DataFrame(
        {
            "model": ["a", "b"],
            "hidden_r2": [0.9, 0.8],
            "hidden_r2_mean_theta": [0.7, 0.7],
            "output_agreement": [0.95, 0.9],
            "output_kind": "decisions",
            "interpretable": True,
            "reason": "",
        }
    ).assign(**columns)
    return FidelityResult(table, "held_out", 100, 0.5)


def cautions(
    embedding: ModelEmbedding, fidelity: FidelityResult, history: pd.DataFrame
) -> list[str]:
    return find_cautions(dataclasses.replace(embedding, history=history), fidelity)


def test_a_good_fit_needs_none(hostile: ModelEmbedding) -> None:
    assert cautions(hostile, faithful(), settled()) == []


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"hidden_r2": [1, 0.45], "interpretable": [True, False]}, "1 of 2 models .* 0.5: b"),
        ({"interpretable": [True, False]}, "1 more of 2 models .*: b"),
        ({"output_agreement": 0.5}, "decisions agree in 0.50"),
        ({"output_agreement": 0.5, "output_kind": "r2"}, "R² of 0.50"),
        ({"hidden_r2_mean_theta": [0.9, 0.8]}, "no better than at the mean theta"),
    ],
)
def test_poor_emulations(hostile: ModelEmbedding, columns: dict[str, Any], words: str) -> None:
    (found,) = cautions(hostile, faithful(**columns), settled())
    assert pd.Series([found]).str.contains(words).all()


def test_thetas_that_still_move(hostile: ModelEmbedding) -> None:
    history = settled().assign(theta_movement=0.05)
    (found,) = cautions(hostile, faithful(), history)
    assert "25% of their length" in found


def test_a_fit_that_still_improves(hostile: ModelEmbedding) -> None:
    history = settled()
    history["held_out_hidden_r2"] = history["step"] / 1000
    (found,) = cautions(hostile, faithful(), history)
    assert "rose by 0.050" in found


def test_few_samples_and_a_short_fit(hostile: ModelEmbedding) -> None:
    few = dataclasses.replace(faithful(), sample_count=3)
    assert ["3 samples" in text for text in cautions(hostile, few, settled())] == [True]
    (found,) = cautions(hostile, faithful(), settled(1))
    assert "too short" in found
