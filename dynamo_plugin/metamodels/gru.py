"""The recurrent meta-model of the paper: a GRU that reads [x ; theta] at every step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import JSON, PopulationSpec, Trajectory

__all__ = ["GRUMetaModel"]

TOKEN_STD = 0.1
"""Standard deviation of the initial token embedding. At PyTorch's 1, what distinguishes tokens is
noise at first, and rare tokens keep much of it."""


class GRUMetaModel(MetaModel):
    """A gated recurrent unit whose input at every step is [token embedding or features ; theta].

    Since theta does not change over time, its part of the input is a bias of the three gates,
    computed once per theta; the part of the inputs is computed once per sequence, however many
    thetas run on it. The result is that of `torch.nn.GRU` on the concatenation.

    The family of Cotler et al. 2023 (arXiv:2302.14078, appendix B.1); the cell is that of Cho et
    al. 2014 (doi:10.3115/v1/D14-1179) as PyTorch writes it, gates in the order reset, update, new.

    Parameters
    ----------
    spec
        Inputs and output groups of the population; one affine readout per group.
    embedding_dim
        Length of theta.
    units
        Width of the hidden state.
    token_dim
        Width of the token embedding; only for populations whose inputs are ids.
    """

    def __init__(
        self,
        spec: PopulationSpec,
        *,
        embedding_dim: int,
        units: int = 128,
        token_dim: int = 128,
    ) -> None:
        super(MetaModel, self).__init__()
        for name, value in (
            ("embedding_dim", embedding_dim),
            ("units", units),
            ("token_dim", token_dim),
        ):
            if value < 1:
                raise InvalidInput(f"{name} must be at least 1, got {value}.")
        self.spec = spec
        self.embedding_dim = embedding_dim
        self.units = units
        self.token_dim = token_dim
        self.token_embedding = None
        if spec.inputs.kind == "ids":
            self.token_embedding = nn.Embedding(spec.inputs.size, token_dim)
            nn.init.normal_(self.token_embedding.weight, std=TOKEN_STD)
            input_dim = token_dim
        else:
            input_dim = spec.inputs.size
        self.weight_input = nn.Parameter(torch.empty(3 * units, input_dim))
        self.weight_theta = nn.Parameter(torch.empty(3 * units, embedding_dim))
        self.weight_hidden = nn.Parameter(torch.empty(3 * units, units))
        self.bias_input = nn.Parameter(torch.empty(3 * units))
        self.bias_hidden = nn.Parameter(torch.empty(3 * units))
        bound = 1 / math.sqrt(units)
        for parameter in (
            self.weight_input,
            self.weight_theta,
            self.weight_hidden,
            self.bias_input,
            self.bias_hidden,
        ):
            nn.init.uniform_(parameter, -bound, bound)
        # One readout per output group, in the order of the spec (a name may hold any character,
        # so the readouts are kept by position).
        self.readouts = nn.ModuleList(
            nn.Linear(units, math.prod(output.shape)) for output in spec.outputs
        )

    def options(self) -> dict[str, JSON]:
        """Return the keyword arguments that rebuild this meta-model from the same spec."""
        return {
            "embedding_dim": self.embedding_dim,
            "units": self.units,
            "token_dim": self.token_dim,
        }

    def embed(self, inputs: Tensor) -> Tensor:
        """Turn ids into token embeddings; leave features as they are.

        Parameters
        ----------
        inputs
            (...) integer ids, or (..., feature) numbers.

        Returns
        -------
        Tensor
            (..., token_dim) or (..., feature).
        """
        if self.token_embedding is not None:
            embedded: Tensor = self.token_embedding(inputs)
            return embedded
        return inputs.to(self.weight_input.dtype)

    def step(self, inputs: Tensor, theta: Tensor, state: Tensor) -> Tensor:
        """Advance the hidden state by one time step: F(theta, x, h).

        Parameters
        ----------
        inputs
            (...) ids or (..., feature) numbers of one time step.
        theta
            (..., embedding_dim).
        state
            (..., units). The leading dimensions of the three broadcast.

        Returns
        -------
        Tensor
            (..., units).
        """
        driven = F.linear(self.embed(inputs), self.weight_input, self.bias_input)
        return self._advance(driven + F.linear(theta, self.weight_theta), state)

    def forward(self, inputs: Tensor, theta: Tensor, lengths: Tensor) -> Trajectory:
        """Run from h = 0; see `MetaModel.forward` for the shapes."""
        driven = F.linear(self.embed(inputs), self.weight_input, self.bias_input)
        bias = F.linear(theta, self.weight_theta)
        batch = torch.broadcast_shapes(driven.shape[:-2], bias.shape[:-1])
        state = driven.new_zeros(*batch, self.units)
        states = []
        for driven_now in driven.unbind(-2):
            state = self._advance(driven_now + bias, state)
            states.append(state)
        hidden = torch.stack(states, dim=-2)
        lengths = lengths.to(hidden.device).expand(batch)
        return Trajectory({"hidden": hidden}, self.read(hidden, lengths), lengths)

    def read(self, hidden: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Read every output group off the hidden states.

        Parameters
        ----------
        hidden
            (..., time, units).
        lengths
            (...): real steps.

        Returns
        -------
        dict
            Output group to (..., *shape), read at the last real step, or (..., time, *shape) for
            groups with an output per step.
        """
        last = (lengths - 1)[..., None, None].expand(*lengths.shape, 1, self.units)
        final = hidden.gather(-2, last).squeeze(-2)
        outputs = {}
        for output, readout in zip(self.spec.outputs, self.readouts, strict=True):
            source = hidden if output.axis == "time" else final
            outputs[output.group] = readout(source).unflatten(-1, output.shape)
        return outputs

    def _advance(self, driven: Tensor, state: Tensor) -> Tensor:
        recurrent = F.linear(state, self.weight_hidden, self.bias_hidden)
        driven_gates, driven_new = driven.split((2 * self.units, self.units), dim=-1)
        recurrent_gates, recurrent_new = recurrent.split((2 * self.units, self.units), dim=-1)
        reset, update = (driven_gates + recurrent_gates).sigmoid().chunk(2, dim=-1)
        new = torch.addcmul(driven_new, reset, recurrent_new).tanh()
        return torch.lerp(new, state, update)
