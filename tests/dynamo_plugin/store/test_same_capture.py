"""What a capture must have in common with the population that it goes on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_plugin.errors import InvalidInput, StoreNotFound
from dynamo_plugin.store import PopulationWriter


def test_resuming_something_else_says_what_differs(
    tmp_path: Path, example: Any, example_of: Callable[..., Any]
) -> None:
    with pytest.raises(StoreNotFound):
        PopulationWriter.resume(tmp_path / "nothing", example.inputs, config={})
    example.write(tmp_path / "p")
    config = example.config | {"batch_size": 8}
    with pytest.raises(InvalidInput, match=r"'batch_size': 4.*'batch_size': 8"):
        PopulationWriter.resume(tmp_path / "p", example.inputs, config=config)
    for other, message in [
        (example_of(seed=1), "other values, sample ids or targets"),
        (example_of(lengths=(3, 1, 6, 2, 1)), "samples 4 -> 5, rows 12 -> 13"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            PopulationWriter.resume(tmp_path / "p", other.inputs, config=example.config)
