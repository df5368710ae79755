"""What the meta-model is trained on: the stored states and outputs, as padded batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population
from dynamo_plugin.training.ranks import Ranks
from dynamo_plugin.training.stages import Stage, find_stages

__all__ = ["TargetBatch", "Targets"]

IN_MEMORY_BYTES = 4 * 2**30
"""Above this size, the states of a population stay in the store and are read batch by batch."""

DEVICE_SHARE = 0.4
"""Up to this share of the free memory of an accelerator, they are kept there."""

SAMPLES_PER_READ = 256
"""Samples read at once where a whole model is passed through."""


@dataclass(frozen=True, slots=True)
class TargetBatch:
    """What some base models did on some samples."""

    inputs: Tensor
    """(sample, time) ids, (sample, time, feature) or (sample, *shape)."""
    lengths: Tensor
    """(sample,) int64; 1 for inputs without time."""
    states: Mapping[str, Tensor]
    """Stage to (model, sample, row, max units) as recorded; a row is a step, or a position of the
    sample. Zero where there is no such unit or step, or where only every k-th step was stored and
    this is another."""
    masks: Mapping[str, Tensor]
    """Stage to (1 or model, sample, row) boolean: where there is a state to compare with."""
    output_axes: Mapping[str, str]
    """Output group to `sample` or `time`: whether there is one output, or one per step."""
    outputs: Mapping[str, tuple[Tensor, Tensor]]
    """Output group to (positions, values): which rows of the batch's models belong to the group,
    (member,) int64, and their outputs, (member, sample, time, size), one time step for outputs
    of whole samples."""

    @property
    def real_steps(self) -> Tensor:
        """(sample, time) boolean."""
        time = torch.arange(int(self.lengths.max()), device=self.lengths.device)
        return time < self.lengths[:, None]


class Targets:
    """Reads batches of a population's states and outputs for a set of models.

    Parameters
    ----------
    population
        An open population.
    sites
        Sites that count; None for all sites of each model.
    models
        Ids of the models, in the order of the indices below; None for all of the population.
    device
        Where batches go.
    layered
        Whether every site is a stage of its own; see `find_stages`, and there for what is raised.
    ranks
        The processes that share the models; this one reads its own only, and below an index counts
        among those.
    in_memory
        Whether states may be kept in memory, where they fit.
    widths
        Stage to the number of units to which states are padded at least.
    """

    def __init__(
        self,
        population: Population,
        *,
        sites: Sequence[str] | None,
        models: Sequence[str] | None = None,
        device: torch.device,
        layered: bool = False,
        ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
        in_memory: bool = True,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.population = population
        self.device = device
        self.ranks = ranks
        everything = population.ids if models is None else tuple(models)
        self.stages = find_stages(population, everything, sites=sites, layered=layered)
        """Of all models, those of other processes too."""
        self.own = ranks.own(len(everything))
        self.ids = everything[self.own.start : self.own.stop]
        self.groups: dict[str, list[int]] = {}
        for index, model in enumerate(self.ids):
            self.groups.setdefault(population.output_group(model), []).append(index)
        self._axis = {o.group: o.axis for o in population.population_spec.outputs}
        self._offsets = torch.from_numpy(np.array(population.offsets, dtype=np.int64))
        self._readers = {
            stage.name: _StageReader(self, stage, (widths or {}).get(stage.name, 0))
            for stage in self.stages
        }
        size = sum(reader.bytes for reader in self._readers.values())
        place = self._place_for(size) if in_memory else None
        if place is not None:
            for reader in self._readers.values():
                reader.load(place)
        self._outputs = {
            group: torch.stack([self._load_outputs(model) for model in members])
            for group, members in self.groups.items()
        }
        self._reading = ThreadPoolExecutor(1) if place is None and in_memory else None
        self._ahead: dict[tuple[bytes, bytes], Future[TargetBatch]] = {}
        self._lock = Lock()

    def _place_for(self, size: int) -> torch.device | None:
        """Return where states of so many bytes are kept; None if they stay in the store."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if size <= DEVICE_SHARE * free:
                return self.device
        return torch.device("cpu") if size <= IN_MEMORY_BYTES else None

    def units(self, stage: str) -> tuple[int, ...]:
        """Return the number of units of every model at a stage."""
        return self._readers[stage].stage.units

    def rows_per_sample(self, samples: Tensor) -> int:
        """Return how many rows of states the longest of some samples has, over all stages."""
        return sum(int(reader.lengths[samples].max()) for reader in self._readers.values())

    def first_with_rows(self, samples: Tensor, rows: int) -> Tensor:
        """Return the first of some samples that together have so many stored rows at every stage.

        Of all models; all samples where they do not have as many.
        """
        fewest = torch.stack(
            [-(-reader.lengths[samples] // reader.every.max()) for reader in self._readers.values()]
        ).amin(0)
        return samples[: int((fewest.cumsum(0) < rows).sum()) + 1]

    @property
    def lengths(self) -> Tensor:
        """(sample,) int64: steps of every sample of the population."""
        return self._offsets.diff()

    def prefetch(self, models: Tensor, samples: Tensor) -> None:
        """Begin to read what `batch` will be asked for next, where states are not in memory."""
        if self._reading is not None and len(models):
            key = (models.numpy().tobytes(), samples.numpy().tobytes())
            self._ahead[key] = self._reading.submit(self._read, models, samples)

    def batch(self, models: Tensor, samples: Tensor, *, states: bool = True) -> TargetBatch:
        """Read some models on some samples.

        Parameters
        ----------
        models, samples
            int64 indices on the CPU, in any order.
        states
            Whether states are wanted, or outputs alone.
        """
        if states and self._ahead:
            key = (models.numpy().tobytes(), samples.numpy().tobytes())
            if (begun := self._ahead.pop(key, None)) is not None:
                return begun.result()
        return self._read(models, samples, states=states)

    def _read(self, models: Tensor, samples: Tensor, *, states: bool = True) -> TargetBatch:
        with self._lock:  # a population serves one thread at a time
            return self._batch(models, samples, states=states)

    def _batch(self, models: Tensor, samples: Tensor, *, states: bool) -> TargetBatch:
        inputs = self.population.inputs.batch(samples.numpy())
        found, masks = {}, {}
        for name, reader in self._readers.items() if states else ():
            read, mask = reader.read(models, samples)
            found[name], masks[name] = read.to(self.device), mask.to(self.device)
        rows, real = _padded_rows(self._offsets, samples)
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
                taken = stored[:, rows.flatten()].unflatten(1, rows.shape) * real[None, ..., None]
            else:
                taken = stored[:, samples].unsqueeze(2)
            outputs[group] = (torch.tensor(positions, device=self.device), taken.to(self.device))
        return TargetBatch(
            inputs.values.to(self.device),
            inputs.lengths.to(self.device),
            found,
            masks,
            self._axis,
            outputs,
        )

    def state_statistics(self, samples: Tensor, stage: str) -> tuple[Tensor, Tensor]:
        """Mean and pooled standard deviation of every model's stored states on some samples.

        Returns
        -------
        tuple of Tensor
            (model, max units) mean of each unit, and (model,) root of the variance averaged over
            units, both over the rows that were stored.

        Raises
        ------
        InvalidInput
            If the states of a model never change: there is nothing to embed.
        """
        reader = self._readers[stage]
        units = reader.stage.units
        mean = torch.zeros(len(units), reader.widest)
        scale = torch.zeros(len(units))
        for model, own in enumerate(units):
            count, total, square = 0, 0.0, 0.0
            for chunk in samples.split(SAMPLES_PER_READ):
                states = reader.flat(model, chunk.numpy()).astype(np.float64)
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
                names = ", ".join(site.name for site in reader.stage.sites[model])
                raise InvalidInput(
                    f"The states of model {self.ids[model]!r} (sites {names}) are the same at "
                    "every step of every training sample; a model embedding needs states that "
                    "vary. Leave the model out, or capture a site that responds to the inputs."
                )
            mean[model, :own] = torch.from_numpy(np.asarray(total)).float()
            scale[model] = math.sqrt(variance)
        return mean, scale

    def output_variance(self, group: str, samples: Tensor) -> float:
        """Variance of a group's outputs on some samples, averaged over output units.

        Over the models of all processes.
        """
        spec = next(o for o in self.population.population_spec.outputs if o.group == group)
        stored = torch.zeros(0, len(self._offsets) - 1, math.prod(spec.shape))
        if group in self._outputs:
            stored = self._outputs[group]
            if spec.axis == "time":
                rows, real = _padded_rows(self._offsets, samples)
                stored = stored[:, rows[real]]
            else:
                stored = stored[:, samples]
        values = stored.double().flatten(0, 1)
        rows = torch.tensor(len(values), dtype=torch.float64)
        count, total = self.ranks.total([rows, values.sum(0)])
        (square,) = self.ranks.total([(values - total / count).square().sum(0)])
        return float((square / count).mean())

    def _load_outputs(self, model: int) -> Tensor:
        values = self.population.outputs(self.ids[model])
        return torch.from_numpy(values.reshape(len(values), -1).astype(np.float32))


class _StageReader:
    """Reads the states of one stage: rows of all samples, one after the other."""

    def __init__(self, targets: Targets, stage: Stage, width: int) -> None:
        self.ids = targets.ids
        self.population = targets.population
        self.widest = max(*stage.units, width)
        stage = stage.select(targets.own)
        self.stage = stage
        samples = len(targets.population.sample_ids)
        self.offsets = targets._offsets
        if stage.spec.axis == "sample":
            self.offsets = torch.arange(samples + 1) * math.prod(stage.spec.positions)
        self.lengths = self.offsets.diff()
        self.every = torch.tensor(stage.every)
        self.bytes = 4 * len(self.ids) * int(self.offsets[-1]) * self.widest
        self._states: Tensor | None = None

    def load(self, place: torch.device) -> None:
        """Keep all states in memory, there."""
        states = torch.zeros(len(self.ids), int(self.offsets[-1]), self.widest, device=place)
        begins = self.offsets[:-1].repeat_interleave(self.lengths)
        steps = torch.arange(len(begins)) - begins
        for model, (units, every) in enumerate(
            zip(self.stage.units, self.every.tolist(), strict=True)
        ):
            kept = steps % every == 0
            states[model, kept.to(place), :units] = torch.from_numpy(self.flat(model, None)).to(
                place
            )
        self._states = states

    def read(self, models: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return (model, sample, row, max units) states, and (1 or model, sample, row) mask."""
        rows, real = _padded_rows(self.offsets, samples)
        mask = real[None]
        if bool((self.every[models] > 1).any()):
            steps = torch.arange(rows.shape[1])
            mask = mask & (steps % self.every[models][:, None, None] == 0)
        if self._states is not None:
            place = self._states.device
            if len(models) and bool((models.diff() == 1).all()):  # a view, and no copy
                chosen = self._states[int(models[0]) : int(models[-1]) + 1]
            else:
                chosen = self._states[models.to(place)]
            states = chosen[:, rows.flatten().to(place)].unflatten(1, rows.shape)
            if not bool(real.all()):
                # At steps that were not stored, zero already.
                states *= real[None, ..., None].to(place)
            return states, mask
        states = torch.zeros(len(models), *rows.shape, self.widest)
        own = mask.expand(len(models), -1, -1)
        for position, model in enumerate(models.tolist()):
            flat = torch.from_numpy(self.flat(model, samples.numpy()))
            states[position, :, :, : flat.shape[1]][own[position]] = flat
        return states, mask

    def flat(self, model: int, samples: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Return (row, units): what was stored of a model on some samples, None for all."""
        name = self.ids[model]
        parts = []
        for site in self.stage.sites[model]:
            part = self.population.states(name, site.name, samples=samples)
            if self.stage.spec.positions:
                # (sample, channel, *positions): channels last, one row per position.
                part = np.moveaxis(part.reshape(*part.shape[:2], -1), 1, 2)
                part = part.reshape(-1, part.shape[2])
            parts.append(part.reshape(len(part), -1).astype(np.float32, copy=False))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _padded_rows(offsets: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sample, row) numbers of rows, and which are real."""
    lengths = offsets.diff()[samples]
    steps = torch.arange(int(lengths.max()))
    real = steps < lengths[:, None]
    return (offsets[samples][:, None] + steps).where(real, 0), real
