"""All pairs of models of a population or an embedding, in bounded memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import DuplicateName, InvalidInput
from dynamo_plugin.metrics._checkpoints import TileFolder
from dynamo_plugin.metrics._checks import check_count
from dynamo_plugin.metrics._embedded_reading import EmbeddedSource
from dynamo_plugin.metrics._reading import Sites, Source
from dynamo_plugin.metrics._tiles import Comparison, make_tiles, run_tiles
from dynamo_plugin.metrics.choosing import metric as metric_by_name
from dynamo_plugin.metrics.distances import PairwiseDistances
from dynamo_plugin.registry.interfaces import OF_EMBEDDING, Metric
from dynamo_plugin.store import Population

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.types import JSON

__all__ = ["pairwise"]


def pairwise(
    networks: Population | ModelEmbedding,
    metric: str | Metric[Any],
    /,
    *,
    site: Sites = None,
    samples: ArrayLike | None = None,
    rows: int | None = None,
    row_seed: int = 0,
    models: Sequence[str] | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    memory: int = 2 * 2**30,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> PairwiseDistances:
    """Compare every two models of a population, or of an embedding.

    Each model is read and prepared once, as long as all of them fit into `memory`; else blocks of
    models are, once per tile that they are needed for. A process takes `memory`, the states of one
    model per thread, and some 0.5 GB for products. Values do not depend on workers, executor or
    memory but for the last bits, and not at all on workers or executor.

    Parameters
    ----------
    networks
        A population (what `open_population` or `capture` returned), or an embedding (`fit`,
        `load_embedding`). Of an embedding, `theta`, `pullback` and `functional` compare what it
        holds itself, the same distances as `ModelEmbedding.distances`; all other metrics compare
        its models in its population.
    metric
        Registered name (see `metric`), or a metric.
    site
        Where states are compared: of all models, or by model. May be left out where models have
        only one. A list of sites that have the same rows is joined, unit by unit, as `fit` does
        for recurrent families. States with more than one axis (feature maps) are laid out as units.
    samples
        Sample numbers; all by default, for rendered networks (`functional`) the held-out ones.
    rows
        At most so many rows (steps, or samples), drawn at random and the same for every model. All
        by default. Metrics of pairs of samples (`rsa`, `neighbours`, `cka` with `rbf`) need it
        where there are many.
    row_seed
        Of the rows drawn.
    models
        Ids of the models to compare; all by default.
    workers
        Threads.
    executor
        Any `concurrent.futures.Executor` instead; those of other processes need a population that
        they can open too, also where networks are rendered.
    memory
        Bytes of prepared models that a process keeps.
    checkpoints
        Folder where finished tiles are kept until all are done.
    resume
        Go on from what is there, which must be of the same comparison.
    progress
        Whether to show a progress bar.
    **options
        Keyword arguments of the metric, where it is given by name.

    Returns
    -------
    PairwiseDistances

    Raises
    ------
    UnknownName
        If there is no such metric, model or site.
    InvalidInput
        If options do not fit, models or sites were recorded at different steps, a model cannot be
        compared (it is named), the metric compares embedded networks and a population was given,
        or checkpoints are of another comparison.
    DuplicateName
        If a model or a site is named twice.
    StoreNotFound
        If the population of an embedding is no longer where it was.
    StoreExists
        If there are checkpoints and `resume` is false.
    StoreLocked
        If another process keeps its checkpoints there.
    IncompleteCapture, CorruptBlock
        If states are missing or damaged.

    Examples
    --------
    >>> import torch, dynamo_plugin as dp
    >>> networks = {f"rnn-{i}": torch.nn.RNN(2, 4, batch_first=True) for i in range(3)}
    >>> population = dp.capture(networks, torch.randn(5, 6, 2), {}, progress=False)
    >>> result = pairwise(population, "cka", progress=False)
    >>> result.to_dataframe().shape
    (3, 3)
    """
    if not isinstance(networks, Population | ModelEmbedding):
        raise InvalidInput(
            f"Expected a population or an embedding, got {type(networks).__name__}. Open one with "
            "dynamo_plugin.open_population(store) or dynamo_plugin.load_embedding(path)."
        )
    name, chosen = _as_metric(metric, options)
    check_count("workers", workers, least=1)
    check_count("memory", memory, least=1)
    if rows is not None:
        check_count("rows", rows, least=1)
    if executor is not None and workers > 1:
        raise InvalidInput("executor and workers both say where tiles run; give one of them.")
    if resume and checkpoints is None:
        raise InvalidInput("resume goes on from checkpoints: say where they are.")
    ids = _as_ids(networks, models)
    source: Source | EmbeddedSource
    if chosen.reads in OF_EMBEDDING:
        if not isinstance(networks, ModelEmbedding):
            raise InvalidInput(
                f"The metric {name!r} compares networks of an embedding, got a population. Fit "
                f"one: dynamo_plugin.pairwise(dynamo_plugin.fit(population), {name!r})."
            )
        location = networks.provenance.population
        with threadpool_limits(limits=1):
            source = EmbeddedSource.make(
                networks, reads=chosen.reads, site=site, samples=samples, rows=rows
            )
    else:
        population = networks if isinstance(networks, Population) else networks.population
        location = population.location
        source = Source.make(
            population,
            ids,
            reads=chosen.reads,
            site=site,
            samples=samples,
            rows=rows,
            row_seed=row_seed,
        )
    settings: dict[str, JSON] = {
        "metric": name,
        "options": _options_of(chosen),
        **source.settings(row_seed=row_seed),
    }
    with threadpool_limits(limits=1):
        values = _all_values(
            Comparison.make(source, chosen, ids, memory=memory),
            identity=settings | source.identity(ids) if checkpoints is not None else {},
            checkpoints=checkpoints,
            resume=resume,
            workers=workers,
            executor=executor,
            progress=progress,
        )
    return PairwiseDistances.make(chosen, ids, values, settings=settings, population=location)


def _all_values(
    comparison: Comparison,
    *,
    identity: Mapping[str, JSON],
    checkpoints: str | Path | None,
    resume: bool,
    workers: int,
    executor: Executor | None,
    progress: bool,
) -> NDArray[np.float64]:
    """Return (model, model) values, with checkpoints or without."""
    run = partial(_run, workers=workers, executor=executor, progress=progress)
    try:
        if checkpoints is None:
            return run(comparison, None)
        folder = TileFolder(checkpoints, identity=identity, block=comparison.block, resume=resume)
        try:
            values = run(replace(comparison, block=folder.block), folder)
        finally:
            folder.close()
        folder.remove()
        return values
    finally:
        comparison.forget()


def _run(
    comparison: Comparison,
    folder: TileFolder | None,
    *,
    workers: int,
    executor: Executor | None,
    progress: bool,
) -> NDArray[np.float64]:
    values = np.full((len(comparison.ids), len(comparison.ids)), np.nan)
    tiles = make_tiles(comparison.blocks)
    missing = []
    with tqdm(
        total=len(tiles), desc="compare", unit="tile", file=sys.stderr, disable=not progress
    ) as bar:
        for tile in tiles:
            known = None if folder is None else folder.read(tile, comparison.shape_of(tile))
            if known is None:
                missing.append(tile)
            else:
                comparison.place(known, tile, values)
                bar.update()
        for tile, found in run_tiles(comparison, missing, workers=workers, executor=executor):
            if not np.isfinite(found).all():
                raise InvalidInput(
                    "The metric gave values that are not finite, for models among "
                    f"{', '.join(map(repr, comparison.ids[comparison.members(tile[0])]))}. Compare "
                    "them alone to find which."
                )
            if folder is not None:
                folder.write(tile, found)
            comparison.place(found, tile, values)
            bar.update()
    return values


def _as_metric(metric: str | Metric[Any], options: Mapping[str, Any]) -> tuple[str, Metric[Any]]:
    if isinstance(metric, str):
        return metric, metric_by_name(metric, **options)
    if not isinstance(metric, Metric):
        raise InvalidInput(
            f"Expected the name of a metric, or a metric, got {type(metric).__name__}."
        )
    if options:
        raise InvalidInput(
            f"Unexpected options {', '.join(options)}: the metric is made already, and has its own."
        )
    return type(metric).__name__, metric


def _as_ids(networks: Population | ModelEmbedding, models: Sequence[str] | None) -> tuple[str, ...]:
    ids = networks.ids if models is None else tuple(models)
    for model in ids:  # raises, and suggests, where there is none
        if isinstance(networks, Population):
            networks.spec(model)
        else:
            networks.index(model)
    if len(set(ids)) < len(ids):
        twice = next(model for model in ids if ids.count(model) > 1)
        raise DuplicateName(f"Model {twice!r} is named twice. Name every model once.")
    if len(ids) < 2:
        raise InvalidInput(f"Pairs need at least 2 models, got {len(ids)}.")
    return ids


def _options_of(metric: Metric[Any]) -> dict[str, JSON]:
    """Return the options of a metric, as JSON."""
    if not is_dataclass(metric):
        return {}
    options = {field.name: getattr(metric, field.name) for field in fields(metric)}
    plain: dict[str, JSON] = json.loads(json.dumps(options, default=str))
    return plain
