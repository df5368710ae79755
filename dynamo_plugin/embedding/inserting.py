"""Networks that join an embedding after it was fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd
import torch

from dynamo_plugin.embedding.devices import default_device
from dynamo_plugin.embedding.model_embedding import ModelEmbedding
from dynamo_plugin.errors import DuplicateName, InvalidInput, UnknownName, suggest
from dynamo_plugin.store import Population, join_populations
from dynamo_plugin.training import Targets
from dynamo_plugin.training.insertion import insert

__all__ = ["insert_models"]

STEPS = 150
"""In which thetas settle where nothing else is learned."""


def insert_models(
    embedding: ModelEmbedding,
    population: Population,
    *,
    models: Sequence[str] | None,
    steps: int | None,
    batch_size: int,
    device: str | torch.device | None,
    progress: bool,
) -> ModelEmbedding:
    """See `ModelEmbedding.insert`."""
    chosen = _chosen(embedding, population, models)
    if set(embedding.ids) <= set(population.ids):
        joined = embedding.with_population(population).population
    else:
        joined = join_populations(embedding.population, population)
    _require_alike(embedding, joined, chosen)
    if steps is None:
        learned = embedding.state_maps.kind in ("mlp", "orthogonal")
        steps = embedding.config.steps if learned else STEPS
    config = dataclasses.replace(embedding.config, steps=steps, batch_size=batch_size)
    where = torch.device(device) if device is not None else default_device()
    targets = Targets(
        joined,
        sites=config.sites,
        models=chosen,
        device=where,
        layered=embedding.meta_model.layered,
        widths={stage: maps.widest for stage, maps in embedding.state_maps.items()},
    )
    stages = [stage.name for stage in targets.stages]
    if stages != list(embedding.state_maps):
        raise InvalidInput(
            f"The embedded networks have the stages {', '.join(embedding.state_maps)} and the new "
            f"ones {', '.join(stages)}. Capture the same sites of them."
        )
    inserted = insert(
        embedding.meta_model,
        embedding.state_maps,
        embedding.common_maps,
        embedding.thetas,
        targets,
        embedding.training_samples,
        config,
        device=where,
        progress=progress,
    )
    common = embedding.common_maps
    if common is not None and inserted.common_maps is not None:
        common = common.join(inserted.common_maps)
    rows = joined.metadata.loc[list(chosen)]
    provenance = dataclasses.replace(
        embedding.provenance,
        population=joined.location,
        model_hashes=(
            *embedding.provenance.model_hashes,
            *(joined.model_hash(model) for model in chosen),
        ),
        others=tuple(part.location for part in joined.parts[1:]),
    )
    return dataclasses.replace(
        embedding,
        thetas=torch.cat([embedding.thetas, inserted.thetas]),
        ids=(*embedding.ids, *chosen),
        metadata=pd.concat([embedding.metadata, rows]),
        state_maps=embedding.state_maps.join(inserted.state_maps),
        common_maps=common,
        output_groups=(
            *embedding.output_groups,
            *(joined.output_group(model) for model in chosen),
        ),
        provenance=provenance,
        bound_population=joined,
    )


def _chosen(
    embedding: ModelEmbedding, population: Population, models: Sequence[str] | None
) -> tuple[str, ...]:
    if not isinstance(population, Population):
        raise InvalidInput(
            f"Expected a Population, got {type(population).__name__}. Open a stored one with "
            "dynamo_plugin.open_population(path)."
        )
    if models is None:
        models = [model for model in population.ids if model not in embedding.ids]
    for model in models:
        if model not in population.ids:
            raise UnknownName(
                f"The population has no model {model!r}. {suggest(model, population.ids)}"
            )
        if model in embedding.ids:
            raise DuplicateName(
                f"The embedding has a model {model!r} already. Capture the new one under another "
                "id."
            )
    if not models or len(set(models)) < len(models):
        raise InvalidInput(
            f"Expected models to insert, each once; got {', '.join(models) or 'none'}, of "
            f"{len(population.ids)} in the population."
        )
    return tuple(models)


def _require_alike(embedding: ModelEmbedding, joined: Population, chosen: Sequence[str]) -> None:
    groups = {output.group: output for output in embedding.meta_model.spec.outputs}
    for model in chosen:
        output = joined.spec(model).output
        if output.group not in groups:
            raise InvalidInput(
                f"Model {model!r} belongs to the output group {output.group!r}, for which the "
                f"meta-model has no readout. {suggest(output.group, groups)}"
            )
        expected = groups[output.group]
        if (output.shape, output.axis) != (expected.shape, expected.axis):
            raise InvalidInput(
                f"The outputs of model {model!r} are {output.shape} per {output.axis}; those of "
                f"its output group are {expected.shape} per {expected.axis}."
            )
