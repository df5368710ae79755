"""Several fits of the same networks: those that are given, and those that are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from dynamo_plugin.embedding import ModelEmbedding, load_embedding
from dynamo_plugin.embedding.refitting import refit
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FitSource", "Fits", "gather_fits"]

FitSource: TypeAlias = "ModelEmbedding | str | Path | Sequence[ModelEmbedding | str | Path]"
"""Fitted embeddings, or the folders that hold them."""


@dataclass(frozen=True, slots=True, eq=False)
class Fits:
    """The fits of the same networks."""

    embeddings: dict[str, ModelEmbedding]
    """By name; the first is the one that others are compared with."""
    sources: dict[str, list[int]]
    """Source of variation to the places of the fits that vary by it."""

    @property
    def thetas(self) -> NDArray[np.float64]:
        """(fit, model, dimension): thetas, models in the order of the first fit.

        Those that are shorter than others have zeros at their end, which no distance sees.
        """
        ids = next(iter(self.embeddings.values())).ids
        widest = max(fit.thetas.shape[1] for fit in self.embeddings.values())
        stacked = np.zeros((len(self.embeddings), len(ids), widest))
        for thetas, fit in zip(stacked, self.embeddings.values(), strict=True):
            places = [fit.index(model) for model in ids]
            thetas[:, : fit.thetas.shape[1]] = fit.thetas[places].double().numpy()
        return stacked


def gather_fits(
    embedding: ModelEmbedding,
    *,
    fits: FitSource | None,
    refits: int,
    bootstrap: int,
    least: int,
    seed: int,
    device: str | torch.device | None,
    progress: bool,
) -> Fits:
    """Return an embedding and further fits of its networks.

    Parameters
    ----------
    embedding
        The first fit.
    fits
        Given ones; None for none.
    refits
        How many to make with other seeds.
    bootstrap
        How many to make on samples drawn with replacement from its training samples, with its seed.
    least
        Fewest fits of a source.
    seed
        Of those draws.
    device, progress
        As in `fit`.

    Raises
    ------
    InvalidInput
        If a fit is of other networks, or there twice, or there are too few. Nothing is made then.
    """
    named = {"embedding": embedding}
    sources: dict[str, list[int]] = {}
    for number, fit in enumerate(_given(fits), start=1):
        _check_same_networks(embedding, fit, number)
        twin = next((name for name, other in named.items() if _is_same(fit, other)), None)
        if twin is not None and twin != "embedding":
            raise InvalidInput(
                f"Fits number {twin.removeprefix('fit-')} and {number} are one and the same. Give "
                "every fit once."
            )
        if twin is None:
            named[f"fit-{number}"] = fit
    seeds = [embedding.config.seed + number for number in range(1, refits + 1)]
    names = [f"seed-{number}" for number in seeds]
    configs = [dataclasses.replace(embedding.config, seed=number) for number in seeds]
    samples: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * refits
    if len(named) > 1 or refits:
        sources["seeds"] = list(range(len(named) + refits))
    if bootstrap:
        first = len(named) + refits
        sources["bootstrap"] = list(range(first, first + bootstrap))
    if not sources:
        raise InvalidInput(
            "Uncertainty needs other fits of the same networks. Give some, or have them made: "
            "refits=4 or bootstrap=10."
        )
    for source, places in sources.items():
        if len(places) < least:
            raise InvalidInput(
                f"Expected at least {least} fits for such ellipses, got {len(places)} of the "
                f"source {source!r}. Make more."
            )
    generator = np.random.default_rng(seed)
    training = embedding.training_samples
    for number in range(1, bootstrap + 1):
        drawn = torch.from_numpy(generator.integers(len(training), size=len(training)))
        names.append(f"bootstrap-{number}")
        configs.append(embedding.config)
        samples.append((training[drawn].sort().values, embedding.held_out_samples))
    made = (
        refit(embedding, configs, samples=samples, device=device, progress=progress)
        if configs
        else ()
    )
    return Fits(named | dict(zip(names, made, strict=True)), sources)


def _given(fits: FitSource | None) -> list[ModelEmbedding]:
    if fits is None:
        return []
    listed = [fits] if isinstance(fits, ModelEmbedding | str | Path) else list(fits)
    opened = []
    for fit in listed:
        found = load_embedding(fit) if isinstance(fit, str | Path) else fit
        if not isinstance(found, ModelEmbedding):
            raise InvalidInput(
                f"fits are embeddings or the folders that hold them, got {type(fit).__name__}. "
                "Make them with dynamo_plugin.fit(population, seeds=5)."
            )
        opened.append(found)
    return opened


def _check_same_networks(embedding: ModelEmbedding, fit: ModelEmbedding, number: int) -> None:
    own = dict(zip(embedding.ids, embedding.provenance.model_hashes, strict=True))
    found = dict(zip(fit.ids, fit.provenance.model_hashes, strict=True))
    odd = sorted(own.keys() ^ found.keys())
    if odd:
        where = "does not have" if odd[0] in own else "has, and the embedding does not,"
        raise InvalidInput(
            f"Fits of the same networks are compared; fit number {number} {where} {odd[0]!r}. Fit "
            "the same population again."
        )
    changed = [model for model, model_hash in own.items() if found[model] != model_hash]
    if changed:
        raise InvalidInput(
            f"Fits of the same networks are compared; in fit number {number}, {changed[0]!r} is "
            "another network of that name: its content hash differs. Fit the same population again."
        )


def _is_same(fit: ModelEmbedding, other: ModelEmbedding) -> bool:
    return fit is other or (
        fit.ids == other.ids
        and fit.config == other.config
        and torch.equal(fit.thetas, other.thetas)
    )
