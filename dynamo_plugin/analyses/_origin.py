"""What a result was computed from."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from dynamo_plugin.analyses._result import TableResult
    from dynamo_plugin.types import JSON

__all__ = ["Origin", "analysis"]

LONGEST_ARRAY = 256
"""Numbers up to which an option is written down in full."""

Analysis = TypeVar("Analysis", bound="Callable[..., TableResult]")


@dataclass(frozen=True, slots=True)
class Origin:
    """The embedding and the options that determine a result."""

    population: str
    """Location of the population that was embedded."""
    inputs_hash: str
    """Content hash of its inputs."""
    models: tuple[str, ...]
    """Ids of the embedded networks, in order."""
    fit_seed: int
    """Seed of the fit."""
    options: Mapping[str, JSON]
    """Every option of the analysis, defaults and seeds among them. What JSON cannot hold, such as a
    network, is described."""

    def to_json(self) -> dict[str, JSON]:
        """Return plain JSON values, one per field."""
        return {
            "population": self.population,
            "inputs_hash": self.inputs_hash,
            "models": list(self.models),
            "fit_seed": self.fit_seed,
            "options": dict(self.options),
        }


def analysis(function: Analysis) -> Analysis:
    """Make a function from a model embedding to a result write down where the result comes from."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> TableResult:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        (_, embedding), *given = bound.arguments.items()
        if not isinstance(embedding, ModelEmbedding):
            raise InvalidInput(
                f"Expected a ModelEmbedding, got {type(embedding).__name__}. Open a saved one with "
                "dynamo_plugin.load_embedding(path)."
            )
        origin = Origin(
            embedding.provenance.population,
            embedding.provenance.inputs_hash,
            embedding.ids,
            embedding.config.seed,
            {name: _described(value) for name, value in given},
        )
        return dataclasses.replace(function(*args, **options), origin=origin)

    return cast("Analysis", run)


def _described(value: Any) -> JSON:
    """Return an option as JSON, or what it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _described(value.item())
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        if np.prod(value.shape, dtype=np.int64) <= LONGEST_ARRAY:
            return _described(value.tolist())
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    location = getattr(value, "location", None)
    return location if isinstance(location, str) else type(value).__name__
