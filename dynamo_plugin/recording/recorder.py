"""Record one model into its group of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dynamo_plugin.errors import CaptureError, DynamoError, InvalidInput, NonFiniteStates
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.recording.batching import batches, scatter, windows

if TYPE_CHECKING:
    from dynamo_plugin.registry.interfaces import Adapter
    from dynamo_plugin.store import ModelStatus, ModelWriter, PopulationInputs, PopulationWriter
    from dynamo_plugin.types import JSON, OutputSpec, SiteSpec, TrajectorySpec

__all__ = ["ModelSource", "ModelTask", "Recorder", "named_error"]

ModelSource: TypeAlias = "nn.Module | Callable[[], Any]"
"""A model, or a factory that makes one when it is called without arguments."""

_WINDOW_BYTES = 64 * 2**20
_PROBE_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class ModelTask:
    """One model to record."""

    id: str
    """Its name in the population."""
    index: int
    """Its place in the population."""
    source: ModelSource
    """The model, or what makes it."""
    metadata: Mapping[str, JSON]
    """What the user said about it."""
    output_group: str | None
    """Name of its output group; None to name it after the shape of the output."""
    stored: ModelStatus | None
    """What a capture that is now resumed completed under this id."""


@dataclass(frozen=True, slots=True)
class Recorder:
    """Records models, one after the other or several at once, each into its own group."""

    writer: PopulationWriter
    """The population being written."""
    inputs: PopulationInputs
    """What every model is shown."""
    adapters: AdapterChoice
    """How models are read."""
    batch_size: int
    """Most samples that a model is shown at once."""
    device: str | torch.device | None
    """Where models run; None to leave them where they are."""

    def __call__(self, task: ModelTask, advance: Callable[[int], object] | None = None) -> None:
        """Record one model.

        Parameters
        ----------
        task
            Which model, and where it belongs.
        advance
            Called with the number of samples that were recorded since its last call.

        Raises
        ------
        DynamoError
            Recording failed; the message names the model. A foreign exception becomes a
            `CaptureError` with that exception as its cause.
        """
        try:
            model = _made(task.source)
            with _on_device(model, self.device):
                self._record(model, task, advance)
        except Exception as error:
            raise named_error(task.id, error) from error

    def _record(self, model: Any, task: ModelTask, advance: Callable[[int], object] | None) -> None:
        adapter = self.adapters.of(model)
        longest = np.argsort(-self.inputs.lengths, kind="stable")[:_PROBE_SAMPLES]
        spec = adapter.describe(model, self.inputs.batch(longest))
        if task.output_group is not None:
            spec = replace(spec, output=replace(spec.output, group=task.output_group))
        fingerprint = adapter.fingerprint(model)
        if task.stored is not None:
            _check_same(task, spec, fingerprint)
            if advance is not None:
                advance(len(self.inputs))
            return
        writer = self.writer.begin(
            task.id, spec, metadata=task.metadata, model_hash=fingerprint, index=task.index
        )
        for window in self._windows(spec):
            self._record_window(adapter, model, spec, window, writer, task.id)
            if advance is not None:
                advance(len(window))
        writer.finish()

    def _windows(self, spec: TrajectorySpec) -> Iterator[range]:
        arrays: list[SiteSpec | OutputSpec] = [*spec.sites, spec.output]
        row_bytes = sum(prod(each.shape) * np.dtype(each.dtype).itemsize for each in arrays)
        return windows(
            self.inputs.offsets,
            rows=max(_WINDOW_BYTES // max(row_bytes, 1), 1),
            samples=self.batch_size,
        )

    def _record_window(
        self,
        adapter: Adapter,
        model: Any,
        spec: TrajectorySpec,
        window: range,
        writer: ModelWriter,
        model_id: str,
    ) -> None:
        """Run the model on contiguous samples and append what it did, in sample order."""
        lengths = self.inputs.lengths[window.start : window.stop]
        starts = self.inputs.offsets[window.start : window.stop] - self.inputs.offsets[window.start]
        rows = {"time": int(lengths.sum()), "sample": len(window)}
        states = {
            site.name: np.empty((rows[site.axis], *site.shape), site.dtype) for site in spec.sites
        }
        outputs = np.empty((rows[spec.output.axis], *spec.output.shape), spec.output.dtype)
        ragged = bool(spec.options.get("ragged_batches", False))
        for batch in batches(lengths, size=self.batch_size, ragged=ragged):
            trajectory = adapter.record(model, self.inputs.batch(batch + window.start), spec)
            parts: list[tuple[SiteSpec | OutputSpec, str, Any, NDArray[Any]]] = [
                (site, f"site {site.name!r}", trajectory.states.get(site.name), states[site.name])
                for site in spec.sites
            ]
            group = spec.output.group
            parts.append((spec.output, f"output {group!r}", trajectory.outputs.get(group), outputs))
            for declared, where, came, target in parts:
                values = _checked(came, declared, where, lengths[batch])
                if declared.axis == "time":
                    scatter(target, values, starts[batch], lengths[batch])
                else:
                    target[batch] = values
        for site in spec.sites:
            self._check_finite(states[site.name], site, f"site {site.name!r}", window)
        self._check_finite(outputs, spec.output, f"output {spec.output.group!r}", window)
        for name, values in states.items():
            writer.append_states(name, values)
        writer.append_outputs(outputs)

    def _check_finite(
        self,
        values: NDArray[Any],
        declared: SiteSpec | OutputSpec,
        where: str,
        window: range,
    ) -> None:
        finite = np.isfinite(values)
        if finite.all():
            return
        row = int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))
        step = ""
        sample = window.start + row
        if declared.axis == "time":
            offsets = self.inputs.offsets
            row += int(offsets[window.start])
            sample = int(np.searchsorted(offsets, row, side="right")) - 1
            step = f", step {row - int(offsets[sample])}"
        raise NonFiniteStates(
            f"{where} is not finite at sample {self.inputs.sample_ids[sample]!r}{step}; expected "
            "finite numbers. Leave this model out, or find out why it diverges on this input."
        )


def named_error(model_id: str, error: BaseException) -> DynamoError:
    """Return the error with the model's name in front, of the same class if it is one of ours."""
    if isinstance(error, DynamoError):
        return type(error)(f"model {model_id!r}: {error}")
    return CaptureError(f"model {model_id!r}: {type(error).__name__}: {error}")


