"""The objective: hidden loss plus weighted output loss, for many models at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamo_plugin.metamodels import SolvableStateMaps, StageMaps
from dynamo_plugin.registry.interfaces import Loss, MetaModel
from dynamo_plugin.training.ranks import Ranks
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

    def laid_out(self, emulated: Tensor, real_steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs as losses take them, (model, sample, time, size), and their mask.

        Parameters
        ----------
        emulated
            (model, sample, *shape) or (model, sample, time, *shape), as the meta-model returns it.
        real_steps
            (sample, time) boolean.
        """
        if self.spec.axis == "time":
            return emulated.flatten(3), real_steps[None, :, :, None]
        emulated = emulated.flatten(2).unsqueeze(2)
        return emulated, torch.ones_like(emulated[..., :1], dtype=torch.bool)

    def compare(self, emulated: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return (model, sample): losses of outputs that are laid out."""
        return self.loss(emulated / self.scale, target / self.scale, mask)


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
    ranks
        The processes that share the models, of which this holds those of one.
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
        ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.meta_model = meta_model
        self.state_maps = state_maps
        self.common_maps = common_maps
        self.thetas = nn.Parameter(thetas)
        self.hidden_loss = hidden_loss
        self.outputs = dict(outputs)

    @property
    def all_maps(self) -> dict[str, StageMaps]:
        """The maps that there are, by the name of the attribute."""
        maps = {"state_maps": self.state_maps, "common_maps": self.common_maps}
        return {name: maps_of for name, maps_of in maps.items() if maps_of is not None}

    @property
    def model_tensors(self) -> set[str]:
        """Names, as in the state dict, of the tensors whose first axis is the model."""
        names = {"thetas"}
        for kind, maps_of in self.all_maps.items():
            for stage, maps in maps_of.items():
                names |= {f"{kind}.{stage}.{name}" for name in maps.model_tensors}
        return names

    def share(self, ranks: Ranks) -> Objective:
        """Return the part of one of several processes: its own models, and what all share."""
        if ranks.size == 1:
            return self
        own = ranks.own(len(self.thetas))
        return Objective(
            self.meta_model,
            self.state_maps.select(own),
            self.thetas.detach()[own.start : own.stop].clone(),
            hidden_loss=self.hidden_loss,
            outputs=self.outputs,
            common_maps=None if self.common_maps is None else self.common_maps.select(own),
            ranks=ranks,
        )

    def forward(self, batch: TargetBatch, models: Tensor, *, aligned: bool = True) -> Terms:
        """Compare the emulations of some models with what they did.

        Parameters
        ----------
        batch
            Targets of these models.
        models
            (model,) int64 indices into the thetas and the state maps.
        aligned
            Whether the loss under common maps is wanted.
        """
        trajectory = self.meta_model(
            batch.inputs.unsqueeze(0), self.thetas[models].unsqueeze(1), batch.lengths.unsqueeze(0)
        )
        return self.compare(trajectory, batch, models, aligned=aligned)

    def compare(
        self, trajectory: Trajectory, batch: TargetBatch, models: Tensor, *, aligned: bool = True
    ) -> Terms:
        """Compare what the meta-model did at the thetas of some models with what they did."""
        thetas = self.thetas[models]
        hidden = self._hidden(self.state_maps, trajectory, batch, models, thetas)
        on_aligned = torch.zeros_like(hidden)
        if aligned and self.common_maps is not None:
            on_aligned = self._hidden(self.common_maps, trajectory, batch, models, thetas)
        output = torch.zeros_like(hidden)
        for group, (positions, target) in batch.outputs.items():
            term = self.outputs[group]
            emulated, mask = term.laid_out(trajectory.outputs[group][positions], batch.real_steps)
            output = output.index_copy(0, positions, term.compare(emulated, target, mask).mean(1))
        return Terms(hidden, output, on_aligned)

    def rescale_theta(self, factors: Tensor) -> None:
        """Change the units of theta, and nothing that the networks do.

        Parameters
        ----------
        factors
            (embedding_dim,), by which thetas are multiplied.
        """
        if bool((factors == 1).all()):
            return
        factors = factors.to(self.thetas.device)
        self.meta_model.rescale_theta(factors)
        for maps_of in self.all_maps.values():
            for _, maps in maps_of.items():
                maps.rescale_theta(factors)
        self.thetas.data *= factors

    def solve_with_others(self, *, aligned: bool = True) -> None:
        """Take part in the solution of shared maps in a pass in which no model is one's own.

        Parameters
        ----------
        aligned
            As in the passes of the others.
        """
        nobody = torch.zeros(0, dtype=torch.int64, device=self.thetas.device)
        nothing = self.thetas.new_zeros(0)
        for maps in self._solved_maps(aligned=aligned):
            maps.solve(nothing, nothing, nothing, nobody, nothing, total=self.ranks.total)

    def forget(self) -> None:
        """Drop the running moments of all maps that are solved."""
        for maps in self._solved_maps():
            maps.forget()

    def _solved_maps(self, *, aligned: bool = True) -> list[SolvableStateMaps]:
        return [
            maps
            for kind, maps_of in self.all_maps.items()
            if aligned or kind != "common_maps"
            for _, maps in maps_of.items()
            if isinstance(maps, SolvableStateMaps) and maps.solver == "ridge"
        ]

    def _hidden(
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
                maps.solve(
                    states.detach(),
                    target,
                    mask,
                    models,
                    thetas.detach(),
                    total=self.ranks.total,
                )
            counted = mask[..., None] & maps.target_units[models][:, None, None]
            mapped = maps(states, models, thetas)
            losses.append(self.hidden_loss(mapped, target, counted).mean(1))
        return torch.stack(losses).mean(0)
