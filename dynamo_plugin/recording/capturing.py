"""`capture`: from models and inputs to a population."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm import tqdm

from dynamo_plugin.errors import (
    CaptureError,
    DynamoError,
    InvalidInput,
    StoreNotFound,
    suggest,
)
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.recording.inputs import as_population_inputs
from dynamo_plugin.recording.metadata import Metadata, as_metadata
from dynamo_plugin.recording.options import option_as_json
from dynamo_plugin.recording.recorder import ModelSource, ModelTask, Recorder
from dynamo_plugin.recording.reducing import Reductions
from dynamo_plugin.recording.reduction import Reduce, as_rules, rules_as_json
from dynamo_plugin.recording.running import (
    check_separate,
    leaves_process,
    run_here,
    run_in_processes,
    run_on_executor,
)
from dynamo_plugin.recording.sampling import chosen_samples
from dynamo_plugin.registry.copying import recycling
from dynamo_plugin.store import (
    Population,
    PopulationInputs,
    PopulationWriter,
    Share,
    StoredInputs,
    StoreLike,
    open_population,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

    from dynamo_plugin.registry.interfaces import Adapter
    from dynamo_plugin.types import JSON

__all__ = [
    "capture",
    "check_positive",
    "checked_groups",
    "checked_models",
    "config_of",
    "options_of_adapter",
    "refuse_autocast",
]


def capture(
    models: Mapping[str, ModelSource],
    inputs: Any,
    store: StoreLike,
    *,
    metadata: Metadata | None = None,
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
    executor: Executor | None = None,
    workers: int = 1,
    share: Share | tuple[int, int] | None = None,
    threads: int | None = None,
    resume: bool = False,
    repair: bool = False,
    overwrite: bool = False,
    on_error: Literal["raise", "continue"] = "raise",
    allow_zero: bool = False,
    device: str | torch.device | None = None,
    forward: Callable[[Any, Tensor, Tensor], Any] | None = None,
    output: str | int | None = None,
    progress: bool = True,
) -> Population:
    """Run every model on the same inputs and store its hidden states and outputs.

    Models are left as they were found: hooks, `training` flags, gradients and device. Writing
    overlaps computing. Beside interpreter, one model and one forward pass of a batch, memory holds
    the inputs (nothing, where they are a memory map), one batch of states, as many that wait to be
    written (16 to 64 MiB), memory for the next ones (at most 64 MiB) and, where samples differ in
    length, one window of 64 MiB and one block of some 4 MiB per site; that does not grow with the
    number of samples or models.

    Parameters
    ----------
    models
        Mapping from id to a model, or to a factory that makes one. Factories are called one at a
        time (per process), and what they made is let go before the next.
    inputs
        A tensor or array, (sample, time) ids, (sample, time, feature) numbers, or arrays without
        time such as images; a list of ragged sequences or of arrays; a map-style Dataset; or
        `PopulationInputs`. See `as_population_inputs`, also for `sample_ids`, `lengths`,
        `targets`, `vocabulary_size` and `has_time`.
    store
        Path, fsspec URL or Zarr store, where nothing lies yet. Credentials and endpoint of object
        storage come from the environment, or with
        `zarr.storage.FsspecStore.from_url(url, storage_options={...})`.
    metadata
        A DataFrame with one row per model, or a mapping from id to a mapping.
    layers
        Patterns over the paths of the modules to record, or a mapping from patterns to what to
        take of a nested output; by default all that the adapter knows.
    adapter
        Registered name of an adapter, or an adapter; by default the last registered one that
        takes the model.
    adapter_options
        Further keyword arguments of the adapter.
    reduce
        From patterns over the names of sites, as of `fnmatch`, to a `Reduction` or a mapping of
        its fields: what is done to states before they are stored. The first pattern that matches
        a site counts. Principal components are fitted for each model before its states are
        recorded, and stored with it.
    samples
        So many of the inputs, drawn at random, or their numbers: only these are shown and stored.
        They keep their ids. A drawn part keeps the order of the inputs.
    sample_seed
        Of that draw, which is the same on every machine.
    output_groups
        Name of the output group of each model, or one name for all. By default models whose
        outputs have one shape are one group.
    batch_size
        Most samples that a model is shown at once.
    executor
        Any `concurrent.futures.Executor`, also Dask's; one task per model. Executors other than
        threads need factories that can be pickled and a store outside the memory of this process.
        The result does not depend on the executor.
    workers
        Processes to start for this capture. One that dies is replaced.
    share
        (index, count): record only every `count`-th model, from the `index`-th on, beside the
        writers of the other shares, as in a job array. Whoever comes first begins the population.
    threads
        Threads of one operation, on which its last bits may depend; by default those of this
        process, or of the capture that is resumed.
    resume
        Go on with the capture that lies at `store`: what was committed is kept, after a check that
        models, inputs and configuration are the same, and the result is, bit for bit, that of an
        uninterrupted capture.
    repair
        As `resume`, and check every byte that is there: what is damaged is recorded again, and
        blocks that belong to nothing are deleted.
    overwrite
        Delete the population that lies at `store` first.
    on_error
        `raise` stops at the first model that fails; `continue` records the others and then raises
        one error that lists all failures.
    allow_zero
        Accept sites that are zero at every step of every sample.
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
        A model cannot be read, or a pattern matches none of its sites; the message names it.
        Models recorded before it stay.
    NonFiniteStates
        A state or an output is NaN, infinite, or too large for the dtype that `reduce` asks for;
        names model, site, sample and step.
    StoreExists
        Something lies at `store`, and neither `resume` nor `overwrite` allows for it.
    StoreLocked
        Another writer is at work there.
    StoreError
        The storage failed, for example because it is full. What was committed stays.

    Examples
    --------
    >>> import torch
    >>> models = {"a": torch.nn.GRU(2, 3, batch_first=True), "b": lambda: torch.nn.LSTM(2, 5)}
    >>> population = capture(models, torch.zeros(4, 6, 2), {}, progress=False)
    >>> population.ids, population.sites("b"), population.states("b").shape
    (('a', 'b'), ('lstm',), (24, 5))
    """
    sources = checked_models(models)
    check_positive(batch_size=batch_size, workers=workers, threads=threads)
    if on_error not in ("raise", "continue"):
        raise InvalidInput(f"on_error must be 'raise' or 'continue'; got {on_error!r}.")
    part = _as_share(share)
    if (resume or repair) and overwrite:
        raise InvalidInput("resume and repair keep what overwrite deletes; give one of them.")
    if part is not None and (overwrite or repair):
        raise InvalidInput(
            "a share of the models is recorded beside others, so that it can neither overwrite nor "
            "repair; do that without share first."
        )
    if executor is not None and workers > 1:
        raise InvalidInput("executor and workers both say where models run; give one of them.")
    refuse_autocast()
    rows = as_metadata(metadata, tuple(sources))
    groups = checked_groups(output_groups, tuple(sources))
    given = as_population_inputs(
        inputs,
        sample_ids=sample_ids,
        lengths=lengths,
        targets=targets,
        vocabulary_size=vocabulary_size,
        has_time=has_time,
    )
    numbers, subset = chosen_samples(samples, len(given), sample_seed)
    if numbers is not None:
        given = given.take(numbers)
    rules = as_rules(reduce)
    options = options_of_adapter(adapter_options, layers, forward, output)
    adapters = AdapterChoice(adapter, options)
    elsewhere = workers > 1 or leaves_process(executor)
    if executor is not None or elsewhere:
        check_separate(sources, adapters, elsewhere=elsewhere)
    config = config_of(adapters, options) | {
        "reduce": rules_as_json(rules),
        "samples": subset,
        "batch_size": batch_size,
        "device": None if device is None else str(device),
    }
    writer, threads = _opened(
        store,
        given,
        config,
        list(sources),
        share=part,
        threads=threads,
        resume=resume or repair,
        repair=repair,
        overwrite=overwrite,
    )
    failures: list[DynamoError] = []
    with writer, recycling():  # from one model to the next
        _check_strangers(writer, sources)
        tasks = [
            ModelTask(model_id, index, source, rows[model_id], groups.get(model_id))
            for index, (model_id, source) in enumerate(sources.items())
        ]
        if writer.share is not None:
            tasks = tasks[writer.share.index :: writer.share.count]
        seen = StoredInputs(writer.plan.location) if elsewhere else given
        recorder = Recorder(seen, adapters, Reductions(rules), batch_size, threads, device)
        with tqdm(
            total=len(tasks) * len(given),
            desc="capture",
            unit="sample",
            file=sys.stderr,
            disable=not progress,
        ) as bar:
            run: Callable[..., None] = run_here
            if executor is not None:
                run = partial(run_on_executor, executor=executor)
            elif workers > 1:
                run = partial(run_in_processes, workers=workers)
            run(
                recorder=recorder,
                writer=writer,
                tasks=tasks,
                allow_zero=allow_zero,
                advance=bar.update,
                failed=failures.append if on_error == "continue" else _raise,
            )
    if failures:
        raise _summary(failures, len(tasks))
    return open_population(store, allow_incomplete=writer.share is not None)


def _raise(error: DynamoError) -> None:
    raise error


def _summary(failures: Sequence[DynamoError], models: int) -> DynamoError:
    """Return one error for all models that failed."""
    if len(failures) == 1:
        return failures[0]
    lines = "\n".join(f"  {failure}" for failure in failures)
    return CaptureError(
        f"{len(failures)} of {models} models could not be recorded; the others are complete. Mend "
        f"them and go on with resume=True, or open the population with allow_incomplete=True:\n"
        f"{lines}"
    )


def check_positive(**values: int | None) -> None:
    """Refuse options that are no positive integers; `threads` may be None."""
    for name, value in values.items():
        if value is None and name == "threads":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name} must be a positive integer; got {value!r}.")


def _as_share(share: Share | tuple[int, int] | None) -> Share | None:
    if share is None or isinstance(share, Share):
        return share
    if isinstance(share, tuple | list) and [type(part) for part in share] == [int, int]:
        return Share(*share)
    raise InvalidInput(f"share must be (index, count), two integers; got {share!r}.")


def refuse_autocast() -> None:
    """Raise `InvalidInput` inside of autocast."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if any(torch.is_autocast_enabled(kind) for kind in kinds):
        raise InvalidInput(
            "this call is inside torch.autocast, which is not recorded and which other "
            "processes would not see. Call it outside; models may use autocast in their forward, "
            "or give forward= that does."
        )


def options_of_adapter(
    given: Mapping[str, Any] | None,
    layers: Sequence[str] | Mapping[str, Any] | None,
    forward: Callable[..., Any] | None,
    output: str | int | None,
) -> dict[str, Any]:
    """Return the keyword arguments with which adapters are built."""
    options = dict(given or {})
    if layers is not None:
        keep = isinstance(layers, str | Mapping)
        options["layers"] = layers if keep else list(layers)
    if forward is not None:
        options["forward"] = forward
    if output is not None:
        options["output"] = output
    return options


def _opened(
    store: StoreLike,
    inputs: PopulationInputs,
    config: dict[str, JSON],
    models: list[str],
    *,
    share: Share | None,
    threads: int | None,
    resume: bool,
    repair: bool,
    overwrite: bool,
) -> tuple[PopulationWriter, int]:
    """Begin a population or go on with one; also return the threads of one operation."""
    begun = None
    if resume or share is not None:
        begun = PopulationWriter.config_of(store)
    if threads is None:
        found = (begun or {}).get("threads")
        threads = found if type(found) is int else torch.get_num_threads()
    config = config | {"threads": threads}
    if share is not None:
        writer = PopulationWriter.join(store, inputs, config=config, models=models, share=share)
        return writer, threads
    if resume:
        try:
            writer = PopulationWriter.resume(
                store, inputs, config=config, models=models, repair=repair
            )
            return writer, threads
        except StoreNotFound:
            pass  # nothing was begun: begin
    writer = PopulationWriter.create(
        store, inputs, config=config, models=models, overwrite=overwrite
    )
    return writer, threads


def _check_strangers(writer: PopulationWriter, sources: Mapping[str, ModelSource]) -> None:
    strangers = [model_id for model_id in writer.models() if model_id not in sources]
    if strangers:
        raise InvalidInput(
            f"the store holds models that were not given: {', '.join(map(repr, strangers[:10]))}. "
            "Give them too, or capture into another store."
        )


def checked_models(models: Mapping[str, ModelSource]) -> dict[str, ModelSource]:
    """Return models by id; raises `InvalidInput`."""
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


def checked_groups(groups: Mapping[str, str] | str | None, ids: Sequence[str]) -> dict[str, str]:
    """Return output groups by model id, of models that have a named one; raises `InvalidInput`."""
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


def config_of(adapters: AdapterChoice, options: Mapping[str, Any]) -> dict[str, JSON]:
    """Return what decides how states are read, so that a resumed capture reads them alike."""
    chosen = adapters.adapter
    kind = type(chosen)
    config: dict[str, JSON] = {
        "adapter": chosen
        if chosen is None or isinstance(chosen, str)
        else f"{kind.__module__}.{kind.__qualname__}",
        "layers": None,
        "forward": None,
        "output": None,
    }
    return config | {name: option_as_json(value) for name, value in options.items()}
