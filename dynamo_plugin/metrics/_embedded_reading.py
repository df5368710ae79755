"""What a metric compares, taken from an embedding model by model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynamo_plugin.embedding.geometry import pairs_at_once, pullback_thetas, rendered_rows
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._reading import check_samples
from dynamo_plugin.registry.fingerprint import model_hash

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.metrics._reading import Sites
    from dynamo_plugin.registry.interfaces import Reads
    from dynamo_plugin.types import JSON

__all__ = ["EmbeddedSource"]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedSource:
    """Takes a vector of every model, or what its rendered network does on the same samples."""

    vectors: NDArray[np.float64]
    """(model, embedding_dim): what is compared, or where the networks are rendered."""
    ids: tuple[str, ...]
    """Of the models."""
    rendered: ModelEmbedding | None
    """Renders the networks; None where vectors are compared."""
    samples: NDArray[np.int64] | None
    """Sample numbers that the networks are rendered on; None where vectors are compared."""

    @classmethod
    def make(
        cls,
        embedding: ModelEmbedding,
        *,
        reads: Reads,
        site: Sites,
        samples: ArrayLike | None,
        rows: int | None,
    ) -> EmbeddedSource:
        """Check what is to be taken.

        Raises
        ------
        InvalidInput
            If options do not go together, or the population is not the one that was embedded.
        StoreNotFound
            If networks are to be rendered and the population is not where it was.
        """
        if site is not None:
            raise InvalidInput(
                "This metric compares what an embedding holds, which has no recorded site. Leave "
                "site out."
            )
        if rows is not None:
            raise InvalidInput(
                "This metric compares what an embedding holds, of which rows are not drawn. Leave "
                "rows out."
            )
        if reads == "rendered":
            numbers = (
                embedding.held_out_samples.numpy()
                if samples is None
                else check_samples(samples, len(embedding.population.lengths))
            )
            return cls(embedding.thetas.double().numpy(), embedding.ids, embedding, numbers)
        if samples is not None:
            raise InvalidInput(
                "This metric compares thetas, which have no samples. Leave them out."
            )
        vectors = (
            embedding.thetas.double().numpy() if reads == "theta" else pullback_thetas(embedding)
        )
        return cls(vectors, embedding.ids, None, None)

    def settings(self, *, row_seed: int) -> dict[str, JSON]:
        """Return what was taken, for people and for checkpoints."""
        count = None if self.samples is None else len(self.samples)
        return {"site": None, "samples": count, "rows": None, "row_seed": None}

    def identity(self, ids: Sequence[str]) -> dict[str, JSON]:
        """Return what checkpoints of a comparison of these models must say, beside settings."""
        found: dict[str, JSON] = {
            "models": {model: _digest(self._vector(model)) for model in ids},
            "order": list(ids),
        }
        if self.rendered is None or self.samples is None:
            return found
        common = self.rendered.common_maps
        maps = self.rendered.state_maps if common is None else common
        return found | {
            "meta_model": model_hash(self.rendered.meta_model),
            "maps": model_hash(maps),
            "inputs": self.rendered.provenance.inputs_hash,
            "sample_numbers": _digest(self.samples),
        }

    @torch.no_grad()
    def read(self, model: str) -> NDArray[np.float64] | list[NDArray[np.float32]]:
        """Return what the metric prepares: a vector, or one (row, unit) array per stage."""
        if self.rendered is None or self.samples is None:
            return self._vector(model)
        embedding, samples = self.rendered, torch.from_numpy(self.samples)
        theta = embedding.theta(model)[None]
        parts: dict[str, list[NDArray[np.float32]]] = {}
        for chunk in samples.split(pairs_at_once(embedding, samples)):
            batch = embedding.population.inputs.batch(chunk.numpy())
            found = rendered_rows(embedding, batch.values, batch.lengths, theta)
            for stage, rows in found.items():
                parts.setdefault(stage, []).append(rows[0].numpy())
        return [np.concatenate(rows) for rows in parts.values()]

    def _vector(self, model: str) -> NDArray[np.float64]:
        vector: NDArray[np.float64] = self.vectors[self.ids.index(model)]
        return vector


def _digest(array: NDArray[np.float64] | NDArray[np.int64]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
