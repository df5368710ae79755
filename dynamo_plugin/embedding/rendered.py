"""A theta as a network that runs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
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
    state_map
        Matrix (base units, meta units) and offset (base units,) of the base model that is
        emulated, where there is one.
    """

    theta: Tensor
    state_map_matrix: Tensor | None
    state_map_offset: Tensor | None

    def __init__(
        self,
        meta_model: MetaModel,
        theta: Tensor,
        *,
        output_group: str,
        state_map: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.meta_model = copy.deepcopy(meta_model)
        self.output_group = output_group
        self.register_buffer("theta", theta.detach().clone())
        matrix, offset = state_map if state_map is not None else (None, None)
        self.register_buffer("state_map_matrix", matrix)
        self.register_buffer("state_map_offset", offset)
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
        expected = 2 if spec.kind == "ids" else 3
        shown = "(sample, time) ids" if spec.kind == "ids" else f"(sample, time, {spec.size})"
        if inputs.ndim != expected or (spec.kind == "features" and inputs.shape[-1] != spec.size):
            raise InvalidInput(f"Expected inputs {shown}, got shape {tuple(inputs.shape)}.")
        if spec.kind == "ids":
            if inputs.is_floating_point():
                raise InvalidInput(f"Expected integer ids, got {inputs.dtype}.")
            if inputs.numel() and (int(inputs.min()) < 0 or int(inputs.max()) >= spec.size):
                raise InvalidInput(
                    f"Expected ids from 0 to {spec.size - 1}, got ids from {int(inputs.min())} to "
                    f"{int(inputs.max())}. The vocabulary is that of the captured inputs; pass "
                    "vocabulary_size to capture for a larger one."
                )
        samples, time = inputs.shape[:2]
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

    def base_states(self, inputs: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Return V(h): the emulated states in the units of the base model.

        Parameters
        ----------
        inputs, lengths
            As in `forward`.

        Returns
        -------
        Tensor
            (sample, time, base units); steps past a row's length mean nothing.

        Raises
        ------
        InvalidInput
            If this network was rendered from a theta and not from a model's id.
        """
        if self.state_map_matrix is None or self.state_map_offset is None:
            raise InvalidInput(
                "This network was rendered from a theta: only a base model has a state map. "
                "Render the id of a model, or use trajectory(inputs).states['hidden']."
            )
        hidden = self.trajectory(inputs, lengths=lengths).states["hidden"]
        return hidden @ self.state_map_matrix.T + self.state_map_offset
