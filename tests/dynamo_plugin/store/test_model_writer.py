"""What may be written of one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamo_plugin.errors import IncompleteCapture, InvalidInput, UnknownName
from dynamo_plugin.store import PopulationWriter
from dynamo_plugin.types import OutputSpec, SiteSpec


def test_what_a_model_writer_refuses(tmp_path: Path, example: Any) -> None:
    writer = PopulationWriter.create(tmp_path, example.inputs, config={})
    spec = example.specs["plain"]
    model = writer.begin("plain", spec, metadata={}, model_hash="h", index=0)
    rows = np.zeros((3, 4), dtype=np.float32)
    refused: list[tuple[Any, str]] = [
        (rows[:, :3], r"shape \(rows, 4\).*\(3, 3\)"),
        (rows.astype(np.float64), "dtype float32 .*float64"),
        (np.float32(1), r"got \(\)"),
        (np.zeros((13, 4), dtype=np.float32), "Expected 12 rows .*at least 13"),
    ]
    for wrong, message in refused:
        with pytest.raises(InvalidInput, match=message):
            model.append_states("rnn.layer0", wrong)
    with pytest.raises(UnknownName, match=r"Did you mean 'rnn.layer0'"):
        model.append_states("rnn.layer", rows)
    with pytest.raises(InvalidInput, match="output 'output2' of model 'plain'"):
        model.append_outputs(np.zeros((4, 3), dtype=np.float32))
    with pytest.raises(IncompleteCapture, match=r"Expected 12 rows of site 'rnn.layer0'"):
        model.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": ()}, "at least one site"),
        ({"sites": (SiteSpec("a", (1,), "float32"),) * 2}, "every name once"),
        ({"sites": (SiteSpec("a", (0,), "float32"),)}, "positive lengths"),
        ({"sites": (SiteSpec("a", (1,), "int64"),)}, "float16"),
        ({"sites": (SiteSpec("a", (1,), "float32", axis="row"),)}, "axis"),  # type: ignore[arg-type]
        ({"output": OutputSpec("o", (2.0,), "float32", "sample")}, "positive"),  # type: ignore[arg-type]
        ({"options": {"f": object()}}, "JSON"),
    ],
)
def test_which_specs_are_refused(
    tmp_path: Path, example: Any, change: dict[str, Any], message: str
) -> None:
    writer = PopulationWriter.create(tmp_path, example.inputs, config={})
    with pytest.raises(InvalidInput, match=message):
        writer.begin(
            "m", replace(example.specs["plain"], **change), metadata={}, model_hash="h", index=0
        )
