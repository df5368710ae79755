"""The result of a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from dynamo_plugin.embedding.geometry import functional_distances, pullback_thetas
from dynamo_plugin.embedding.rendered import RenderedNetwork
from dynamo_plugin.errors import InvalidInput, StoreNotFound, UnknownName, suggest
from dynamo_plugin.metamodels import StageMaps
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.store import Population, join_populations, open_population
from dynamo_plugin.training import FitConfig

__all__ = ["ModelEmbedding", "Provenance"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an embedding comes from."""

    population: str
    """Location of the population store."""
    inputs_hash: str
    """Content hash of the population's inputs."""
    model_hashes: tuple[str, ...]
    """Content hash of every base model, in the order of the ids."""
    versions: Mapping[str, str]
    """Versions of Python and of the packages that computed it."""
    device: str
    """Where it was trained."""
    others: tuple[str, ...] = ()
    """Locations of further populations, whose models were inserted."""


@dataclass(frozen=True, eq=False)
class ModelEmbedding:
    """One vector per network, and the meta-model that turns vectors into networks.

    Made by `dynamo_plugin.fit` and `dynamo_plugin.load_embedding`.
    """

    thetas: Tensor
    """(model, embedding_dim) float32: the model embedding."""
    ids: tuple[str, ...]
    """Model ids, in the order of the thetas."""
    metadata: pd.DataFrame
    """What was known of the models at capture, one row per id."""
    meta_model: MetaModel
    """F and its readouts G."""
    state_maps: StageMaps
    """V: stage to the maps of all models; `hidden` is the one stage of recurrent families."""
    common_maps: StageMaps | None
    """Stage to the one map V(theta) from the meta-model's states to aligned states of all models,
    where the fit had one."""
    output_groups: tuple[str, ...]
    """The output group of every model."""
    history: pd.DataFrame
    """Losses and held-out figures along training."""
    config: FitConfig
    """The settings of the fit."""
    training_samples: Tensor
    """(sample,) int64 indices of the samples that were trained on."""
    held_out_samples: Tensor
    """(sample,) int64 indices of the samples that were kept aside."""
    provenance: Provenance
    """Population, versions and hashes."""
    stopped: str | None = None
    """Why the fit ended before all its steps were made: `interrupted`, `settled` (`patience`), or
    what a callback said; None if it did not."""
    bound_population: Population | None = None
    """The open population, where there is one; use `population`."""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"ModelEmbedding({len(self.ids)} models, embedding_dim={self.thetas.shape[1]}, "
            f"family={self.config.family!r})"
        )

    @cached_property
    def population(self) -> Population:
        """The population that was embedded; opened when first asked for.

        Raises
        ------
        StoreNotFound
            If it is not where it was.
        InvalidInput
            If what is there now is not what was embedded.
        """
        population = self.bound_population
        if population is None:
            where = (self.provenance.population, *self.provenance.others)
            try:
                population = join_populations(
                    *(open_population(place, allow_incomplete=True) for place in where)
                )
            except StoreNotFound as error:
                raise StoreNotFound(
                    f"The population of this embedding was at {' and '.join(where)} and is "
                    "no longer there. Say where it is: load_embedding(path, population=...)."
                ) from error
        found = dict(zip(self.ids, self.provenance.model_hashes, strict=True))
        changed = [
            model
            for model, model_hash in found.items()
            if model not in population.ids or population.model_hash(model) != model_hash
        ]
        if population.inputs.hash != self.provenance.inputs_hash or changed:
            what = f"models {', '.join(changed[:5])}" if changed else "the inputs"
            raise InvalidInput(
                f"The population at {population.location} is not the one that was embedded: {what} "
                "differ. Say where that one is: load_embedding(path, population=...)."
            )
        return population

    def index(self, model: str) -> int:
        """Return the position of a model id.

        Raises
        ------
        UnknownName
            If there is no such model; suggests the nearest ids.
        """
        try:
            return self.ids.index(model)
        except ValueError:
            raise UnknownName(
                f"The embedding has no model {model!r}. {suggest(model, self.ids)}"
            ) from None

    def theta(self, model: str) -> Tensor:
        """Return the theta of a model id, (embedding_dim,)."""
        return self.thetas[self.index(model)]

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per model: its metadata and its theta, in columns theta_0, theta_1, ..."""
        columns = [f"theta_{dimension}" for dimension in range(self.thetas.shape[1])]
        thetas = pd.DataFrame(
            self.thetas.numpy(), index=pd.Index(self.ids, name="model"), columns=columns
        )
        return pd.concat([self.metadata, thetas], axis=1)

    def distances(self, kind: Literal["theta", "pullback", "functional"] = "theta") -> pd.DataFrame:
        """Return the distance between every two models.

        Parameters
        ----------
        kind
            `theta`: Euclidean distance between thetas. `pullback`: between thetas too, in the
            metric that they have where they act, G = E[J^T J] with J the derivative of the
            rendered states by theta. `functional`: root mean square difference of the rendered
            states themselves. The last two run the meta-model on held-out inputs, which they read
            from the population. Rendered states are V(theta) h(theta) where one map serves all
            models (`alignment_weight`, `state_map="amortised"`), else h(theta).

        Returns
        -------
        DataFrame
            Square, symmetric, labelled with the ids, zero on the diagonal.
        """
        if kind == "theta":
            values = squareform(pdist(self.thetas.double().numpy()))
        elif kind == "pullback":
            values = squareform(pdist(pullback_thetas(self)))
        elif kind == "functional":
            values = functional_distances(self)
        else:
            raise InvalidInput(f"kind must be 'theta', 'pullback' or 'functional', got {kind!r}.")
        index = pd.Index(self.ids, name="model")
        return pd.DataFrame(values, index=index, columns=index)

    def render(
        self, which: str | Sequence[str] | ArrayLike | Tensor, *, output_group: str | None = None
    ) -> RenderedNetwork:
        """Return the network at a theta.

        Parameters
        ----------
        which
            A model id, several ids, a theta (embedding_dim,), or several (model, embedding_dim).
        output_group
            Which readout answers. By default that of the models named; a theta needs it where the
            population has several groups.

        Returns
        -------
        RenderedNetwork
            A module: `network(inputs)` are the outputs.

        Raises
        ------
        UnknownName
            If there is no such model or group.
        InvalidInput
            If theta has another length or is not finite, or the models named belong to several
            output groups.
        """
        ids = _as_ids(which)
        if ids is None:
            return self._render_theta(which, output_group)
        positions = [self.index(model) for model in ids]
        if output_group is None:
            groups = sorted({self.output_groups[position] for position in positions})
            if len(groups) > 1:
                raise InvalidInput(
                    f"These models belong to the output groups {', '.join(groups)}; render those "
                    "of each group apart, or choose a readout with output_group=..."
                )
            output_group = groups[0]
        one = isinstance(which, str)
        return RenderedNetwork(
            self.meta_model,
            self.thetas[positions[0]] if one else self.thetas[positions],
            output_group=self._known_group(output_group),
            state_maps=self.state_maps.select(positions) if one else None,
        )

    def insert(
        self,
        population: Population,
        *,
        models: Sequence[str] | None = None,
        steps: int | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> ModelEmbedding:
        """Return this embedding with further networks in it, of which it takes a few seconds each.

        The meta-model and all thetas and state maps stay as they are, to the bit; only those of the
        new networks are fitted. The meta-model has never learned what is private to these, so that
        they are emulated less well than the others; `fidelity` says how well.

        Parameters
        ----------
        population
            Where the new networks are, captured on the inputs of the embedded population.
        models
            Their ids; None for all that the embedding does not have.
        steps, batch_size
            Optimiser steps, and sequences of each; None for 150 where state maps are solved in
            closed form or shared, and for as many as the fit had where they are learned.
        device
            Where to compute; None for the accelerator if there is one, else the CPU.
        progress
            Whether to show a bar on stderr.

        Returns
        -------
        ModelEmbedding
            The new networks come last. Its population is both populations joined.

        Raises
        ------
        InvalidInput
            If inputs, output groups or the number of recorded stages differ, or there is nothing
            to insert.
        UnknownName
            If there is no such model.
        DuplicateName
            If the embedding has a model of that id.
        """
        from dynamo_plugin.embedding.inserting import insert_models

        return insert_models(
            self,
            population,
            models=models,
            steps=steps,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the embedding into a folder; see `dynamo_plugin.embedding.save_embedding`."""
        from dynamo_plugin.embedding.saving import save_embedding

        return save_embedding(self, path, overwrite=overwrite)

    def with_population(self, population: Population) -> ModelEmbedding:
        """Return this embedding with another copy of its population."""
        bound = dataclasses.replace(
            self,
            bound_population=population,
            provenance=dataclasses.replace(
                self.provenance,
                population=population.location,
                others=tuple(part.location for part in population.parts[1:]),
            ),
        )
        _ = bound.population  # raises if it is another one
        return bound

    def _render_theta(self, which: object, output_group: str | None) -> RenderedNetwork:
        given = which.detach().cpu() if isinstance(which, Tensor) else np.array(which)
        theta = torch.as_tensor(given, dtype=torch.float32)
        dim = self.thetas.shape[1]
        if theta.ndim not in (1, 2) or theta.shape[-1] != dim or theta.numel() == 0:
            raise InvalidInput(
                f"Expected a model id, ids, or a theta of shape ({dim},) or (models, {dim}); got "
                f"shape {tuple(theta.shape)}."
            )
        if not bool(torch.isfinite(theta).all()):
            raise InvalidInput("Expected a finite theta, got NaN or infinity in it.")
        if output_group is None:
            groups = sorted(set(self.output_groups))
            if len(groups) > 1:
                raise InvalidInput(
                    f"This population has the output groups {', '.join(groups)}: a theta alone "
                    "does not say which readout answers. Choose one with output_group=..."
                )
            output_group = groups[0]
        return RenderedNetwork(self.meta_model, theta, output_group=self._known_group(output_group))

    def _known_group(self, group: str) -> str:
        if group not in self.output_groups:
            raise UnknownName(
                f"There is no output group {group!r}. {suggest(group, set(self.output_groups))}"
            )
        return group


def _as_ids(which: object) -> list[str] | None:
    """Return the ids that were named, or None if thetas were."""
    if isinstance(which, str):
        return [which]
    if isinstance(which, Tensor | np.ndarray) and not (
        isinstance(which, np.ndarray) and which.dtype.kind in "UO"
    ):
        return None
    names = list(which) if isinstance(which, Sequence | np.ndarray | pd.Index | pd.Series) else []
    if names and all(isinstance(name, str) for name in names):
        return [str(name) for name in names]
    return None
