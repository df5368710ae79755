"""Record one model: run it window by window, and have what it did written block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError, DynamoError, InvalidInput, NonFiniteStates
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.recording.batching import Batching
from dynamo_plugin.recording.fitting import fit_components, site_reducers
from dynamo_plugin.recording.pump import Pump
from dynamo_plugin.recording.reducing import Reductions, SiteReducer, not_finite
from dynamo_plugin.store import (
    ArrayBlocks,
    Assembler,
    BlockRecord,
    ModelBlocks,
    are_finite,
    strided_rows,
)

if TYPE_CHECKING:
    from dynamo_plugin.registry.interfaces import Adapter
    from dynamo_plugin.types import (
        JSON,
        OutputSpec,
        SequenceBatch,
        SiteSpec,
        Trajectory,
        TrajectorySpec,
    )

__all__ = [
    "Inputs",
    "Ledger",
    "ModelRun",
    "ModelSource",
    "ModelTask",
    "Recorder",
    "named_error",
]

ModelSource: TypeAlias = "nn.Module | Callable[[], Any]"
"""A model, or a factory that makes one when it is called without arguments."""

PROBE_SAMPLES = 4
"""Samples on which a model is described, the longest ones."""


class Inputs(Protocol):
    """What every model is shown: `PopulationInputs`, or `StoredInputs` where they stay on disk."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(sample + 1,): rows of each sample."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sample,): steps of each sample."""

    @property
    def sample_ids(self) -> Sequence[str]:
        """One per sample."""

    def batch(self, samples: Any) -> SequenceBatch:
        """Return some samples as tensors."""


class Ledger(Protocol):
    """Keeps the record of what was written of one model."""

    @property
    def full(self) -> bool:
        """Whether recording should pause here, to go on later with what is then missing."""

    def begin(
        self, spec: TrajectorySpec, model_hash: str
    ) -> tuple[ModelBlocks, Mapping[str, Collection[int]]]:
        """Return the blocks of the model, and the numbers of those missing by path of array."""

    def commit(self, path: str, record: BlockRecord) -> None:
        """Note that the data of a block were written. Called from one other thread."""


@dataclass(frozen=True, slots=True)
class ModelTask:
    """One model to record."""

    id: str
    """Its name in the population."""
    index: int
    """Its place in the population."""
    source: ModelSource
    """The model, or what makes it."""
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    """What the user said about it."""
    output_group: str | None = None
    """Name of its output group; None to name it after the shape of the output."""


@dataclass(frozen=True, slots=True)
class Recorder:
    """Records models, one after the other or several at once. Can be sent to other processes."""

    inputs: Inputs
    """What every model is shown."""
    adapters: AdapterChoice
    """How models are read."""
    reductions: Reductions
    """How states are made smaller before they are stored."""
    batch_size: int
    """Most samples that a model is shown at once."""
    threads: int
    """Threads of one operation, which may decide its last bits."""
    device: str | torch.device | None = None
    """Where models run; None to leave them where they are."""

    def __call__(
        self,
        task: ModelTask,
        ledger: Ledger,
        *,
        advance: Callable[[int], object] = lambda samples: None,
        model: Any = None,
    ) -> bool:
        """Record what is missing of one model.

        Parameters
        ----------
        task
            Which model, and where it belongs.
        ledger
            Says what is missing, and notes what was written.
        advance
            Called with the number of samples that were recorded since its last call.
        model
            What the source of the task made, if that is known.

        Returns
        -------
        bool
            Whether nothing is missing any more; False where the ledger is full.

        Raises
        ------
        DynamoError
            Recording failed; the message names the model. A foreign exception becomes a
            `CaptureError` with that exception as its cause.
        """
        try:
            if model is None:
                model = self.made(task.source)
            with _threads(self.threads), _on_device(model, self.device):
                return self._record(model, task, ledger, advance)
        except Exception as error:
            raise named_error(task.id, error) from error

    def made(self, source: ModelSource) -> Any:
        """Return the model that a source is or makes."""
        if isinstance(source, nn.Module) or self.adapters.supports(source):
            return source
        model = source()
        if model is None or isinstance(model, type):
            raise InvalidInput(
                f"expected a factory that returns a model; it returned {model!r}. Return an "
                "instance."
            )
        return model

    def describe(self, adapter: Adapter, model: Any, task: ModelTask) -> TrajectorySpec:
        """Return what the adapter will record of a model, before any reduction."""
        longest = np.argsort(-self.inputs.lengths, kind="stable")[:PROBE_SAMPLES]
        spec = adapter.describe(model, self.inputs.batch(longest))
        if task.output_group is not None:
            spec = replace(spec, output=replace(spec.output, group=task.output_group))
        return spec

    def _record(
        self, model: Any, task: ModelTask, ledger: Ledger, advance: Callable[[int], object]
    ) -> bool:
        adapter = self.adapters.of(model)
        spec = self.describe(adapter, model, task)
        stored = self.reductions.stored(spec)
        blocks, missing = ledger.begin(stored, adapter.fingerprint(model))
        run = ModelRun(self, adapter, model, spec, stored)
        reducers: dict[str, SiteReducer] = {}
        if any(missing.values()):
            reducers = site_reducers(
                spec, stored, blocks, missing, fit=run.fitted, commit=ledger.commit
            )
        batching = Batching.of(self.inputs.offsets, spec, self.batch_size)
        window = _Window(run, reducers, batching)
        assemblers = {
            name: Assembler(array, missing[array.layout.path])
            for name, array in _by_name(blocks).items()
        }
        declared: dict[str, SiteSpec | OutputSpec] = {
            blocks.sites[site.name].layout.path: site for site in stored.sites
        }
        declared[blocks.output.layout.path] = stored.output

        def write(array: ArrayBlocks, block: int, pieces: Sequence[NDArray[Any]]) -> None:
            path = array.layout.path
            for piece in pieces:
                if not are_finite(piece):
                    raise self._not_finite(array, block, pieces, declared[path])
            ledger.commit(path, array.write(block, pieces))

        needed = batching.needed(
            (array, declared[array.layout.path], missing[array.layout.path])
            for array in blocks.recorded
        )
        with Pump(write) as pump:
            for number, samples in enumerate(batching.windows):
                if needed[number]:
                    if ledger.full:
                        return False
                    for name, start, rows in window.record(samples):
                        for block, pieces in assemblers[name].put(start, rows):
                            pump.put(assemblers[name].blocks, block, pieces)
                advance(len(samples))
        return True

    def _not_finite(
        self,
        array: ArrayBlocks,
        block: int,
        pieces: Sequence[NDArray[Any]],
        declared: SiteSpec | OutputSpec,
    ) -> NonFiniteStates:
        row = array.bounds(block)[0]
        for piece in pieces:
            finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
            if not finite.all():
                row += int(np.argmin(finite))
                break
            row += len(piece)
        step: int | None = None
        sample = row
        if declared.axis == "time":
            every = getattr(declared, "every", 1)
            ends = np.cumsum(strided_rows(self.inputs.lengths, every))
            sample = int(np.searchsorted(ends, row, side="right"))
            begin = int(ends[sample - 1]) if sample else 0
            step = (row - begin) * every
        where = array.where.rpartition(" of model ")[0]
        return NonFiniteStates(not_finite(where, self.place(sample, step)))

    def place(self, sample: int, step: int | None) -> str:
        """Return what messages call a step of a sample."""
        at = "" if step is None else f", step {step}"
        return f"sample {self.inputs.sample_ids[sample]!r}{at}"


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
class _Window:
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
            for name, declared, values in self._reduced(chosen):
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

    def _reduced(
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
            yield site.name, stored, values.cpu().numpy()
        values = run.output(trajectory, lengths)
        yield OUTPUT, run.spec.output, values.cpu().numpy()


OUTPUT = ""
"""Stands for the output where arrays are named after their sites, which never have this name."""


def _by_name(blocks: ModelBlocks) -> dict[str, ArrayBlocks]:
    return {**blocks.sites, OUTPUT: blocks.output}


def named_error(model_id: str, error: BaseException) -> DynamoError:
    """Return the error with the model's name in front, of the same class if it is one of ours."""
    if isinstance(error, DynamoError):
        return type(error)(f"model {model_id!r}: {error}")
    return CaptureError(f"model {model_id!r}: {type(error).__name__}: {error}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    try:
        if count != before:
            torch.set_num_threads(count)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


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
