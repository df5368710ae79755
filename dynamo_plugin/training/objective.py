"""The objective: hidden loss plus weighted output loss, for many models at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamo_plugin.metamodels import AffineStateMaps
from dynamo_plugin.registry.interfaces import Loss, MetaModel
from dynamo_plugin.training.targets import TargetBatch
from dynamo_plugin.types import OutputSpec

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


class Objective(nn.Module):
    """L_hidden and L_output of Cotler et al. 2023 (arXiv:2302.14078, section 2.2).

    Holds everything that is trained: the meta-model (F and G), one theta per model, and the state
    maps V.

    Parameters
    ----------
    meta_model, state_maps
        F with its readouts G, and V.
    thetas
        (model, embedding_dim) initial values.
    hidden_loss
        d_h.
    outputs
        Output group to how it is compared, d_y.
    """

    def __init__(
        self,
        meta_model: MetaModel,
        state_maps: AffineStateMaps,
        thetas: Tensor,
        *,
        hidden_loss: Loss,
        outputs: Mapping[str, OutputTerm],
    ) -> None:
        super().__init__()
        self.meta_model = meta_model
        self.state_maps = state_maps
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
        trajectory = self.meta_model(
            batch.inputs.unsqueeze(0), self.thetas[models].unsqueeze(1), batch.lengths.unsqueeze(0)
        )
        time = torch.arange(batch.states.shape[2], device=batch.states.device)
        real_steps = (time < batch.lengths[:, None])[None, :, :, None]
        stored_steps = real_steps if batch.stored is None else batch.stored[..., None]
        mapped = self.state_maps(trajectory.states["hidden"], models)
        hidden = self.hidden_loss(
            mapped,
            self.state_maps.normalise(batch.states, models),
            stored_steps & self.state_maps.real_units[models][:, None, None, :],
        ).mean(1)
        output = torch.zeros_like(hidden)
        for group, (positions, target) in batch.outputs.items():
            term = self.outputs[group]
            emulated = trajectory.outputs[group][positions]
            if term.spec.axis == "time":
                emulated, mask = emulated.flatten(3), real_steps
            else:
                emulated, mask = (
                    emulated.flatten(2).unsqueeze(2),
                    torch.ones_like(real_steps[:, :, :1]),
                )
            losses = term.loss(emulated / term.scale, target / term.scale, mask).mean(1)
            output = output.index_copy(0, positions, losses)
        return Terms(hidden, output)
