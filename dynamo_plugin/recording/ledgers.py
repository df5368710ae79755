"""Who notes what was written: the coordinator at once, or a worker for the coordinator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynamo_plugin.errors import CaptureError, StoreExists
from dynamo_plugin.store import BlockRecord, ModelBlocks, ModelWriter, Plan, PopulationWriter

if TYPE_CHECKING:
    from dynamo_plugin.recording.recorder import ModelTask, Recorder
    from dynamo_plugin.types import TrajectorySpec

__all__ = ["CoordinatorLedger", "Recorded", "record_elsewhere"]

SPAN_BYTES = 256 * 2**20
"""What a worker writes before it reports, so that a capture that is killed loses no more."""


class CoordinatorLedger:
    """Commits the blocks of one model as soon as they are written.

    Parameters
    ----------
    writer
        Of the population.
    task
        The model.
    allow_zero
        Whether a site may be zero throughout.
    """

    full = False

    def __init__(self, writer: PopulationWriter, task: ModelTask, *, allow_zero: bool) -> None:
        self._writer = writer
        self._task = task
        self._allow_zero = allow_zero
        self._model: ModelWriter | None = None

    def begin(
        self, spec: TrajectorySpec, model_hash: str
    ) -> tuple[ModelBlocks, Mapping[str, set[int]]]:
        """Return the blocks of the model and which of them are missing; see `Ledger.begin`."""
        return self._begin(spec, model_hash, rewritten=None)

    def _begin(
        self, spec: TrajectorySpec, model_hash: str, *, rewritten: Iterable[tuple[str, int]] | None
    ) -> tuple[ModelBlocks, Mapping[str, set[int]]]:
        task = self._task
        try:
            self._model = self._writer.begin(
                task.id,
                spec,
                metadata=task.metadata,
                model_hash=model_hash,
                index=task.index,
                rewritten=rewritten,
            )
        except StoreExists:  # complete, and the same
            blocks = self._writer.plan.blocks(task.id, spec, model_hash)
            return blocks, {array.layout.path: set() for array in blocks.arrays}
        # a copy: blocks are taken off the original as they are committed
        return self._model.blocks, {p: set(blocks) for p, blocks in self._model.missing.items()}

    def commit(self, path: str, record: BlockRecord) -> None:
        """Make a block count."""
        assert self._model is not None
        self._model.commit(path, record)

    def take(self, recorded: Recorded) -> None:
        """Commit what a worker wrote."""
        if self._model is None:
            rewritten = [(path, record.block) for path, record in recorded.records]
            self._begin(recorded.spec, recorded.model_hash, rewritten=rewritten)
        for path, record in recorded.records:
            self.commit(path, record)

    def finish(self) -> None:
        """Declare the model complete.

        Raises
        ------
        CaptureError
            A site is zero throughout.
        """
        if self._model is None:
            return
        if not self._allow_zero and (dead := self._model.zero_sites()):
            raise CaptureError(
                f"model {self._task.id!r}: site {', '.join(map(repr, dead))} is zero at every "
                "step of every sample; expected states that vary. A layer is dead or its output "
                "was overwritten: choose other sites with layers=, leave the model out, or accept "
                "it with allow_zero=True and resume=True."
            )
        self._model.finish()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a worker did for one model."""

    spec: TrajectorySpec
    """What is stored of the model."""
    model_hash: str
    """Of the model."""
    records: list[tuple[str, BlockRecord]]
    """Path of the array and record of every block that was written, none of them committed."""
    done: bool
    """Whether nothing else is missing."""


@dataclass(slots=True)
class _WorkerLedger:
    """Collects records; whether a block counts is up to the coordinator."""

    plan: Plan
    task: ModelTask
    records: list[tuple[str, BlockRecord]] = field(default_factory=list)
    size: int = 0
    begun: tuple[TrajectorySpec, str] | None = None

    @property
    def full(self) -> bool:
        return self.size >= SPAN_BYTES

    def begin(
        self, spec: TrajectorySpec, model_hash: str
    ) -> tuple[ModelBlocks, Mapping[str, set[int]]]:
        self.begun = spec, model_hash
        task = self.task
        self.plan.begun(
            task.id, spec, metadata=task.metadata, model_hash=model_hash, index=task.index
        )
        blocks = self.plan.blocks(task.id, spec, model_hash)
        return blocks, self.plan.missing_of(blocks)

    def commit(self, path: str, record: BlockRecord) -> None:
        self.records.append((path, record))
        self.size += record.size


def record_elsewhere(recorder: Recorder, plan: Plan, task: ModelTask) -> Recorded:
    """Write what is missing of one model, or as much as should be reported at once.

    Runs in a worker, which holds no lease and commits nothing.
    """
    ledger = _WorkerLedger(plan, task)
    done = recorder(task, ledger)
    assert ledger.begun is not None
    return Recorded(*ledger.begun, ledger.records, done)
