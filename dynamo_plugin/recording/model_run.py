"""Running one model on some samples, and putting what it did into the order of the samples."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.recording.batching import Batching
from dynamo_plugin.recording.fitting import fit_components
from dynamo_plugin.recording.reducing import SiteReducer

if TYPE_CHECKING:
    from dynamo_plugin.recording.recorder import Recorder
    from dynamo_plugin.registry.interfaces import Adapter
    from dynamo_plugin.types import OutputSpec, SiteSpec, Trajectory, TrajectorySpec

__all__ = ["OUTPUT", "ModelRun", "Window"]

COPIED_BYTES = 4 * 2**20
"""Rows of a batch up to this size are copied."""


@dataclass(frozen=True, slots=True)
class ModelRun:
    """A model, and all that is needed to run it on some samples."""

    recorder: Recorder
    """Of the capture."""
    adapter: Adapter
    """Reads the model."""
    model: Any
    """The model."""
    spec: TrajectorySpec
    """As the adapter describes it."""
    stored: TrajectorySpec
    """What is stored of it."""

    @property
    def ragged(self) -> bool:
        """Whether samples of different lengths may share a batch."""
        return bool(self.spec.options.get("ragged_batches", False))

    def on(self, chosen: NDArray[np.int64]) -> Trajectory:
        """Return what the model does on some samples, which all come in one batch."""
        return self.adapter.record(self.model, self.recorder.inputs.batch(chosen), self.spec)

    def states(self, trajectory: Trajectory, site: SiteSpec, lengths: NDArray[np.int64]) -> Tensor:
        """Return the states of a site, which must be as the adapter described them."""
        where = f"site {site.name!r}"
        return _checked(trajectory.states.get(site.name), site, where, lengths)

    def output(self, trajectory: Trajectory, lengths: NDArray[np.int64]) -> Tensor:
        """Return the outputs, which must be as the adapter described them."""
        output = self.spec.output
        where = f"output {output.group!r}"
        return _checked(trajectory.outputs.get(output.group), output, where, lengths)

    def fitted(
        self, reducers: list[SiteReducer]
    ) -> Iterator[tuple[str, dict[str, NDArray[np.float64]]]]:
        """Yield name and principal components of each of these sites."""
        lengths = self.recorder.inputs.lengths
        wanted = {each.site.name: each.site for each in reducers}

        def batches(
            samples: NDArray[np.int64],
        ) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
            offsets = np.concatenate([[0], np.cumsum(lengths[samples])])
            batching = Batching.of(offsets, self.spec, self.recorder.batch_size)
            for window in batching.windows:
                for batch in batching.batches(window, ragged=self.ragged):
                    chosen = samples[batch + window.start]
                    trajectory = self.on(chosen)
                    yield (
                        chosen,
                        {
                            name: self.states(trajectory, site, lengths[chosen])
                            for name, site in wanted.items()
                        },
                    )

        return fit_components(reducers, lengths, batches, place=self.recorder.place)


@dataclass(frozen=True, slots=True)
class Window:
    """Runs a model on some contiguous samples and puts what it did into sample order."""

    run: ModelRun
    reducers: Mapping[str, SiteReducer]
    batching: Batching

    def record(self, samples: range) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Yield name, number of the first row, and rows of every array."""
        batching = self.batching
        buffers: dict[str, NDArray[Any]] = {}
        for batch in batching.batches(samples, ragged=self.run.ragged):
            chosen = batch + samples.start
            for name, declared, values in self.reduced(chosen):
                every = getattr(declared, "every", 1)
                if len(batch) == len(samples) and batching.equal_lengths:
                    rows = values.reshape(-1, *declared.shape)
                    yield name, batching.first_row(samples.start, declared.axis, every), rows
                    continue
                if name not in buffers:
                    count = batching.count_rows(samples, declared.axis, every)
                    buffers[name] = np.empty((count, *declared.shape), declared.dtype)
                source, target = batching.places(chosen, samples.start, declared.axis, every)
                buffers[name][target] = values.reshape(-1, *declared.shape)[source]
        stored: dict[str, SiteSpec | OutputSpec] = {
            site.name: site for site in self.run.stored.sites
        }
        stored[OUTPUT] = self.run.stored.output
        for name, rows in buffers.items():
            declared = stored[name]
            every = getattr(declared, "every", 1)
            yield name, batching.first_row(samples.start, declared.axis, every), rows

    def reduced(
        self, chosen: NDArray[np.int64]
    ) -> Iterator[tuple[str, SiteSpec | OutputSpec, NDArray[Any]]]:
        """Yield what was recorded of each array, checked and as it is stored."""
        run = self.run
        lengths = run.recorder.inputs.lengths[chosen]
        trajectory = run.on(chosen)

        def place(position: int, step: int | None) -> str:
            return run.recorder.place(int(chosen[position]), step)

        for site, stored in zip(run.spec.sites, run.stored.sites, strict=True):
            came = run.states(trajectory, site, lengths)
            values = self.reducers[site.name](came, lengths, place)
            yield site.name, stored, _rows(values)
        values = run.output(trajectory, lengths)
        yield OUTPUT, run.spec.output, _rows(values)


OUTPUT = ""
"""Stands for the output where arrays are named after their sites, which never have this name."""


def _rows(values: Tensor) -> NDArray[Any]:
    """Return a tensor as an array, in memory of its own where it is small.

    Small pieces wait long for their block. In PyTorch's aligned memory, among the large tensors of
    every batch, they leave holes that glibc does not fill again, and the process grows.
    """
    rows: NDArray[Any] = values.cpu().numpy()
    in_pages = rows.ctypes.data % mmap.PAGESIZE == 0  # as from `copied`
    return rows.copy() if rows.nbytes <= COPIED_BYTES and not in_pages else rows


def _checked(
    came: Any, declared: SiteSpec | OutputSpec, where: str, lengths: NDArray[np.int64]
) -> Tensor:
    """Return what an adapter recorded, which must be of the declared shape and dtype."""
    leading = (len(lengths), int(lengths.max())) if declared.axis == "time" else (len(lengths),)
    expected = (*leading, *declared.shape)
    if isinstance(came, np.ndarray):
        came = torch.from_numpy(came)
    dtype = str(came.dtype).removeprefix("torch.") if isinstance(came, Tensor) else ""
    if not isinstance(came, Tensor) or tuple(came.shape) != expected or dtype != declared.dtype:
        got = f"{dtype} of {tuple(came.shape)}" if dtype else type(came).__name__
        raise CaptureError(
            f"{where}: the adapter described {declared.dtype} of {expected} and recorded {got}. "
            "record must return what describe says."
        )
    return came
