"""Ways to get the states of a network onto the disk, ours and those of others.

Each takes a network and a folder that does not exist yet, shows the network all inputs, and writes
states and outputs below the folder, if it writes at all. Only `capture` makes sure that they
survive a power failure, checks them, and can go on after an interruption.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import zarr
from capture_networks import BenchmarkNetwork
from torch import Tensor, nn
from zarr.storage import LocalStore

import dynamo_plugin as dp
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.registry.copying import recycling
from dynamo_plugin.types import SequenceBatch

__all__ = ["Way", "bare_forward", "ways_for"]

Way: TypeAlias = Callable[[BenchmarkNetwork, Path], None]


def bare_forward(network: BenchmarkNetwork, folder: Path) -> None:
    """Run the network and keep nothing."""
    with torch.no_grad():
        for batch in network.batches():
            network.model(batch)


def hooks_alone(network: BenchmarkNetwork, folder: Path) -> None:
    """Record as an adapter does, with the copies that this takes; drop what comes back."""
    adapter = AdapterChoice(None, {"layers": list(network.sites)}).of(network.model)
    has_time = network.inputs.ndim == 3 or not network.inputs.is_floating_point()
    steps = network.inputs.shape[1] if has_time else 1

    def shown(values: Tensor) -> SequenceBatch:
        return SequenceBatch(values, torch.full((len(values),), steps), has_time=has_time)

    spec = adapter.describe(network.model, shown(network.inputs[:4]))
    with recycling():
        for batch in network.batches():
            adapter.record(network.model, shown(batch), spec)


def capture(network: BenchmarkNetwork, folder: Path) -> None:
    """Write a population with its inputs: `dp.capture` as anybody would call it."""
    dp.capture(
        {f"network {number}": network.model for number in range(network.models)},
        network.inputs,
        folder,
        layers=list(network.sites),
        batch_size=network.batch_size,
        progress=False,
    )


def _write_durably(path: Path, data: memoryview) -> None:
    with path.with_suffix(".partial").open("wb", buffering=0) as file:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    path.with_suffix(".partial").replace(path)


def plain_write(network: BenchmarkNetwork, folder: Path) -> None:
    """Durably write as many state bytes as `capture`, from memory that lies ready.

    This goes through the cache of the system, which `capture` can avoid: it is a yardstick for the
    disk as it is at the moment, which `capture` may fall below, and no lower bound.
    """
    folder.mkdir(parents=True)
    sizes = _sizes(network)
    ready = np.ones(max(sizes.values()), dtype=np.uint8).data
    for number, _ in enumerate(network.batches()):
        for name, size in sizes.items():
            _write_durably(folder / f"{name}-{number}", ready[:size])


def forward_beside_write(network: BenchmarkNetwork, folder: Path) -> None:
    """Run the bare network while a thread does the plain write."""
    writer = threading.Thread(target=plain_write, args=(network, folder))
    writer.start()
    bare_forward(network, folder)
    writer.join()


@contextmanager
def _hooked(network: BenchmarkNetwork, take: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        take(name, output[0] if isinstance(output, tuple) else output)

    points = getattr(network.model, "hook_dict", None) or dict(network.model.named_modules())
    handles = [points[name].register_forward_hook(partial(hook, name)) for name in network.sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found


def _sizes(network: BenchmarkNetwork) -> dict[str, int]:
    """Return the bytes that a batch leaves behind, by site, and under "output"."""
    sizes: dict[str, int] = {}

    def take(name: str, state: Tensor) -> None:
        sizes[name] = state.nbytes

    with torch.no_grad(), _hooked(network, take):
        sizes["output"] = _tensor(network.model(next(network.batches()))).nbytes
    return sizes


def hooks_and_zarr(network: BenchmarkNetwork, folder: Path) -> None:
    """Write with zarr-python's own writer, one uncompressed chunk a batch."""
    root = zarr.open_group(LocalStore(folder), mode="w")
    arrays: dict[str, Any] = {}
    start = 0

    def take(name: str, state: Tensor) -> None:
        if name not in arrays:
            arrays[name] = root.create_array(
                name,
                shape=(len(network.inputs) * network.models, *state.shape[1:]),
                chunks=tuple(state.shape),
                dtype="float32",
                compressors=None,
                config={"write_empty_chunks": True},
            )
        arrays[name][start : start + len(state)] = state.numpy()

    with torch.no_grad(), _hooked(network, take):
        for batch in network.batches():
            take("output", _tensor(network.model(batch)))
            start += len(batch)


def hooks_and_npy(network: BenchmarkNetwork, folder: Path) -> None:
    """Write one .npy file a batch and site."""
    folder.mkdir(parents=True)
    number = 0

    def take(name: str, state: Tensor) -> None:
        np.save(folder / f"{name}-{number}.npy", state.numpy())

    with torch.no_grad(), _hooked(network, take):
        for number, batch in enumerate(network.batches()):  # noqa: B007 - read in take
            take("output", _tensor(network.model(batch)))


def nnsight_trace(network: BenchmarkNetwork, folder: Path) -> None:
    """Trace every batch with nnsight, save the sites, and write them as .npy files."""
    from nnsight import NNsight  # optional: pip install nnsight

    folder.mkdir(parents=True)
    traced = NNsight(network.model)
    for number, batch in enumerate(network.batches()):
        saved: dict[str, Any] = {}
        with torch.no_grad():
            with traced.trace(batch):
                for name in network.sites:
                    saved[name] = traced.get(name).output.save()
                saved["output"] = traced.output.save()
            for name, found in saved.items():
                state = found[0] if isinstance(found, tuple) else _tensor(found)
                np.save(folder / f"{name}-{number}.npy", state.numpy())


def run_with_cache(network: BenchmarkNetwork, folder: Path, *, filtered: bool) -> None:
    """Run every batch with TransformerLens' cache, and write the sites as .npy files."""
    folder.mkdir(parents=True)
    model: Any = network.model
    options = {"names_filter": list(network.sites)} if filtered else {}
    with torch.no_grad():
        for number, batch in enumerate(network.batches()):
            logits, cache = model.run_with_cache(batch, **options)
            np.save(folder / f"output-{number}.npy", logits.numpy())
            for name in network.sites:
                np.save(folder / f"{name}-{number}.npy", cache[name].numpy())


def ways_for(network: str) -> dict[str, Way]:
    """Return what is measured on a network, by the name that the table gives it."""
    ways: dict[str, Way] = {
        "bare forward": bare_forward,
        "hooks alone": hooks_alone,
        "**capture to disk**": capture,
        "yardstick: plain durable write of the same bytes, no forward": plain_write,
        "yardstick: forward beside that write": forward_beside_write,
        "hooks + zarr-python's writer": hooks_and_zarr,
        "hooks + np.save": hooks_and_npy,
    }
    if network == "bridge":
        ways["run_with_cache + np.save"] = partial(run_with_cache, filtered=False)
        ways["run_with_cache(names_filter) + np.save"] = partial(run_with_cache, filtered=True)
    elif importlib.util.find_spec("nnsight"):
        ways["nnsight trace + np.save"] = nnsight_trace
    return ways
