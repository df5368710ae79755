"""Fixtures that the tests of several rooms share."""

from __future__ import annotations

import importlib
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamo_plugin.registry import _process
from dynamo_plugin.store import Population, PopulationInputs, PopulationWriter, open_population
from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec

WritePopulation = Callable[..., Population]


@pytest.fixture(scope="session")
def write_population() -> WritePopulation:
    """Return a function that stores given states and outputs, with no network behind them.

    `states[model]` is (row, unit) and `outputs[model]` (sample, k) or (row, k); `inputs` is
    (row, feature) numbers or (row,) ids, cut into samples by `lengths`. Of models that `every`
    names, only each so many-th step of a sample is stored.
    """

    def write(
        states: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        inputs: NDArray[Any],
        lengths: list[int],
        *,
        groups: Mapping[str, str] | None = None,
        metadata: Mapping[str, dict[str, Any]] | None = None,
        targets: NDArray[Any] | None = None,
        every: Mapping[str, int] | None = None,
        store: Any = None,
    ) -> Population:
        ids = inputs.ndim == 1
        given = PopulationInputs(
            values=inputs,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            sample_ids=tuple(f"sample-{index}" for index in range(len(lengths))),
            spec=InputSpec("ids", int(inputs.max()) + 1)
            if ids
            else InputSpec("features", inputs.shape[1]),
            targets=targets,
            targets_axis=None if targets is None else "sample",
        )
        where = {} if store is None else store
        writer = PopulationWriter.create(where, given, models=tuple(states), config={})
        steps = np.concatenate([np.arange(length) for length in lengths])
        for index, (model, whole) in enumerate(states.items()):
            stride = 1 if every is None else every.get(model, 1)
            rows, read = whole[steps % stride == 0], outputs[model]
            axis: Any = "sample" if len(read) == len(lengths) else "time"
            group = "output" if groups is None else groups[model]
            spec = TrajectorySpec(
                adapter="none",
                sites=(SiteSpec("rnn", rows.shape[1:], str(rows.dtype), every=stride),),
                output=OutputSpec(group, read.shape[1:], str(read.dtype), axis),
            )
            block = writer.begin(
                model,
                spec,
                metadata={} if metadata is None else metadata[model],
                model_hash=f"{index:064x}",
                index=index,
            )
            block.append_states("rnn", rows)
            block.append_outputs(read)
            block.finish()
        return open_population(where)

    return write


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str, str | None], None]]:
    """Return `install(distribution, plugin, source)`.

    It lays a distribution with one plugin on the path, as an installer would: metadata, an
    entry point and a module. A source of None announces a module that is not there.
    """
    monkeypatch.delenv("DYNAMO_PLUGINS", raising=False)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    modules: list[str] = []

    def install(distribution: str, plugin: str, source: str | None) -> None:
        module = f"plugin_module_of_{distribution.replace('-', '_')}_{plugin}"
        modules.append(module)
        if source is not None:
            header = "from dynamo_plugin.registry import hookimpl\n"
            (site / f"{module}.py").write_text(header + textwrap.dedent(source))
        metadata = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        points = metadata / "entry_points.txt"
        earlier = points.read_text() if points.exists() else "[dynamo_plugin]\n"
        points.write_text(f"{earlier}{plugin} = {module}\n")
        importlib.invalidate_caches()

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the registry of this process for one test, and restore it after."""
    monkeypatch.setattr(_process, "_current", None)
    # Set first, so that what the test leaves in the variable is undone too.
    monkeypatch.setenv("DYNAMO_PLUGINS", "")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt, here and in processes started from here, as it does at a terminal.

    A job in the background of a shell starts with SIGINT ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
