"""`inspect_models`: what a capture would record, weigh and take, without recording anything."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dynamo_plugin.errors import DynamoError
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.recording.batching import Batching
from dynamo_plugin.recording.capturing import (
    check_positive,
    checked_groups,
    checked_models,
    options_of_adapter,
)
from dynamo_plugin.recording.factories import ConfiguredModel
from dynamo_plugin.recording.inputs import as_population_inputs
from dynamo_plugin.recording.inspection import ArrayInspection, InspectReport, ModelInspection
from dynamo_plugin.recording.model_run import ModelRun, Window
from dynamo_plugin.recording.recorder import ModelTask, Recorder, named_error
from dynamo_plugin.recording.reducing import Reductions, SiteReducer
from dynamo_plugin.recording.reduction import as_rules
from dynamo_plugin.recording.sampling import chosen_samples
from dynamo_plugin.store import Weight, random_projection, weigh_inputs, weigh_model

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

    from dynamo_plugin.recording.recorder import ModelSource
    from dynamo_plugin.recording.reduction import Reduce
    from dynamo_plugin.registry.interfaces import Adapter
    from dynamo_plugin.store import StoreLike
    from dynamo_plugin.types import TrajectorySpec

__all__ = ["inspect_models"]

LOOKED_AT = 8
"""Up to so many models, all are looked at; of more, one of each kind."""


def inspect_models(
    models: Mapping[str, ModelSource],
    inputs: Any,
    store: StoreLike | None = None,
    *,
    layers: Sequence[str] | Mapping[str, Any] | None = None,
    adapter: str | Adapter | None = None,
    adapter_options: Mapping[str, Any] | None = None,
    reduce: Reduce | None = None,
    sample_ids: Sequence[str] | None = None,
    lengths: ArrayLike | Tensor | None = None,
    targets: Any = None,
    samples: int | ArrayLike | None = None,
    sample_seed: int = 0,
    output_groups: Mapping[str, str] | str | None = None,
    vocabulary_size: int | None = None,
    has_time: bool | None = None,
    batch_size: int = 64,
    workers: int = 1,
    threads: int | None = None,
    device: str | torch.device | None = None,
    forward: Callable[[Any, Tensor, Tensor], Any] | None = None,
    output: str | int | None = None,
    every_model: bool = False,
) -> InspectReport:
    """Say what a capture would record, weigh and take. Nothing is written.

    Up to 8 models are all made, described, and run on one batch; of more, one of each kind: of
    each factory (with its arguments, where a file names them), or class. The others are taken to
    be like it. A model that cannot be recorded becomes a line of the report.

    Parameters
    ----------
    models, inputs
        As in `capture`.
    store
        Where the population would go, to compare with the room there.
    layers, adapter, adapter_options, reduce, sample_ids, lengths, targets, samples, sample_seed
        As in `capture`.
    output_groups, vocabulary_size, has_time, batch_size, threads, device, forward, output
        As in `capture`.
    workers
        Processes that the estimate of time reckons with.
    every_model
        Look at every model.

    Raises
    ------
    InvalidInput
        Models, inputs or other arguments do not fit.
    UnknownName
        There is no such adapter.

    Examples
    --------
    >>> import torch
    >>> models = {"a": torch.nn.GRU(2, 3, batch_first=True)}
    >>> report = inspect_models(models, torch.zeros(4, 6, 2), reduce={"*": {"every": 2}})
    >>> report.to_dataframe()[["model", "adapter", "name", "shape", "bytes_per_sample"]]
      model          adapter              name shape  bytes_per_sample
    0     a  torch_recurrent               gru  (3,)              36.0
    1     a  torch_recurrent  output3-per-step  (3,)              72.0
    """
    sources = checked_models(models)
    check_positive(batch_size=batch_size, workers=workers, threads=threads)
    groups = checked_groups(output_groups, tuple(sources))
    given = as_population_inputs(
        inputs,
        sample_ids=sample_ids,
        lengths=lengths,
        targets=targets,
        vocabulary_size=vocabulary_size,
        has_time=has_time,
    )
    numbers, _ = chosen_samples(samples, len(given), sample_seed)
    if numbers is not None:
        given = given.take(numbers)
    options = options_of_adapter(adapter_options, layers, forward, output)
    recorder = Recorder(
        given,
        AdapterChoice(adapter, options),
        Reductions(as_rules(reduce)),
        batch_size,
        torch.get_num_threads() if threads is None else threads,
        device,
    )
    kinds = {model_id: _kind(source) for model_id, source in sources.items()}
    counts = Counter(kinds.values())
    alone = every_model or len(sources) <= LOOKED_AT
    found: list[ModelInspection] = []
    seen: set[Hashable] = set()
    for index, (model_id, source) in enumerate(sources.items()):
        if not alone and kinds[model_id] in seen:
            continue
        seen.add(kinds[model_id])
        task = ModelTask(model_id, index, source, output_group=groups.get(model_id))
        found.append(_inspected(recorder, task, 1 if alone else counts[kinds[model_id]]))
    location, free = _room(store)
    return InspectReport(
        tuple(found),
        len(sources),
        len(given),
        int(given.lengths.sum()),
        weigh_inputs(given),
        workers,
        location,
        free,
    )


def _kind(source: ModelSource) -> Hashable:
    """Return what models that are made alike have in common."""
    if isinstance(source, nn.Module):
        return id(type(source))
    if isinstance(source, ConfiguredModel):
        return source.factory, repr(sorted(source.arguments.items()))
    made: Any = source
    while isinstance(made, functools.partial):
        made = made.func
    code: Hashable = getattr(made, "__code__", None)  # lambdas of one loop share theirs
    return id(made) if code is None else code


def _inspected(recorder: Recorder, task: ModelTask, models: int) -> ModelInspection:
    """Make a model, describe it, and run one batch."""
    name: str | None = None
    try:
        started = time.perf_counter()
        model = recorder.made(task.source)
        with recorder.ready(model):
            adapter = recorder.adapters.of(model)
            spec = recorder.describe(adapter, model, task)
            name = spec.adapter
            stored = recorder.reductions.stored(spec)
            seconds = time.perf_counter() - started
            seconds += _running_time(ModelRun(recorder, adapter, model, spec, stored))
        lengths = recorder.inputs.lengths
        weight, rows = weigh_model(stored, lengths, batch_size=recorder.batch_size)
    except Exception as error:
        told = error if isinstance(error, DynamoError) else named_error(task.id, error)
        said = str(told).removeprefix(f"model {task.id!r}: ")
        return ModelInspection(task.id, models, name, (), Weight(0, 0), None, said)
    return ModelInspection(
        task.id, models, name, _arrays(spec, stored, rows, len(lengths)), weight, seconds
    )


def _running_time(run: ModelRun) -> float:
    """Return about how long recording takes, from the time of the first batch."""
    recorder = run.recorder
    lengths = recorder.inputs.lengths
    batching = Batching.of(recorder.inputs.offsets, run.spec, recorder.batch_size)
    reducers: dict[str, SiteReducer] = {}
    fitted = 0
    for site, kept in zip(run.spec.sites, run.stored.sites, strict=True):
        reduction = kept.reduction or {}
        # principal components, not known yet, take as long as signs
        projection = random_projection(kept) if reduction.get("projection") else None
        reducers[site.name] = SiteReducer(site, kept, projection)
        if isinstance(samples := reduction.get("pca_samples"), int):
            fitted = max(fitted, min(samples, len(lengths)))
    window = Window(run, reducers, batching)
    batches = (
        batch + samples.start
        for samples in batching.windows
        for batch in batching.batches(samples, ragged=run.ragged)
    )
    first = next(batches)
    started = time.perf_counter()
    for _ in window.reduced(first):
        pass
    seconds = time.perf_counter() - started
    measured = _padded_steps(lengths, first)
    steps = measured + sum(_padded_steps(lengths, batch) for batch in batches)
    return seconds * steps / measured * (1 + fitted / len(lengths))


def _padded_steps(lengths: np.ndarray[Any, np.dtype[np.int64]], batch: Any) -> int:
    return len(batch) * int(lengths[batch].max())


def _arrays(
    spec: TrajectorySpec, stored: TrajectorySpec, rows: Mapping[str, int], samples: int
) -> tuple[ArrayInspection, ...]:
    found = [
        ArrayInspection(
            "site",
            site.name,
            kept.shape,
            kept.dtype,
            kept.axis,
            kept.every,
            site.shape,
            kept.source_dtype or site.dtype,
            rows[site.name] / samples,
        )
        for site, kept in zip(spec.sites, stored.sites, strict=True)
    ]
    output = spec.output
    last = ArrayInspection(
        "output",
        output.group,
        output.shape,
        output.dtype,
        output.axis,
        1,
        output.shape,
        output.dtype,
        rows[""] / samples,
    )
    return (*found, last)


def _room(store: StoreLike | None) -> tuple[str | None, int | None]:
    """Return what messages call a place, and how much room there is on a local disk."""
    if not isinstance(store, str | os.PathLike):
        return None if store is None else type(store).__name__, None
    text = os.fspath(store)
    if "://" in text or "::" in text:
        return text, None
    place = Path(text).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return text, shutil.disk_usage(place).free
