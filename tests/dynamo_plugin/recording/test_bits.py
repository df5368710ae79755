"""Every bit of every number comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dynamo_plugin.recording import capture
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.store import open_population
from dynamo_plugin.types import (
    OutputSpec,
    SequenceBatch,
    SiteSpec,
    Trajectory,
    TrajectorySpec,
)


def finite(bits: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """Return the finite numbers among all that bits can say."""
    values = torch.from_numpy(bits.copy()).view(dtype)
    return values[values.isfinite()]


def all_of(dtype: torch.dtype) -> torch.Tensor:
    """Return every finite number of 16 bits; of wider ones the edges, and many at random."""
    if dtype.itemsize == 2:
        return finite(np.arange(-(2**15), 2**15).astype(np.int16), dtype)
    info = np.finfo(str(dtype).removeprefix("torch."))
    edges = [0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, info.max]
    integer = np.int32 if dtype.itemsize == 4 else np.int64
    bounds = np.iinfo(integer)
    bits = np.random.default_rng(0).integers(bounds.min, bounds.max, 10**4, dtype=integer)
    return torch.cat([torch.tensor(edges, dtype=dtype), finite(bits, dtype)])


class Table(Adapter):
    """Says that the state at a step is the row of the model's table that the input names."""

    def supports(self, model: object) -> bool:
        return isinstance(model, nn.Embedding)

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        source = str(model.weight.dtype).removeprefix("torch.")
        stored = "float32" if source == "bfloat16" else source
        site = SiteSpec("table", (1,), stored, source_dtype=source)
        return TrajectorySpec("table", (site,), OutputSpec("last", (1,), stored, "sample"))

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        states = model.weight[inputs.values].detach()
        states = states.to(getattr(torch, spec.sites[0].dtype))
        return Trajectory({"table": states}, {"last": states[:, -1].clone()}, inputs.lengths)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_finite_number(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 10_000)
    table = all_of(dtype)[:, None]
    steps = 32
    table = table[: len(table) // steps * steps]
    model = nn.Embedding(len(table), 1, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(table)
    ids = torch.arange(len(table)).reshape(-1, steps)
    capture({"t": model}, ids, tmp_path, adapter=Table(), progress=False)
    population = open_population(tmp_path)
    (site,) = population.spec("t").sites
    assert site.source_dtype == str(dtype).removeprefix("torch.")
    chosen = np.random.default_rng(0).permutation(len(ids))
    for came, expected in [
        (population.states("t"), table),
        (population.states("t", samples=chosen), table.reshape(-1, steps)[chosen].reshape(-1, 1)),
        (population.outputs("t"), table.reshape(-1, steps)[:, -1:]),
    ]:
        back = torch.from_numpy(came).to(dtype)
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        assert torch.equal(back.view(integer), expected.contiguous().view(integer))
        if dtype == torch.bfloat16:  # widened, which adds zeros
            low = torch.from_numpy(came).view(torch.int32) & 0xFFFF
            assert not low.any()
