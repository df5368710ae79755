"""From a population to its embedding."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dynamo_plugin.embedding.devices import default_device
from dynamo_plugin.embedding.model_embedding import ModelEmbedding, Provenance
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population
from dynamo_plugin.training import (
    Callback,
    CheckpointFolder,
    FitConfig,
    ProgressBar,
    Trainer,
    process_group,
)

__all__ = ["fit"]


def fit(
    population: Population,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> ModelEmbedding:
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
    device
        Where to train; None for the accelerator if there is one, else the CPU.
    progress
        Whether to show a bar on stderr.
    checkpoints
        A folder to keep the unfinished fit in, at each of its 25 looks at held-out samples and
        when it is interrupted. Its last two checkpoints stay.
    resume
        Whether to go on from the latest checkpoint there, if there is one; the result is that of
        a fit that was not interrupted, to the bit on one machine.
    callbacks
        See `dynamo_plugin.training.Callback`: loggers for TensorBoard, Weights & Biases, MLflow,
        or one's own.
    **settings
        The fields of `dynamo_plugin.training.FitConfig`: family, family_options, embedding_dim,
        leading_dim, leading_share, private_scale, sites, state_map, state_map_solver,
        alignment_weight, hidden_loss, hidden_scale, output_loss, output_weight, token_init,
        steps, batch_size, length_buckets, models_per_step, learning_rate, theta_learning_rate,
        token_learning_rate, theta_decay, theta_init, theta_std, schedule, warmup, clip, patience,
        min_improvement, min_theta_movement, held_out, seed.

    Returns
    -------
    ModelEmbedding
        On one machine, with one number of threads, a pure function of population, settings and
        seed. The first Ctrl-C ends the fit after the step in hand, with a warning, and what it
        found so far is returned; the second interrupts.

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
    config = FitConfig.from_options(settings)
    if resume and checkpoints is None:
        raise InvalidInput("resume goes on from checkpoints: say where they are.")
    model_hashes = tuple(population.model_hash(model) for model in population.ids)
    with process_group(torch.device(device) if device is not None else default_device()) as where:
        folder = None
        if checkpoints is not None:
            hashes = {"inputs": population.inputs.hash, "models": list(population.ids)}
            identity = {**config.to_json(), **hashes, "states": list(model_hashes)}
            folder = CheckpointFolder(checkpoints, identity=identity, resume=resume)
        try:
            watching = [*([ProgressBar()] if progress else []), *callbacks]
            trainer = Trainer(
                population, config, device=where, callbacks=watching, checkpoints=folder
            )
            fitted = trainer.run()
        finally:
            if folder is not None:
                folder.close()
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
            model_hashes=model_hashes,
            versions={
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("dynamo-plugin", "torch", "numpy")},
            },
            device=str(where),
        ),
        stopped=fitted.stopped,
        bound_population=population,
    )
