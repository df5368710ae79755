"""Running the tasks of a capture: here, or on an executor."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from typing import TYPE_CHECKING

from torch import nn

from dynamo_plugin.errors import CaptureError, DynamoError, InvalidInput
from dynamo_plugin.recording.ledgers import CoordinatorLedger, Recorded, record_elsewhere
from dynamo_plugin.recording.recorder import named_error

if TYPE_CHECKING:
    from dynamo_plugin.recording.adapters import AdapterChoice
    from dynamo_plugin.recording.recorder import ModelSource, ModelTask, Recorder
    from dynamo_plugin.store import PopulationWriter

__all__ = ["check_separate", "leaves_process", "run_here", "run_in_processes", "run_on_executor"]

Failed = Callable[[DynamoError], None]
"""Takes what one model raised: raises it, or keeps it so that the others go on."""

_OTHER_PROCESSES = {"dask", "distributed", "executorlib", "joblib", "loky", "mpi4py", "parsl"}
"""Packages whose executors run tasks in other processes."""

_SUBMITTED_AT_ONCE = 64
_CRASHES_WITHOUT_PROGRESS = 3


def run_here(
    recorder: Recorder,
    writer: PopulationWriter,
    tasks: Sequence[ModelTask],
    *,
    allow_zero: bool,
    advance: Callable[[int], object],
    failed: Failed,
) -> None:
    """Record one model after the other in this thread."""
    for task in tasks:
        ledger = CoordinatorLedger(writer, task, allow_zero=allow_zero)
        try:
            recorder(task, ledger, advance=advance)
            ledger.finish()
        except DynamoError as error:
            failed(error)


def run_on_executor(
    recorder: Recorder,
    writer: PopulationWriter,
    tasks: Sequence[ModelTask],
    executor: Executor,
    *,
    allow_zero: bool,
    advance: Callable[[int], object],
    failed: Failed,
) -> None:
    """Record several models at once, one task per model; what they wrote is committed here.

    Raises
    ------
    CaptureError
        The executor broke, for example because a worker was killed.
    """
    run = _Run(recorder, writer, tasks, allow_zero=allow_zero, advance=advance, failed=failed)
    try:
        run.on(executor)
    except BrokenExecutor as error:
        raise CaptureError(
            f"a worker died while models were recorded, among them {run.listed()}: {error} It may "
            "have been killed, or run out of memory. What was committed is safe; go on with "
            "resume=True."
        ) from error


def run_in_processes(
    recorder: Recorder,
    writer: PopulationWriter,
    tasks: Sequence[ModelTask],
    workers: int,
    *,
    allow_zero: bool,
    advance: Callable[[int], object],
    failed: Failed,
) -> None:
    """Record in so many processes of our own; one that dies is replaced.

    Raises
    ------
    CaptureError
        Processes keep dying before they have recorded anything.
    """
    run = _Run(recorder, writer, tasks, allow_zero=allow_zero, advance=advance, failed=failed)
    crashes, reports = 0, -1
    while run.waiting:
        try:
            with ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_end_with_parent,
            ) as pool:
                run.on(pool)
        except BrokenExecutor as error:
            crashes = crashes + 1 if run.reports == reports else 1
            reports = run.reports
            if crashes >= _CRASHES_WITHOUT_PROGRESS:
                raise CaptureError(
                    f"worker processes died {crashes} times in a row while they recorded models, "
                    f"among them {run.listed()}. They may have been killed, or run out of memory: "
                    "try fewer workers or a smaller batch_size. What was committed is safe; go on "
                    "with resume=True (--resume)."
                ) from error


def _end_with_parent() -> None:
    """Have this worker end when the process that started it is killed, which pools do not see to.

    It would wait for tasks for ever, with its memory and its share of an accelerator.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="dynamo-parent", daemon=True).start()


class _Run:
    """Tasks that still have to be recorded, and the ledger of each."""

    def __init__(
        self,
        recorder: Recorder,
        writer: PopulationWriter,
        tasks: Sequence[ModelTask],
        *,
        allow_zero: bool,
        advance: Callable[[int], object],
        failed: Failed,
    ) -> None:
        self.waiting = deque(tasks)
        """What is not finished."""
        self.reports = 0
        """How often a worker reported something."""
        self._recorder = recorder
        self._writer = writer
        self._advance = advance
        self._failed = failed
        self._ledgers = {
            task.id: CoordinatorLedger(writer, task, allow_zero=allow_zero) for task in tasks
        }

    def on(self, executor: Executor) -> None:
        """Record all that is waiting; raises `BrokenExecutor` where the executor breaks."""
        running: dict[Future[Recorded], ModelTask] = {}
        try:
            while self.waiting or running:
                while self.waiting and len(running) < _SUBMITTED_AT_ONCE:
                    task = self.waiting[0]
                    future = executor.submit(
                        record_elsewhere, self._recorder, self._writer.plan, task
                    )
                    running[future] = self.waiting.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                broken = [future for future in done if _is_broken(future)]
                for future in done.difference(broken):  # what was done counts in any case
                    self._take(running.pop(future), future)
                if broken:
                    broken[0].result()
        except BaseException as error:
            for future in running:
                future.cancel()
            if not isinstance(error, BrokenExecutor):
                wait(running)
            self.waiting.extendleft(running.values())
            raise

    def _take(self, task: ModelTask, future: Future[Recorded]) -> None:
        """Commit what a worker reports."""
        ledger = self._ledgers[task.id]
        try:
            recorded = future.result()
        except DynamoError as error:
            self._failed(error)
        except Exception as error:
            self._failed(named_error(task.id, error))
        else:
            self.reports += 1
            try:
                ledger.take(recorded)
                if recorded.done:
                    ledger.finish()
                    self._advance(len(self._writer.plan.lengths))
                else:
                    self.waiting.appendleft(task)
            except DynamoError as error:
                self._failed(error)

    def listed(self) -> str:
        """Return the first models that are not finished, for messages."""
        names = [repr(task.id) for task in self.waiting]
        return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _is_broken(future: Future[Recorded]) -> bool:
    return not future.cancelled() and isinstance(future.exception(), BrokenExecutor)


def leaves_process(executor: Executor | None) -> bool:
    """Return whether an executor runs tasks outside this process."""
    package = type(executor).__module__.partition(".")[0]
    return isinstance(executor, ProcessPoolExecutor) or package in _OTHER_PROCESSES


def check_separate(
    sources: Mapping[str, ModelSource], adapters: AdapterChoice, *, elsewhere: bool
) -> None:
    """Refuse models that tasks running at once would share, or cannot be sent to."""
    owners: dict[int, str] = {}
    for model_id, source in sources.items():
        if isinstance(source, nn.Module):
            if elsewhere:
                raise InvalidInput(
                    f"model {model_id!r} is a built {type(source).__name__}; processes need a "
                    "factory that can be pickled, such as a function of a module or a "
                    "functools.partial of one. Use threads for models that are built already."
                )
            for module in source.modules():
                owner = owners.setdefault(id(module), model_id)
                if owner != model_id:
                    raise InvalidInput(
                        f"models {owner!r} and {model_id!r} share a {type(module).__name__}, "
                        "which cannot run in two tasks at once; leave executor out."
                    )
        elif elsewhere:
            _check_picklable(source, f"the factory of model {model_id!r}")
    if elsewhere:
        _check_picklable(adapters, "the adapter, or forward=,")


def _check_picklable(value: object, what: str) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:
        raise InvalidInput(
            f"{what} cannot be pickled for another process ({error}). Lambdas and functions "
            "inside functions cannot; move it to the top of a module, or use threads."
        ) from error
