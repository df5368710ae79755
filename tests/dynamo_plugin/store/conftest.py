"""Small populations to write and to break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamo_plugin.store import PopulationInputs, PopulationWriter, StoreLike
from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec


@dataclass(frozen=True)
class Example:
    """A population as plain arrays, the reference that a store is compared with."""

    inputs: PopulationInputs
    specs: dict[str, TrajectorySpec]
    states: dict[str, dict[str, NDArray[Any]]]
    outputs: dict[str, NDArray[Any]]
    metadata: dict[str, dict[str, Any]]
    config: dict[str, Any] = field(default_factory=lambda: {"batch_size": 4, "note": "é", "x": 0.1})

    def write(self, store: StoreLike, **options: Any) -> None:
        """Write all of it; nothing of the writer is left, nor of its lease."""
        with PopulationWriter.create(store, self.inputs, config=self.config, **options) as writer:
            for model_id in self.specs:
                self.write_model(writer, model_id)

    def write_model(self, writer: PopulationWriter, model_id: str, portion: int = 5) -> None:
        model = writer.begin(
            model_id,
            self.specs[model_id],
            metadata=self.metadata[model_id],
            model_hash=f"hash of {model_id}",
            index=list(self.specs).index(model_id),
        )
        for site, rows in self.states[model_id].items():
            for start in range(0, len(rows), portion):
                model.append_states(site, rows[start : start + portion])
        model.append_outputs(self.outputs[model_id])
        model.finish()


def make_example(
    *,
    ids: tuple[str, ...] = ("GRU/3", "plain"),
    lengths: tuple[int, ...] = (3, 1, 6, 2),
    seed: int = 0,
) -> Example:
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows, samples = int(offsets[-1]), len(lengths)
    inputs = PopulationInputs(
        values=generator.integers(0, 11, rows),
        offsets=offsets,
        sample_ids=tuple(f"sample {i} é" for i in range(samples)),
        spec=InputSpec(kind="ids", size=11),
        targets=generator.integers(0, 2, samples),
        targets_axis="sample",
    )
    specs: dict[str, TrajectorySpec] = {}
    states: dict[str, dict[str, NDArray[Any]]] = {}
    outputs: dict[str, NDArray[Any]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for position, model_id in enumerate(ids):
        units = 3 + position
        specs[model_id] = TrajectorySpec(
            adapter="some_adapter",
            sites=(
                SiteSpec("rnn.layer0", (units,), "float32"),
                SiteSpec("RNN.Layer0", (2, units), "float16"),
                SiteSpec("summary", (units,), "float64", axis="sample"),
            ),
            output=OutputSpec("output2", (2,), "float32", "sample"),
            options={"takes_lengths": True},
        )
        states[model_id] = {
            "rnn.layer0": generator.normal(size=(rows, units)).astype(np.float32),
            "RNN.Layer0": generator.normal(size=(rows, 2, units)).astype(np.float16),
            "summary": generator.normal(size=(samples, units)),
        }
        outputs[model_id] = generator.normal(size=(samples, 2)).astype(np.float32)
        metadata[model_id] = {"architecture": "gru", "units": units}
    return Example(inputs, specs, states, outputs, metadata)


@pytest.fixture(scope="session")
def example_of() -> Callable[..., Example]:
    return make_example


@pytest.fixture(scope="session")
def example() -> Example:
    return make_example()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut arrays of the examples into several blocks."""
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 60)
