"""Populations whose structure is known, through `benchmarks/known_answers.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "known_answers.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("known") / "rows.json"
    command = [sys.executable, str(SCRIPT), "--seeds", "0", "1", "2", "--json", str(path)]
    subprocess.run(command, check=True)
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("population", ["tasks", "scaled"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tasks_are_separated_and_twins_found(
    rows: list[dict[str, Any]], population: str, seed: int
) -> None:
    (row,) = [r for r in rows if r["seed"] == seed and r["population"] == population]
    assert row["rand_index"] == 1.0
    assert row["silhouette"] > 0.85
    assert row["hidden_r2"] > 0.93
    assert row["twins"] == 10
    assert row["twins_found"] >= 7


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_found_where_there_is_nothing(rows: list[dict[str, Any]], seed: int) -> None:
    (row,) = [r for r in rows if r["seed"] == seed and r["population"] == "null"]
    assert row["labellings"] == 20
    assert row["significant"] <= 3
