"""`capture`: from models and inputs to a population."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

from dynamo_plugin.errors import DynamoError, InvalidInput, StoreNotFound, suggest
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.recording.inputs import as_population_inputs
from dynamo_plugin.recording.metadata import Metadata, as_metadata
from dynamo_plugin.recording.recorder import ModelSource, ModelTask, Recorder, named_error
from dynamo_plugin.store import Population, PopulationWriter, StoreLike, open_population

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike
    from torch import Tensor

    from dynamo_plugin.registry.interfaces import Adapter
    from dynamo_plugin.types import JSON

__all__ = ["capture"]


def capture(
    models: Mapping[str, ModelSource],
    inputs: Any,
    store: StoreLike,
    *,
    metadata: Metadata | None = None,
    layers: Sequence[str] | None = None,
    adapter: str | Adapter | None = None,
    sample_ids: Sequence[str] | None = None,
    lengths: ArrayLike | Tensor | None = None,
    targets: Any = None,
    output_groups: Mapping[str, str] | str | None = None,
    vocabulary_size: int | None = None,
    batch_size: int = 64,
    executor: Executor | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    forward: Callable[[Any, Tensor, Tensor], Any] | None = None,
    output: str | int | None = None,
    progress: bool = True,
) -> Population:
    """Run every model on the same inputs and store its hidden states and outputs.

    Models are left as they were found: hooks, `training` flags, gradients and device.

    Parameters
    ----------
    models
        Mapping from id to a model, or to a factory that makes one. Factories are called one at a
        time (per worker), and what they made is let go before the next.
    inputs
        A tensor or array, (sample, time) ids or (sample, time, feature) numbers; a list of
        ragged sequences; a map-style Dataset; or `PopulationInputs`. See `as_population_inputs`,
        also for `sample_ids`, `lengths`, `targets` and `vocabulary_size`.
    store
        Path, fsspec URL or Zarr store, where nothing lies yet.
    metadata
        A DataFrame with one row per model, or a mapping from id to a mapping.
    layers
        Patterns over the paths of the modules to record; by default all that the adapter knows.
    adapter
        Registered name of an adapter, or an adapter; by default the last registered one that
        takes the model.
    output_groups
        Name of the output group of each model, or one name for all. By default models whose
        outputs have one shape are one group.
    batch_size
        Most samples that a model is shown at once.
    executor
        Any `concurrent.futures.Executor`; one task per model. Processes need factories that can
        be pickled and a store outside the memory of this process. The result does not depend on
        the executor.
    resume
        Go on with the capture that lies at `store`: complete models are kept, after a check that
        they are the same, the others are recorded.
    overwrite
        Delete the population that lies at `store` first.
    device
        Where models run; they are moved back afterwards. By default where they are.
    forward
        `forward(model, values, lengths)` calls a model in its own way.
    output
        Key, attribute or index of the output in what a model returns.
    progress
        Show a bar on stderr.

    Returns
    -------
    Population
        The complete population, opened for reading.

    Raises
    ------
    InvalidInput
        Models, inputs, metadata or other arguments do not fit, or not what is resumed.
    UnsupportedModel, CaptureError, UnknownName
        A model cannot be read; the message names it. Models recorded before it stay.
    NonFiniteStates
        A state or an output is NaN or infinite; names model, site, sample and step.
    StoreExists
        Something lies at `store`, and neither `resume` nor `overwrite` allows for it.

    Examples
    --------
    >>> import torch
    >>> models = {"a": torch.nn.GRU(2, 3, batch_first=True), "b": lambda: torch.nn.LSTM(2, 5)}
    >>> population = capture(models, torch.zeros(4, 6, 2), {}, progress=False)
    >>> population.ids, population.sites("b"), population.states("b").shape
    (('a', 'b'), ('lstm',), (24, 5))
    """
    sources = _checked_models(models)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidInput(f"batch_size must be a positive integer; got {batch_size!r}.")
    if resume and overwrite:
        raise InvalidInput("resume keeps what overwrite deletes; give one of them.")
    rows = as_metadata(metadata, tuple(sources))
    groups = _checked_groups(output_groups, tuple(sources))
    given = as_population_inputs(
        inputs,
        sample_ids=sample_ids,
        lengths=lengths,
        targets=targets,
        vocabulary_size=vocabulary_size,
    )
    wishes = {
        "layers": None if layers is None else layers if isinstance(layers, str) else list(layers),
        "forward": forward,
        "output": output,
    }
    options = {name: value for name, value in wishes.items() if value is not None}
    adapters = AdapterChoice(adapter, options)
    if executor is not None:
        _check_separate(sources, adapters, across=isinstance(executor, ProcessPoolExecutor))
    config = _config(adapters, options)
    writer, stored = None, {}
    if resume:
        try:
            writer = PopulationWriter.resume(store, given, config=config, models=list(sources))
            stored = writer.models()
        except StoreNotFound:
            pass  # nothing was begun: begin
    if writer is None:
        writer = PopulationWriter.create(
            store, given, config=config, models=list(sources), overwrite=overwrite
        )
    strangers = [model_id for model_id in stored if model_id not in sources]
    if strangers:
        raise InvalidInput(
            f"the store holds models that were not given: {', '.join(map(repr, strangers[:10]))}. "
            "Give them too, or capture into another store."
        )
    tasks = [
        ModelTask(
            id=model_id,
            index=index,
            source=source,
            metadata=rows[model_id],
            output_group=groups.get(model_id),
            stored=stored[model_id] if model_id in stored and stored[model_id].complete else None,
        )
        for index, (model_id, source) in enumerate(sources.items())
    ]
    recorder = Recorder(writer, given, adapters, batch_size, device)
    with tqdm(
        total=len(tasks) * len(given),
        desc="capture",
        unit="sample",
        file=sys.stderr,
        disable=not progress,
    ) as bar:
        if executor is None:
            for task in tasks:
                recorder(task, bar.update)
        else:
            _record_all(recorder, tasks, executor, bar.update)
    return open_population(store)


def _checked_models(models: Mapping[str, ModelSource]) -> dict[str, ModelSource]:
    if not isinstance(models, Mapping):
        raise InvalidInput(
            "models must be a mapping from id to a torch.nn.Module or to a factory; got "
            f"{type(models).__name__}. A list becomes one with "
            "{f'model-{i}': model for i, model in enumerate(models)}."
        )
    if not models:
        raise InvalidInput("models are empty; expected at least one.")
    for model_id, source in models.items():
        if not isinstance(model_id, str) or not model_id:
            raise InvalidInput(f"model ids must be texts that are not empty; got {model_id!r}.")
        if not callable(source):  # an nn.Module is callable, too
            raise InvalidInput(
                f"model {model_id!r} must be a torch.nn.Module or a factory that makes one; got "
                f"{type(source).__name__}."
            )
    return dict(models)


def _checked_groups(groups: Mapping[str, str] | str | None, ids: Sequence[str]) -> dict[str, str]:
    if groups is None:
        return {}
    named = dict.fromkeys(ids, groups) if isinstance(groups, str) else dict(groups)
    for model_id, group in named.items():
        if model_id not in ids:
            raise InvalidInput(
                f"output_groups name a model {model_id!r} that was not given. "
                f"{suggest(str(model_id), ids)}"
            )
        if not isinstance(group, str) or not group:
            raise InvalidInput(
                f"the output group of model {model_id!r} must be a text that is not empty; got "
                f"{group!r}."
            )
    return named


def _config(adapters: AdapterChoice, options: Mapping[str, Any]) -> dict[str, JSON]:
    """Return what decides how states are read, so that a resumed capture reads them alike."""
    chosen = adapters.adapter
    kind = type(chosen)
    forward = options.get("forward")
    return {
        "adapter": chosen
        if chosen is None or isinstance(chosen, str)
        else f"{kind.__module__}.{kind.__qualname__}",
        "layers": options.get("layers"),
        "forward": forward and getattr(forward, "__qualname__", type(forward).__qualname__),
        "output": options.get("output"),
    }


def _check_separate(
    sources: Mapping[str, ModelSource], adapters: AdapterChoice, *, across: bool
) -> None:
    """Refuse models that tasks running at once would share, or cannot be sent to."""
    owners: dict[int, str] = {}
    for model_id, source in sources.items():
        if isinstance(source, nn.Module):
            if across:
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
        elif across:
            _check_picklable(source, f"the factory of model {model_id!r}")
    if across:
        _check_picklable(adapters, "the adapter, or forward=,")


def _check_picklable(value: object, what: str) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:
        raise InvalidInput(
            f"{what} cannot be pickled for another process ({error}). Lambdas and functions "
            "inside functions cannot; move it to the top of a module, or use threads."
        ) from error


def _record_all(
    recorder: Recorder,
    tasks: Iterable[ModelTask],
    executor: Executor,
    advance: Callable[[int], object],
) -> None:
    """Run one task per model; at the first failure start no more, wait, and raise it."""
    if isinstance(executor, ProcessPoolExecutor):
        pickle.dumps(recorder.writer)  # raises where the store lives in this process's memory
    lock = threading.Lock()

    def advance_in_turn(samples: int) -> None:
        with lock:
            advance(samples)

    # Elsewhere than in threads, the bar moves when a model is done.
    threads = isinstance(executor, ThreadPoolExecutor)
    futures: dict[Future[None], ModelTask] = {}
    try:
        for task in tasks:
            arguments = (task, advance_in_turn) if threads else (task,)
            futures[executor.submit(recorder, *arguments)] = task
        for future in as_completed(futures):
            try:
                future.result()
            except DynamoError:
                raise
            except Exception as error:
                raise named_error(futures[future].id, error) from error
            if not threads:
                advance_in_turn(len(recorder.inputs))
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise
