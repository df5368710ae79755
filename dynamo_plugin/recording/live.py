"""`live_population`: networks that are run whenever their states are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynamo_plugin.errors import NonFiniteStates
from dynamo_plugin.recording.adapters import AdapterChoice
from dynamo_plugin.recording.batching import Batching
from dynamo_plugin.recording.capturing import (
    check_positive,
    checked_groups,
    checked_models,
    config_of,
    options_of_adapter,
    refuse_autocast,
)
from dynamo_plugin.recording.inputs import as_population_inputs
from dynamo_plugin.recording.metadata import Metadata, as_metadata
from dynamo_plugin.recording.model_run import OUTPUT, ModelRun, Window
from dynamo_plugin.recording.recorder import ModelSource, ModelTask, Recorder, named_error
from dynamo_plugin.recording.reducing import Reductions, SiteReducer, not_finite
from dynamo_plugin.recording.sampling import chosen_samples
from dynamo_plugin.store import ComputedModel, ComputedPopulation, Population, are_finite

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from dynamo_plugin.registry.interfaces import Adapter
    from dynamo_plugin.store import PopulationInputs
    from dynamo_plugin.types import JSON, OutputSpec, SiteSpec

__all__ = ["live_population"]

NAME = "live networks"


def live_population(
    models: Mapping[str, ModelSource],
    inputs: Any,
    *,
    metadata: Metadata | None = None,
    layers: Sequence[str] | Mapping[str, Any] | None = None,
    adapter: str | Adapter | None = None,
    adapter_options: Mapping[str, Any] | None = None,
    sample_ids: Sequence[str] | None = None,
    lengths: ArrayLike | Tensor | None = None,
    targets: Any = None,
    samples: int | ArrayLike | None = None,
    sample_seed: int = 0,
    output_groups: Mapping[str, str] | str | None = None,
    vocabulary_size: int | None = None,
    has_time: bool | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    forward: Callable[[Any, Tensor, Tensor], Any] | None = None,
    output: str | int | None = None,
) -> Population:
    """Return a population of which nothing is stored: its networks are run when states are needed.

    It takes the place of a captured one: in `fit`, in analyses and in reports. A fit whose states
    fit into memory runs every network once; a larger one runs them on the samples of every step,
    which needs no room on a disk and is slower than reading where networks are expensive.

    Networks must not change while it is in use. They stay in memory, those that factories make
    too.

    Parameters
    ----------
    models, inputs
        As in `capture`.
    metadata, layers, adapter, adapter_options, sample_ids, lengths, targets, samples, sample_seed
        As in `capture`.
    output_groups, vocabulary_size, has_time, batch_size, forward, output
        As in `capture`.
    device
        Where models are moved, and then stay. By default where they are.

    Raises
    ------
    InvalidInput, UnsupportedModel, CaptureError, UnknownName
        As in `capture`, when models are described. NaN and infinity raise `NonFiniteStates` when
        states are computed.

    Examples
    --------
    >>> import torch
    >>> models = {"a": torch.nn.GRU(2, 3, batch_first=True), "b": torch.nn.LSTM(2, 5)}
    >>> population = live_population(models, torch.zeros(4, 6, 2))
    >>> population.ids, population.states("b", samples=[3, 0]).shape
    (('a', 'b'), (12, 5))
    """
    sources = checked_models(models)
    check_positive(batch_size=batch_size)
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
    options = options_of_adapter(adapter_options, layers, forward, output)
    adapters = AdapterChoice(adapter, options)
    recorder = Recorder(given, adapters, Reductions(), batch_size, torch.get_num_threads())
    runs, described = {}, {}
    for index, (model_id, source) in enumerate(sources.items()):
        task = ModelTask(model_id, index, source, rows[model_id], groups.get(model_id))
        try:
            model = recorder.made(source)
            if device is not None and isinstance(model, torch.nn.Module):
                model.to(device)
            chosen = adapters.of(model)
            spec = recorder.describe(chosen, model, task)
            model_hash = chosen.fingerprint(model)
        except Exception as error:
            raise named_error(model_id, error) from error
        runs[model_id] = ModelRun(recorder, chosen, model, spec, spec)
        described[model_id] = ComputedModel(spec, rows[model_id], model_hash)
    config = config_of(adapters, options) | {"samples": subset, "batch_size": batch_size}
    return _LivePopulation(given, runs, described, config)


class _LivePopulation(ComputedPopulation):
    """Runs its networks."""

    __slots__ = ("_runs",)

    def __init__(
        self,
        inputs: PopulationInputs,
        runs: Mapping[str, ModelRun],
        models: Mapping[str, ComputedModel],
        config: dict[str, JSON],
    ) -> None:
        super().__init__(NAME, inputs, models, config)
        self._runs = runs

    def compute(
        self, model_id: str, samples: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        run = self._runs[model_id]
        declared: dict[str, SiteSpec | OutputSpec] = {site.name: site for site in run.spec.sites}
        declared[OUTPUT] = run.spec.output
        counts = {"time": self.lengths[samples], "sample": np.ones_like(samples)}
        found = {
            name: np.empty((counts[each.axis].sum(), *each.shape), each.dtype)
            for name, each in declared.items()
        }
        if len(samples):
            try:
                self._record(run, samples, counts["time"], found)
            except Exception as error:
                raise named_error(model_id, error) from error
        for name, rows in found.items():
            if not are_finite(rows):
                where = f"site {name!r}" if name else "the output"
                row = int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(1)))
                each = counts[declared[name].axis]
                sample = int(np.searchsorted(each.cumsum(), row, side="right"))
                step = row - int(each[:sample].sum()) if declared[name].axis == "time" else None
                place = run.recorder.place(int(samples[sample]), step)
                raise NonFiniteStates(not_finite(f"{where} of model {model_id!r}", place))
        return found, found.pop(OUTPUT)

    def _record(
        self,
        run: ModelRun,
        samples: NDArray[np.int64],
        lengths: NDArray[np.int64],
        found: Mapping[str, NDArray[Any]],
    ) -> None:
        """Fill in what a model does on some samples of these lengths."""
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        batching = Batching.of(offsets, run.spec, run.recorder.batch_size)
        reducers = {site.name: SiteReducer(site, site) for site in run.spec.sites}
        recorded = Window(run, reducers, batching)
        for window in batching.windows:
            for batch in batching.batches(window, ragged=run.ragged):
                positions = batch + window.start
                for name, each, values in recorded.reduced(samples[positions]):
                    source, target = batching.places(positions, 0, each.axis)
                    found[name][target] = values.reshape(-1, *each.shape)[source]
