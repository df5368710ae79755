"""Further fits like that of an embedding: of its networks, or of other populations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dynamo_plugin.embedding.devices import default_device
from dynamo_plugin.embedding.fitting import fit, make_embedding, run_fits
from dynamo_plugin.embedding.model_embedding import ModelEmbedding
from dynamo_plugin.store import Population, select_models
from dynamo_plugin.training import FitConfig, process_group

__all__ = ["refit", "refit_like"]


def refit(
    embedding: ModelEmbedding,
    configs: Sequence[FitConfig],
    *,
    samples: Sequence[tuple[Tensor, Tensor] | None] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[ModelEmbedding, ...]:
    """Fit the networks of an embedding again, once per setting; states are read once.

    Each is what `fit` returns for these settings. Models that were inserted are fitted with all
    the others.

    Parameters
    ----------
    embedding
        Its population is read.
    configs
        Settings of every fit, such as `dataclasses.replace(embedding.config, seed=1)`.
    samples
        Of every fit, (sample,) indices of its training samples, repeats allowed, and of those that
        it keeps aside; None for what its settings say.
    device
        Where to train; None for the accelerator if there is one, else the CPU.
    progress
        Whether to show bars on stderr.

    Raises
    ------
    KeyboardInterrupt
        If a fit was interrupted: what it had found is not comparable.
    DivergedFit
        If a loss becomes NaN or infinite.
    """
    population = select_models(embedding.population, embedding.ids)
    hashes = dict(zip(embedding.ids, embedding.provenance.model_hashes, strict=True))
    here = torch.device(device) if device is not None else default_device()
    with process_group(here) as where:
        fitted = run_fits(
            population,
            configs,
            [None] * len(configs),
            where,
            (),
            progress=progress,
            samples=samples,
        )
    if any(found.stopped == "interrupted" for found in fitted):
        raise KeyboardInterrupt
    return tuple(
        dataclasses.replace(
            made,
            metadata=embedding.metadata.copy(),
            provenance=dataclasses.replace(
                made.provenance,
                population=embedding.provenance.population,
                others=embedding.provenance.others,
            ),
            bound_population=embedding.population,
        )
        for made in (make_embedding(population, found, hashes, where) for found in fitted)
    )


def refit_like(
    embedding: ModelEmbedding,
    population: Population,
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> ModelEmbedding:
    """Fit a meta-model to another population, with the settings of an embedding.

    Parameters
    ----------
    embedding
        Says the settings. What the fit chose by itself, such as the number of leading dimensions,
        is as it was found there.
    population
        What is fitted.
    seed
        Of the fit; None for that of the embedding.
    device
        Where to train.
    """
    config = embedding.config
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if seed is not None:
        settings["seed"] = seed
    return fit(population, seeds=None, device=device, progress=False, **settings)