def _made(source: ModelSource) -> Any:
    if isinstance(source, nn.Module):
        return source
    model = source()
    if model is None or isinstance(model, type):
        raise InvalidInput(
            f"expected a factory that returns a model; it returned {model!r}. Return an instance."
        )
    return model


@contextmanager
def _on_device(model: Any, device: str | torch.device | None) -> Iterator[None]:
    """Move a model that lies on one device to another, and back afterwards."""
    if device is None or not isinstance(model, nn.Module):
        yield
        return
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(homes) > 1:
        raise InvalidInput(
            f"device={str(device)!r} cannot be applied to a model that is spread over "
            f"{', '.join(sorted(map(str, homes)))}; leave device out."
        )
    try:
        model.to(device)
        yield
    finally:
        for home in homes:
            model.to(home)


def _checked(
    came: Any, declared: SiteSpec | OutputSpec, where: str, lengths: NDArray[np.int64]
) -> NDArray[Any]:
    """Return what an adapter recorded as an array of the declared shape and dtype."""
    leading = (len(lengths), int(lengths.max())) if declared.axis == "time" else (len(lengths),)
    expected = (*leading, *declared.shape)
    values: NDArray[Any] | None = came.cpu().numpy() if isinstance(came, torch.Tensor) else None
    if values is None or values.shape != expected or values.dtype.name != declared.dtype:
        got = type(came).__name__ if values is None else f"{values.dtype} of {values.shape}"
        raise CaptureError(
            f"{where}: the adapter described {declared.dtype} of {expected} and recorded {got}. "
            "record must return what describe says."
        )
    return values


def _check_same(task: ModelTask, spec: TrajectorySpec, fingerprint: str) -> None:
    """Refuse to keep what another model, or another way of reading it, left in the store."""
    assert task.stored is not None
    pairs = {
        "model hash": (task.stored.model_hash, fingerprint),
        "place in the order": (task.stored.index, task.index),
        "metadata": (dict(task.stored.metadata), dict(task.metadata)),
        "specification": (task.stored.spec, spec),
    }
    differing = [name for name, (before, now) in pairs.items() if before != now]
    if differing:
        details = "; ".join(
            f"{name} was {pairs[name][0]}, is {pairs[name][1]}" for name in differing
        )
        raise InvalidInput(
            f"it is complete in the store, but with another {' and '.join(differing)} ({details}). "
            "resume=True continues a capture of the same models in the same order; capture into "
            "another store, or with overwrite=True."
        )
