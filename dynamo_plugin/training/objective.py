"""The objective: hidden loss plus weighted output loss, for many models at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamo_plugin.metamodels import SolvableStateMaps, StageMaps
from dynamo_plugin.registry.interfaces import Loss, MetaModel
from dynamo_plugin.training.targets import TargetBatch
from dynamo_plugin.types import OutputSpec, Trajectory

__all__ = ["Objective", "OutputTerm", "Terms"]


@dataclass(frozen=True, slots=True)
class OutputTerm:
    """How the outputs of one group are compared."""

    spec: OutputSpec
    loss: Loss
    logits: bool
    """Whether outputs are logits, of which decisions are compared, or real numbers."""
    scale: float
    """Outputs are divided by it first; 1 for logits."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of the loss of the models of one batch, averaged over samples."""

    hidden: Tensor
    """(model,)."""
    output: Tensor
    """(model,)."""
    aligned: Tensor
    """(model,): hidden loss under the maps that all models share; zero where there are none."""


class Objective(nn.Module):
    """L_hidden and L_output of Cotler et al. 2023 (arXiv:2302.14078, section 2.2 and appendix A).

    Holds everything that is trained: the meta-model (F and G), one theta per model, and the state
    maps V.

    Parameters
    ----------
    meta_model
        F with its readouts G.
    state_maps
        Stage to V.
    thetas
        (model, embedding_dim) initial values.
    hidden_loss
        d_h.
    outputs
        Output group to how it is compared, d_y.
    common_maps
        Stage to one map for all models, for a second hidden loss on aligned states.
    """

    def __init__(
        self,
        meta_model: MetaModel,
        state_maps: StageMaps,
        thetas: Tensor,
        *,
        hidden_loss: Loss,
        outputs: Mapping[str, OutputTerm],
        common_maps: StageMaps | None = None,
    ) -> None:
        super().__init__()
        self.meta_model = meta_model
        self.state_maps = state_maps
        self.common_maps = common_maps
        self.thetas = nn.Parameter(thetas)
        self.hidden_loss = hidden_loss
        self.outputs = dict(outputs)

    def forward(self, batch: TargetBatch, models: Tensor) -> Terms:
        """Compare the emulations of some models with what they did.

        Parameters
        ----------
        batch
            Targets of these models.
        models
            (model,) int64 indices into the thetas and the state maps.
        """
        thetas = self.thetas[models]
        trajectory = self.meta_model(
            batch.inputs.unsqueeze(0), thetas.unsqueeze(1), batch.lengths.unsqueeze(0)
        )
        hidden = self._compare(self.state_maps, trajectory, batch, models, thetas)
        aligned = torch.zeros_like(hidden)
        if self.common_maps is not None:
            aligned = self._compare(self.common_maps, trajectory, batch, models, thetas)
        output = torch.zeros_like(hidden)
        for group, (positions, target) in batch.outputs.items():
            term = self.outputs[group]
            emulated = trajectory.outputs[group][positions]
            if term.spec.axis == "time":
                emulated, mask = emulated.flatten(3), batch.real_steps[None, :, :, None]
            else:
                emulated = emulated.flatten(2).unsqueeze(2)
                mask = torch.ones_like(emulated[..., :1], dtype=torch.bool)
            losses = term.loss(emulated / term.scale, target / term.scale, mask).mean(1)
            output = output.index_copy(0, positions, losses)
        return Terms(hidden, output, aligned)

    def _compare(
        self,
        maps_of: StageMaps,
        trajectory: Trajectory,
        batch: TargetBatch,
        models: Tensor,
        thetas: Tensor,
    ) -> Tensor:
        """Return the hidden loss of every model, averaged over stages."""
        losses = []
        for stage, maps in maps_of.items():
            states, mask = trajectory.states[stage], batch.masks[stage]
            target = maps.normalise(batch.states[stage], models)
            if self.training and isinstance(maps, SolvableStateMaps) and maps.solver == "ridge":
                maps.solve(states.detach(), target, mask, models, thetas.detach())
            counted = mask[..., None] & maps.target_units[models][:, None, None]
            mapped = maps(states, models, thetas)
            losses.append(self.hidden_loss(mapped, target, counted).mean(1))
        return torch.stack(losses).mean(0)
