"""What the meta-model is trained on: the stored states and outputs, as padded batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest
from dynamo_plugin.store import Population

__all__ = ["TargetBatch", "Targets"]

IN_MEMORY_BYTES = 4 * 2**30
"""Above this size, the states of a population stay in the store and are read batch by batch."""

SAMPLES_PER_READ = 256
"""Samples read at once where a whole model is passed through."""


@dataclass(frozen=True, slots=True)
class TargetBatch:
    """What some base models did on some samples."""

    inputs: Tensor
    """(sample, time) ids or (sample, time, feature)."""
    lengths: Tensor
    """(sample,) int64."""
    states: Tensor
    """(model, sample, time, max units) as recorded, zero where there is no such unit or step, or
    where only every k-th step was stored and this is another."""
    outputs: dict[str, tuple[Tensor, Tensor]]
    """Output group to (positions, values): which rows of the batch's models belong to the group,
    (member,) int64, and their outputs, (member, sample, time, size), one time step for outputs
    of whole sequences."""
    stored: Tensor | None = None
    """(model, sample, time) boolean: at which real steps a state was stored; None where that is
    so at every one."""


class Targets:
    """Reads batches of a population's states and outputs for a set of models.

    Parameters
    ----------
    population
        An open population.
    sites
        Sites whose units are joined into one state; None for all sites of each model.
    models
        Ids of the models, in the order of the indices below; None for all of the population.
    device
        Where batches go.

    Raises
    ------
    InvalidInput
        If a site has one row per sample instead of one per time step, or sites of one model were
        stored at different steps.
    UnknownName
        If a model lacks one of the sites.
    """

    def __init__(
        self,
        population: Population,
        *,
        sites: Sequence[str] | None,
        models: Sequence[str] | None = None,
        device: torch.device,
    ) -> None:
        self.population = population
        self.device = device
        self.ids = population.ids if models is None else tuple(models)
        self.sites = {model: _sites(population, model, sites) for model in self.ids}
        self.units = tuple(
            sum(
                math.prod(site.shape)
                for site in population.spec(model).sites
                if site.name in self.sites[model]
            )
            for model in self.ids
        )
        self.every = torch.tensor([self._stride(model) for model in self.ids])
        """(model,) int64: states of steps 0, every, 2 every, ... of each sample were stored."""
        self.groups: dict[str, list[int]] = {}
        for index, model in enumerate(self.ids):
            self.groups.setdefault(population.output_group(model), []).append(index)
        self._axis = {o.group: o.axis for o in population.population_spec.outputs}
        self._offsets = torch.from_numpy(np.array(population.offsets, dtype=np.int64))
        rows = int(self._offsets[-1])
        in_memory = len(self.ids) * rows * max(self.units) * 4 <= IN_MEMORY_BYTES
        self._states = self._load_states() if in_memory else None
        self._outputs = {
            group: torch.stack([self._load_outputs(model) for model in members])
            for group, members in self.groups.items()
        }

    def batch(self, models: Tensor, samples: Tensor) -> TargetBatch:
        """Read some models on some samples.

        Parameters
        ----------
        models, samples
            int64 indices on the CPU, in any order.
        """
        inputs = self.population.inputs.batch(samples.numpy())
        lengths = inputs.lengths
        time = torch.arange(int(lengths.max()))
        rows = self._offsets[samples][:, None] + time
        real = time < lengths[:, None]
        rows = rows.where(real, 0)
        stored_steps = None
        if bool((self.every[models] > 1).any()):
            stored_steps = real & (time % self.every[models][:, None, None] == 0)
        if self._states is not None:
            whole = len(models) == len(self._states) and bool((models.diff() == 1).all())
            chosen = self._states if whole else self._states[models]
            states = chosen[:, rows.flatten()].unflatten(1, rows.shape)
            states = states * real[None, ..., None]  # at steps that were not stored, zero already
        else:
            states = torch.zeros(len(models), *rows.shape, max(self.units))
            for position, model in enumerate(models.tolist()):
                flat = torch.from_numpy(self._read_states(model, samples.numpy()))
                kept = real if stored_steps is None else stored_steps[position]
                states[position, :, :, : self.units[model]][kept] = flat
        outputs = {}
        for group, members in self.groups.items():
            positions, values = [], []
            index = {model: place for place, model in enumerate(members)}
            for position, model in enumerate(models.tolist()):
                if model in index:
                    positions.append(position)
                    values.append(index[model])
            if not positions:
                continue
            stored = self._outputs[group][values]
            if self._axis[group] == "time":
                read = stored[:, rows.flatten()].unflatten(1, rows.shape) * real[None, ..., None]
            else:
                read = stored[:, samples].unsqueeze(2)
            outputs[group] = (torch.tensor(positions, device=self.device), read.to(self.device))
        return TargetBatch(
            inputs.values.to(self.device),
            lengths.to(self.device),
            states.to(self.device),
            outputs,
            None if stored_steps is None else stored_steps.to(self.device),
        )

    def state_statistics(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and pooled standard deviation of every model's stored states on some samples.

        Returns
        -------
        tuple of Tensor
            (model, max units) mean of each unit, and (model,) root of the variance averaged over
            units, both over the steps that were stored.

        Raises
        ------
        InvalidInput
            If the states of a model never change: there is nothing to embed.
        """
        mean = torch.zeros(len(self.units), max(self.units))
        scale = torch.zeros(len(self.units))
        for model, units in enumerate(self.units):
            count, total, square = 0, 0.0, 0.0
            for chunk in samples.split(SAMPLES_PER_READ):
                states = self._read_states(model, chunk.numpy()).astype(np.float64)
                # Chan, Golub and LeVeque (1983, doi:10.1080/00031305.1983.10483115): means and
                # squared deviations of two parts are joined without cancellation.
                chunk_mean = states.mean(0)
                shift = chunk_mean - total
                joined = count + len(states)
                square = (
                    square
                    + ((states - chunk_mean) ** 2).sum(0)
                    + shift**2 * (count * len(states) / joined)
                )
                total = total + shift * (len(states) / joined)
                count = joined
            variance = float(np.mean(square)) / count
            if not variance > 0:
                raise InvalidInput(
                    f"The states of model {self.ids[model]!r} (sites "
                    f"{', '.join(self.sites[self.ids[model]])}) are the same at every "
                    "step of every training sample; a model embedding needs states that vary. "
                    "Leave the model out, or capture a site that responds to the inputs."
                )
            mean[model, :units] = torch.from_numpy(np.asarray(total)).float()
            scale[model] = math.sqrt(variance)
        return mean, scale

    def output_variance(self, group: str, samples: Tensor) -> float:
        """Variance of a group's outputs on some samples, averaged over output units."""
        stored = self._outputs[group]
        if self._axis[group] == "time":
            chosen = torch.zeros(len(self._offsets) - 1, dtype=torch.bool)
            chosen[samples] = True
            keep = chosen.repeat_interleave(self._offsets.diff())
            stored = stored[:, keep]
        else:
            stored = stored[:, samples]
        return float(stored.double().flatten(0, 1).var(0, correction=0).mean())

    def _read_states(self, model: int, samples: NDArray[np.int64] | None) -> NDArray[np.float32]:
        name = self.ids[model]
        parts = [self.population.states(name, site, samples=samples) for site in self.sites[name]]
        return np.concatenate(
            [part.reshape(len(part), -1).astype(np.float32, copy=False) for part in parts], axis=1
        )

    def _load_states(self) -> Tensor:
        states = torch.zeros(len(self.units), int(self._offsets[-1]), max(self.units))
        for model, (units, every) in enumerate(zip(self.units, self.every.tolist(), strict=True)):
            kept = slice(None) if every == 1 else self._stored_rows(every)
            states[model, kept, :units] = torch.from_numpy(self._read_states(model, None))
        return states

    def _stored_rows(self, every: int) -> Tensor:
        """Return (row,): whether a row is of one of the steps 0, every, 2 every, ..."""
        begins = self._offsets[:-1].repeat_interleave(self._offsets.diff())
        return (torch.arange(len(begins)) - begins) % every == 0

    def _stride(self, model: str) -> int:
        """Return at every how many steps the states of a model were stored."""
        sites = [
            site for site in self.population.spec(model).sites if site.name in self.sites[model]
        ]
        strides = {site.every for site in sites}
        if len(strides) > 1:
            found = ", ".join(f"{site.name!r} every {site.every}" for site in sites)
            raise InvalidInput(
                f"Sites of model {model!r} were stored at different steps ({found}), so that they "
                "cannot be joined into one state. Choose some of one kind with sites=[...]."
            )
        return max(strides, default=1)

    def _load_outputs(self, model: int) -> Tensor:
        values = self.population.outputs(self.ids[model])
        return torch.from_numpy(values.reshape(len(values), -1).astype(np.float32))


def _sites(population: Population, model: str, sites: Sequence[str] | None) -> tuple[str, ...]:
    specs = {site.name: site for site in population.spec(model).sites}
    chosen = tuple(specs) if sites is None else tuple(sites)
    for name in chosen:
        if name not in specs:
            raise UnknownName(f"Model {model!r} has no site {name!r}. {suggest(name, specs)}")
        if specs[name].axis != "time":
            raise InvalidInput(
                f"Site {name!r} of model {model!r} has one row per sample; a recurrent meta-model "
                "needs one per time step. Choose other sites with sites=[...]."
            )
    return chosen
