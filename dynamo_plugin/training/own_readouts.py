"""The base models' own readouts, found from their stored states and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dynamo_plugin.training.stages import HIDDEN
from dynamo_plugin.training.targets import TargetBatch, Targets

__all__ = ["OwnReadouts"]

RIDGE = 1e-8
"""Strength of the penalty, in units of the mean variance of the states."""

PART = 64
"""Samples read at once."""


@dataclass(frozen=True, slots=True)
class OwnReadouts:
    """G_n of every base model, as far as it is affine in the recorded state.

    The meta-model's readout is one for all models and does not see theta. A base model's own
    readout, applied to the emulated state V(h~), tells whether what it decides by is emulated.
    """

    members: Mapping[str, Tensor]
    """Output group to the (member,) int64 indices of its models."""
    weights: Mapping[str, Tensor]
    """Output group to (member, max units + 1, size), the offset last."""
    r2: Tensor
    """(model,) float64: how much of its outputs a model's readout explains; 1 if it is affine."""

    @classmethod
    def find(cls, targets: Targets, samples: Tensor) -> Self | None:
        """Regress the outputs of every model on its states.

        Parameters
        ----------
        targets
            Of recurrent models.
        samples
            (sample,) int64 indices.

        Returns
        -------
        OwnReadouts or None
            None where the states at which outputs are read were not all stored: those of layered
            models, or of every k-th step.
        """
        (stage, *others) = targets.stages
        if others or stage.name != HIDDEN or max(stage.every) > 1:
            return None
        models = torch.arange(len(targets.ids))
        sums: dict[str, list[Tensor]] = {}
        for chunk in samples.split(PART):
            batch = targets.batch(models, chunk)
            for group, states in _read_at(batch.states[HIDDEN], batch).items():
                features = torch.nn.functional.pad(states, (0, 1), value=1.0).double()
                values = batch.outputs[group][1].double()
                real = batch.real_steps if _per_step(batch, group) else batch.real_steps[:, :1]
                mask = real[None, ..., None].double()
                x, y = (features * mask).flatten(1, 2), (values * mask).flatten(1, 2)
                parts = [x.mT @ x, x.mT @ y, y.square().sum((1, 2)), y.sum(1), mask.sum()]
                known = sums.setdefault(group, [torch.zeros_like(part) for part in parts])
                for total, part in zip(known, parts, strict=True):
                    total += part
        members, weights, r2 = {}, {}, torch.ones(len(models), dtype=torch.float64)
        for group, (gram, cross, square, total, count) in sums.items():
            members[group] = torch.tensor(targets.groups[group])
            size = gram.diagonal(dim1=-2, dim2=-1)[:, :-1].mean(-1)
            penalty = RIDGE * size[:, None].expand(gram.shape[:2]).clone()
            solution = torch.linalg.solve(gram + torch.diag_embed(penalty), cross)
            residual = square - (2 * solution * cross - solution * (gram @ solution)).sum((1, 2))
            spread = square - total.square().sum(1) / count
            # What never changes is its own offset; rounding must not be divided by rounding.
            constant = spread <= 1e-12 * square
            explained = 1 - residual / spread.masked_fill(constant, 1.0)
            r2[members[group]] = explained.masked_fill(constant, 1.0).cpu()
            weights[group] = solution.float()
        return cls(members, weights, r2)

    def read(self, states: Tensor, batch: TargetBatch, models: Tensor) -> dict[str, Tensor]:
        """Return what the models' own readouts make of some states.

        Parameters
        ----------
        states
            (model, sample, time, max units), in the units of the base models.
        batch
            Whose samples and output groups they are.
        models
            (model,) int64 indices.

        Returns
        -------
        dict
            Output group to (member, sample, size), or (member, sample, time, size).
        """
        read = {}
        for group, own in _read_at(states, batch).items():
            chosen = models[batch.outputs[group][0]].cpu()
            rows = torch.searchsorted(self.members[group], chosen).to(states.device)
            weight = self.weights[group].to(states.device)[rows]
            result = own.flatten(1, 2) @ weight[:, :-1] + weight[:, -1:]
            shaped = result.unflatten(1, own.shape[1:3])
            read[group] = shaped if _per_step(batch, group) else shaped[:, :, 0]
        return read


def _per_step(batch: TargetBatch, group: str) -> bool:
    return batch.output_axes[group] == "time"


def _read_at(states: Tensor, batch: TargetBatch) -> dict[str, Tensor]:
    """Return output group to the states that outputs are read off, (member, sample, step, unit)."""
    last = (batch.lengths - 1)[None, :, None, None]
    found = {}
    for group, (positions, _) in batch.outputs.items():
        own = states[positions]
        if not _per_step(batch, group):
            own = own.gather(2, last.expand(len(own), -1, 1, own.shape[-1]))
        found[group] = own
    return found
