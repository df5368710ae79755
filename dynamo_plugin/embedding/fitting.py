"""From a population to its embedding."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import pandas as pd
import torch

from dynamo_plugin.embedding.model_embedding import ModelEmbedding, Provenance
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population
from dynamo_plugin.training import FitConfig, train

__all__ = ["fit"]


def fit(
    population: Population,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    **settings: Any,
) -> ModelEmbedding:
    """Fit one meta-model and one theta per network to a population.

    The method of Cotler et al. 2023 (arXiv:2302.14078): the meta-model F, its readouts G, all
    thetas and all state maps V minimise jointly

        1/N sum_n E_x [ 1/T sum_t d_h(V_n(h~_t), h_t) ] + lambda E_x [ 1/T sum_t d_y(G(h~_t), y_t) ]

    Parameters
    ----------
    population
        What `capture` or `open_population` returned: at least two models, two samples.
    device
        Where to train; None for the accelerator if there is one, else the CPU.
    progress
        Whether to show a bar on stderr.
    **settings
        The fields of `dynamo_plugin.training.FitConfig`: family, family_options, embedding_dim,
        sites, state_map, state_map_solver, alignment_weight, hidden_loss, hidden_scale,
        output_loss, output_weight, token_init, steps, batch_size, models_per_step, learning_rate,
        theta_learning_rate, theta_decay, theta_std, warmup, clip, held_out, seed.

    Returns
    -------
    ModelEmbedding
        On one machine, with one number of threads, a pure function of population, settings and
        seed.

    Raises
    ------
    InvalidConfig
        If a setting does not exist or is out of range.
    InvalidInput
        If there are fewer than two models or samples, or states never vary.
    UnknownName
        If the family, a loss or a site does not exist.
    DivergedFit
        If the loss becomes NaN or infinite.
    """
    if not isinstance(population, Population):
        raise InvalidInput(
            f"Expected a Population, got {type(population).__name__}. Open a stored one with "
            "dynamo_plugin.open_population(path)."
        )
    config = FitConfig.from_options(settings)
    where = torch.device(device) if device is not None else _default_device()
    fitted = train(population, config, device=where, progress=progress)
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
            model_hashes=tuple(population.model_hash(model) for model in population.ids),
            versions={
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("dynamo-plugin", "torch", "numpy")},
            },
            device=str(where),
        ),
        bound_population=population,
    )


def _default_device() -> torch.device:
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")
