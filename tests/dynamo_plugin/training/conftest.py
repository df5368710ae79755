"""A small population with ragged samples, two widths and two output groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.store import Population

LENGTHS = [4, 1, 6, 3, 5, 2, 6, 6, 1, 4]


def write_ragged(write_population: Callable[..., Population], **options: Any) -> Population:
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    states: dict[str, Any] = {
        "a": rng.normal(2.0, 3.0, (rows, 4)).astype(np.float32),
        "b": rng.normal(-1.0, 0.1, (rows, 2)).astype(np.float32),
        "c": rng.normal(0.0, 1.0, (rows, 3)).astype(np.float32),
    }
    outputs: dict[str, Any] = {
        "a": rng.normal(size=(len(LENGTHS), 3)).astype(np.float32),
        "b": rng.normal(5.0, 2.0, (rows, 2)).astype(np.float32),
        "c": rng.normal(size=(len(LENGTHS), 3)).astype(np.float32),
    }
    return write_population(
        states,
        outputs,
        rng.normal(size=(rows, 2)).astype(np.float32),
        LENGTHS,
        groups={"a": "class", "b": "value", "c": "class"},
        **options,
    )


@pytest.fixture(scope="session")
def ragged(write_population: Callable[..., Population]) -> Population:
    return write_ragged(write_population)


@pytest.fixture(scope="session")
def strided(write_population: Callable[..., Population]) -> Population:
    """The same, of which only some steps were stored."""
    return write_ragged(write_population, every={"a": 2, "c": 3})
