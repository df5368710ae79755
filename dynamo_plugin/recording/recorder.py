"""Record one model: run it window by window, and have what it did written block by block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dynamo_plugin.errors import CaptureError, DynamoError, InvalidInput, NonFiniteStates
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.recording.batching import Batching
from dynamo_plugin.recording.fitting import site_reducers
from dynamo_plugin.recording.model_run import OUTPUT, ModelRun, Window
from dynamo_plugin.recording.options import option_as_json
from dynamo_plugin.recording.pump import Pump
from dynamo_plugin.recording.reducing import Reductions, SiteReducer, not_finite
from dynamo_plugin.registry.copying import recycling
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
        TrajectorySpec,
    )

__all__ = [
    "Inputs",
    "Ledger",
    "ModelSource",
    "ModelTask",
    "Recorder",
    "named_error",
]

ModelSource: TypeAlias = "nn.Module | Callable[[], Any]"
"""A model, or a factory that makes one when it is called without arguments."""

_MAKING = threading.Lock()
"""Factories draw from torch's one random stream, so that threads must call them in turn."""

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
            with self.ready(model), recycling():
                return self._record(model, task, ledger, advance)
        except Exception as error:
            raise named_error(task.id, error) from error

    def made(self, source: ModelSource) -> Any:
        """Return the model that a source is or makes."""
        if isinstance(source, nn.Module) or self.adapters.supports(source):
            return source
        with _MAKING:
            model = source()
        if model is None or isinstance(model, type):
            raise InvalidInput(
                f"expected a factory that returns a model; it returned {model!r}. Return an "
                "instance."
            )
        return model

    @contextmanager
    def ready(self, model: Any) -> Iterator[None]:
        """Have the model on its device and the threads of operations set; undone afterwards."""
        with _threads(self.threads), _on_device(model, self.device):
            yield

    def describe(self, adapter: Adapter, model: Any, task: ModelTask) -> TrajectorySpec:
        """Return what the adapter will record of a model, before any reduction."""
        longest = np.argsort(-self.inputs.lengths, kind="stable")[:PROBE_SAMPLES]
        spec = adapter.describe(model, self.inputs.batch(longest))
        if entry := self.adapters.entry_of(model):
            said = {name: option_as_json(value) for name, value in entry.options.items()}
            spec = replace(spec, options={**spec.options, "registered": said})
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
        window = Window(run, reducers, batching)
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
        first = batching.windows[0]
        batch_bytes = sum(
            array.layout.row_bytes
            * batching.count_rows(first, each.axis, getattr(each, "every", 1))
            for array in blocks.recorded
            for each in (declared[array.layout.path],)
        )
        with Pump(write, batch_bytes=batch_bytes) as pump:
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
