"""A theta as a network that runs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest
from dynamo_plugin.metamodels import StageMaps
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import Trajectory

__all__ = ["RenderedNetwork"]


class RenderedNetwork(nn.Module):
    """The meta-model at one theta, or at several: a network like any other.

    Made by `ModelEmbedding.render`. It owns a copy of the meta-model, so that nothing done to it
    changes the embedding.

    Parameters
    ----------
    meta_model
        Is copied.
    theta
        (embedding_dim,) for one network, (model, embedding_dim) for several that run side by side.
    output_group
        Which readout answers.
    state_maps
        Those of the base model that is emulated, and of no other, where there is one.
    """

    theta: Tensor
    state_maps: StageMaps | None

    def __init__(
        self,
        meta_model: MetaModel,
        theta: Tensor,
        *,
        output_group: str,
        state_maps: StageMaps | None = None,
    ) -> None:
        super().__init__()
        self.meta_model = copy.deepcopy(meta_model)
        self.output_group = output_group
        self.register_buffer("theta", theta.detach().clone())
        self.state_maps = state_maps
        self.eval()

    def forward(
        self, inputs: Tensor, theta: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Return the outputs, as a base model would.

        Parameters
        ----------
        inputs
            (sample, time) integer ids, or (sample, time, feature) numbers.
        theta
            (embedding_dim,) or (sample, embedding_dim), used in place of the network's own; any
            leading dimensions that broadcast with (sample,) will do.
        lengths
            (sample,): real steps of each row; None if all are.

        Returns
        -------
        Tensor
            (sample, *shape), or (sample, time, *shape) for populations with an output per step;
            with a leading model dimension if several thetas were rendered.

        Raises
        ------
        InvalidInput
            If inputs, theta or lengths do not have these shapes, or an id is out of range.
        """
        return self.trajectory(inputs, theta=theta, lengths=lengths).outputs[self.output_group]

    def trajectory(
        self, inputs: Tensor, *, theta: Tensor | None = None, lengths: Tensor | None = None
    ) -> Trajectory:
        """Return the meta-model's hidden states and all outputs; parameters as in `forward`.

        The state is `hidden`, (sample, time, meta units), with a leading model dimension if
        several thetas were rendered.
        """
        spec = self.meta_model.spec.inputs
        own = {"ids": (), "features": (spec.size,), "array": spec.shape}[spec.kind]
        leading = ("sample",) if spec.kind == "array" else ("sample", "time")
        if inputs.ndim != len(leading) + len(own) or inputs.shape[len(leading) :] != own:
            shown = ", ".join([*leading, *map(str, own)])
            raise InvalidInput(
                f"Expected inputs ({shown}){' ids' if spec.kind == 'ids' else ''}, got shape "
                f"{tuple(inputs.shape)}."
            )
        if spec.kind == "ids":
            if inputs.is_floating_point():
                raise InvalidInput(f"Expected integer ids, got {inputs.dtype}.")
            if inputs.numel() and (int(inputs.min()) < 0 or int(inputs.max()) >= spec.size):
                raise InvalidInput(
                    f"Expected ids from 0 to {spec.size - 1}, got ids from {int(inputs.min())} to "
                    f"{int(inputs.max())}. The vocabulary is that of the captured inputs; pass "
                    "vocabulary_size to capture for a larger one."
                )
        samples, time = inputs.shape[0], 1 if spec.kind == "array" else inputs.shape[1]
        if time == 0:
            raise InvalidInput("Expected at least one time step, got inputs without any.")
        if lengths is None:
            lengths = torch.full((samples,), time, device=inputs.device)
        if lengths.shape != (samples,) or bool(((lengths < 1) | (lengths > time)).any()):
            raise InvalidInput(
                f"Expected lengths ({samples},) from 1 to {time}, got "
                f"{tuple(lengths.shape)}: {lengths.tolist()[:8]}."
            )
        if theta is None:
            theta = self.theta if self.theta.ndim == 1 else self.theta.unsqueeze(1)
        if theta.shape[-1:] != (self.meta_model.embedding_dim,):
            raise InvalidInput(
                f"Expected theta (..., {self.meta_model.embedding_dim}), got {tuple(theta.shape)}."
            )
        try:
            torch.broadcast_shapes(theta.shape[:-1], (samples,))
        except RuntimeError as error:
            raise InvalidInput(
                f"The leading dimensions of theta {tuple(theta.shape)} do not broadcast with "
                f"{samples} samples; give one theta, or one per sample."
            ) from error
        trajectory: Trajectory = self.meta_model(inputs, theta, lengths)
        return trajectory

    def base_states(
        self, inputs: Tensor, *, lengths: Tensor | None = None, stage: str | None = None
    ) -> Tensor:
        """Return V(h): the emulated states in the units of the base model.

        Parameters
        ----------
        inputs, lengths
            As in `forward`.
        stage
            Which states, where the meta-model has several: `stage0`, `stage1`, ..., in the order
            of the recorded sites.

        Returns
        -------
        Tensor
            (sample, time, base units), or (sample, position, base units); steps past a row's
            length mean nothing.

        Raises
        ------
        InvalidInput
            If this network was rendered from a theta and not from a model's id, or there are
            several stages and none is named.
        UnknownName
            If there is no such stage.
        """
        if self.state_maps is None:
            raise InvalidInput(
                "This network was rendered from a theta: only a base model has a state map. "
                "Render the id of a model, or use trajectory(inputs).states."
            )
        stages = list(self.state_maps)
        if stage is None and len(stages) > 1:
            raise InvalidInput(f"Which states? Name one with stage=, of {', '.join(stages)}.")
        chosen = stages[0] if stage is None else stage
        if chosen not in stages:
            raise UnknownName(f"There is no stage {chosen!r}. {suggest(chosen, stages)}")
        states = self.trajectory(inputs, lengths=lengths).states[chosen]
        maps = self.state_maps[chosen]
        only = torch.zeros(1, dtype=torch.int64, device=states.device)
        mapped = maps(states.unsqueeze(0), only, self.theta.unsqueeze(0))
        return maps.restore(mapped, only)[0, ..., : maps.units[0]]
