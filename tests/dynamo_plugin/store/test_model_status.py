"""How far the models of a population have come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamo_plugin.store import PopulationWriter, verify_population


def test_a_damaged_description_counts_as_never_begun(tmp_path: Path, example: Any) -> None:
    example.write(tmp_path)
    (tmp_path / "models/plain/zarr.json").write_bytes(b"{")
    writer = PopulationWriter.resume(tmp_path, example.inputs, config=example.config)
    assert list(writer.models()) == ["GRU/3"]
    example.write_model(writer, "plain")
    assert verify_population(tmp_path).ok
