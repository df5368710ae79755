"""From a population to its embedding."""

from __future__ import annotations

import dataclasses
import platform
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, overload

import pandas as pd
import torch
from torch import Tensor

from dynamo_plugin.embedding.devices import default_device
from dynamo_plugin.embedding.model_embedding import ModelEmbedding, Provenance
from dynamo_plugin.errors import InvalidConfig, InvalidInput
from dynamo_plugin.store import Population
from dynamo_plugin.training import (
    Callback,
    CheckpointFolder,
    FitConfig,
    FittedModels,
    ProgressBar,
    Trainer,
    process_group,
    run_together,
)

__all__ = ["fit", "make_embedding", "run_fits"]


@overload
def fit(
    population: Population,
    *,
    seeds: None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> ModelEmbedding: ...


@overload
def fit(
    population: Population,
    *,
    seeds: int | Sequence[int],
    device: str | torch.device | None = None,
    progress: bool = True,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> tuple[ModelEmbedding, ...]: ...


def fit(
    population: Population,
    *,
    seeds: int | Sequence[int] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> ModelEmbedding | tuple[ModelEmbedding, ...]:
    """Fit one meta-model and one theta per network to a population.

    The method of Cotler et al. 2023 (arXiv:2302.14078): the meta-model F, its readouts G, all
    thetas and all state maps V minimise jointly

        1/N sum_n E_x [ 1/T sum_t d_h(V_n(h~_t), h_t) ] + lambda E_x [ 1/T sum_t d_y(G(h~_t), y_t) ]

    By default the leading dimensions of theta are learned first, under one further map for all
    models on aligned states, and say what distinguishes the networks; the others, small, say what
    is private to each. `PRESETS["paper"]` are the settings of the paper.

    Parameters
    ----------
    population
        What `capture` or `open_population` returned: at least two models, two samples.
    seeds
        Seeds of several fits, or how many there are to be, from `seed` on. Each is the fit of its
        seed alone, but for rounding. The population is read once; on an accelerator, meta-models of
        recurrent families run in one call.
    device
        Where to train; None for the accelerator if there is one, else the CPU.
    progress
        Whether to show a bar on stderr.
    checkpoints
        A folder to keep the unfinished fit in, at each of its 25 looks at held-out samples and
        when it is interrupted. Its last two checkpoints stay. Several fits have a folder each, in
        it.
    resume
        Whether to go on from the latest checkpoint there, if there is one; the result is that of
        a fit that was not interrupted, to the bit on one machine.
    callbacks
        See `dynamo_plugin.training.Callback`: loggers for TensorBoard, Weights & Biases, MLflow,
        or one's own. Of several fits they watch the first.
    **settings
        The fields of `dynamo_plugin.training.FitConfig`: family, family_options, embedding_dim,
        leading_dim, leading_share, private_scale, sites, state_map, state_map_solver,
        alignment_weight, hidden_loss, hidden_scale, output_loss, output_weight, settle_readouts,
        token_init, steps, batch_size, length_buckets, models_per_step, learning_rate,
        theta_learning_rate, token_learning_rate, theta_decay, theta_init, theta_std, schedule,
        warmup, clip, patience, min_improvement, min_theta_movement, held_out, seed.

    Returns
    -------
    ModelEmbedding, or a tuple of them where there are seeds
        On one machine, with one number of threads, a pure function of population, settings and
        seed. The first Ctrl-C ends the fit after the step in hand, with a warning, and what it
        found so far is returned (of several fits, those that were begun); the second interrupts.

    Notes
    -----
    In a program that torchrun started, the models are shared among its processes (NCCL on CUDA,
    else gloo), and the result, on all of them, is that of one process but for rounding.

    Raises
    ------
    InvalidConfig
        If a setting does not exist or is out of range.
    InvalidInput
        If there are fewer than two models or samples, or states never vary.
    UnknownName
        If the family, a loss or a site does not exist.
    DivergedFit
        If the loss becomes NaN or infinite; the checkpoints before that stay.
    StoreExists
        If there are checkpoints and `resume` is false.
    StoreLocked
        If another process keeps its checkpoints there.
    CorruptBlock
        If all checkpoints are damaged.
    """
    if not isinstance(population, Population):
        raise InvalidInput(
            f"Expected a Population, got {type(population).__name__}. Open a stored one with "
            "dynamo_plugin.open_population(path)."
        )
    if resume and checkpoints is None:
        raise InvalidInput("resume goes on from checkpoints: say where they are.")
    configs = _configs(settings, seeds)
    places: list[Path | None] = [None] * len(configs)
    if checkpoints is not None:
        base = Path(checkpoints)
        places = [base if seeds is None else base / f"seed-{c.seed}" for c in configs]
    hashes = {model: population.model_hash(model) for model in population.ids}
    identity = {
        "inputs": population.inputs.hash,
        "models": list(population.ids),
        "states": list(hashes.values()),
    }
    here = torch.device(device) if device is not None else default_device()
    with process_group(here) as where, ExitStack() as stack:
        folders: list[CheckpointFolder | None] = []
        for config, place in zip(configs, places, strict=True):
            folder = None
            if place is not None:
                own = {**config.to_json(), **identity}
                folder = CheckpointFolder(place, identity=own, resume=resume)
                stack.callback(folder.close)
            folders.append(folder)
        fitted = run_fits(population, configs, folders, where, callbacks, progress=progress)
    embeddings = tuple(make_embedding(population, found, hashes, where) for found in fitted)
    return embeddings[0] if seeds is None else embeddings


def _configs(settings: dict[str, Any], seeds: int | Sequence[int] | None) -> list[FitConfig]:
    """Return the settings of every fit."""
    config = FitConfig.from_options(settings)
    if seeds is None:
        return [config]
    if isinstance(seeds, int):
        chosen = list(range(config.seed, config.seed + seeds))
    else:
        chosen = list(seeds)
        if "seed" in settings:
            raise InvalidConfig("Say either seed or which seeds, not both.")
    if not chosen or len(set(chosen)) < len(chosen):
        raise InvalidConfig(f"seeds must be at least one, each once; got {seeds!r}.")
    return [dataclasses.replace(config, seed=seed) for seed in chosen]


def run_fits(
    population: Population,
    configs: Sequence[FitConfig],
    folders: Sequence[CheckpointFolder | None],
    device: torch.device,
    callbacks: Sequence[Callback],
    *,
    progress: bool,
    samples: Sequence[tuple[Tensor, Tensor] | None] | None = None,
) -> list[FittedModels]:
    """Return what every fit finds, of those that were begun before one was interrupted.

    Parameters
    ----------
    population
        What is embedded.
    configs
        Settings of every fit.
    folders
        Where each is kept; None for nowhere.
    device
        Where to train.
    callbacks
        Watch the first.
    progress
        Whether to show bars.
    samples
        Training and held-out samples of each, see `Trainer`; None for what its settings say.
    """
    parts = samples or [None] * len(configs)
    found: list[FittedModels] = []
    trainers: list[Trainer] = []
    for number, (config, folder, part) in enumerate(zip(configs, folders, parts, strict=True)):
        # On a CPU, what a call computes takes longer than the call: one fit after the other.
        alone = device.type == "cpu" or len(configs) == 1
        bar = [ProgressBar()] if progress and (alone or number == 0) else []
        trainer = Trainer(
            population,
            config,
            device=device,
            callbacks=[*bar, *(callbacks if number == 0 else ())],
            checkpoints=folder,
            targets=trainers[0].targets if trainers else None,
            samples=part,
        )
        trainers.append(trainer)
        if alone:
            found.append(trainer.run())
            if found[-1].stopped == "interrupted":
                break
    return found or run_together(trainers)


def make_embedding(
    population: Population, fitted: FittedModels, hashes: dict[str, str], device: torch.device
) -> ModelEmbedding:
    """Return what a fit found as an embedding."""
    if fitted.stopped == "interrupted":
        warnings.warn(
            f"The fit was interrupted after {fitted.step} of {fitted.config.steps} steps; this is "
            "what it had found.",
            stacklevel=2,
        )
    return ModelEmbedding(
        thetas=fitted.thetas,
        ids=population.ids,
        metadata=population.metadata.copy(),
        meta_model=fitted.meta_model,
        state_maps=fitted.state_maps,
        common_maps=fitted.common_maps,
        output_groups=tuple(population.output_group(model) for model in population.ids),
        history=pd.DataFrame(fitted.history),
        config=fitted.config,
        training_samples=fitted.training_samples,
        held_out_samples=fitted.held_out_samples,
        provenance=Provenance(
            population=population.location,
            inputs_hash=population.inputs.hash,
            model_hashes=tuple(hashes.values()),
            versions={
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("dynamo-plugin", "torch", "numpy")},
            },
            device=str(device),
        ),
        stopped=fitted.stopped,
        bound_population=population,
    )
