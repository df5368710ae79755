"""What the recurrent meta-models have in common: everything but the cell."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput, suggest
from dynamo_plugin.metamodels._cells import Cell
from dynamo_plugin.metamodels._readouts import (
    Readout,
    last_step,
    make_readouts,
    make_slopes,
    read_outputs,
)
from dynamo_plugin.metamodels._recurrence import recur
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import JSON, PopulationSpec, Trajectory

__all__ = ["Conditioning", "RecurrentMetaModel"]

Conditioning = Literal["bias", "film", "low_rank"]
"""How theta enters a recurrent meta-model, see `RecurrentMetaModel`."""

TOKEN_STD = 0.1
"""Standard deviation of the initial token embedding. At PyTorch's 1, what distinguishes tokens is
noise at first, and rare tokens keep much of it."""


class RecurrentMetaModel(MetaModel):
    """A recurrent cell whose input at every step is [token embedding or features ; theta].

    Since theta does not change over time, its part of the input is a bias, computed once per theta;
    the part of the inputs is computed once per sequence, however many thetas run on it. The result
    is that of PyTorch's module on the concatenation.

    Two ways to let theta do more than that, both of which start as the plain network:

    - `film`: the recurrent part of every gate of every unit is multiplied by a gain,
      1 + (U theta) (feature-wise linear modulation, Perez et al. 2018,
      doi:10.1609/aaai.v32i1.11671; theta's bias is the shift);
    - `low_rank`: the recurrent weight is W(theta) = W_0 + sum_k theta_k A_k B_k, with A_k
      (gates * units, rank) and B_k (rank, units).

    Parameters
    ----------
    spec
        Inputs and output groups of the population; one affine readout per group.
    embedding_dim
        Length of theta.
    units
        Width of the cell.
    token_dim
        Width of the token embedding; only for populations whose inputs are ids.
    conditioning
        `bias` (the paper), `film` or `low_rank`.
    rank
        Of each A_k B_k, where the conditioning is `low_rank`.
    readout
        `conditional` or `shared` (the paper), see `Readout`.
    """

    cell: ClassVar[type[Cell]]

    def __init__(
        self,
        spec: PopulationSpec,
        *,
        embedding_dim: int,
        units: int = 128,
        token_dim: int = 128,
        conditioning: Conditioning = "bias",
        rank: int = 8,
        readout: Readout = "conditional",
    ) -> None:
        super(MetaModel, self).__init__()
        for name, value in (
            ("embedding_dim", embedding_dim),
            ("units", units),
            ("token_dim", token_dim),
            ("rank", rank),
        ):
            if value < 1:
                raise InvalidInput(f"{name} must be at least 1, got {value}.")
        for name, chosen, known in (("conditioning", conditioning, get_args(Conditioning)),):
            if chosen not in known:
                raise InvalidInput(f"There is no {name} {chosen!r}. {suggest(str(chosen), known)}")
        if spec.inputs.kind == "array":
            raise InvalidInput(
                "A recurrent meta-model reads sequences, and the inputs of this population are "
                f"single arrays {spec.inputs.shape}. Choose another family."
            )
        self.spec = spec
        self.embedding_dim = embedding_dim
        self.cell_units = units
        self.units = self.cell.parts * units
        self.stage_units = {"hidden": self.units}
        self.token_dim = token_dim
        self.conditioning = conditioning
        self.rank = rank
        self.token_embedding = None
        if spec.inputs.kind == "ids":
            self.token_embedding = nn.Embedding(spec.inputs.size, token_dim)
            nn.init.normal_(self.token_embedding.weight, std=TOKEN_STD)
        rows = self.cell.gates * units
        input_dim = token_dim if self.token_embedding is not None else spec.inputs.size
        self.weight_input = nn.Parameter(torch.empty(rows, input_dim))
        self.weight_theta = nn.Parameter(torch.empty(rows, embedding_dim))
        self.weight_hidden = nn.Parameter(torch.empty(rows, units))
        self.bias_input = nn.Parameter(torch.empty(rows))
        self.bias_hidden = nn.Parameter(torch.empty(rows))
        bound = 1 / math.sqrt(units)
        for parameter in (
            self.weight_input,
            self.weight_theta,
            self.weight_hidden,
            self.bias_input,
            self.bias_hidden,
        ):
            nn.init.uniform_(parameter, -bound, bound)
        self.readouts = make_readouts(spec, units)
        self.readout = readout
        self.readout_theta = make_slopes(spec, units, embedding_dim, readout)
        if conditioning == "film":
            self.gain_theta = nn.Parameter(torch.zeros(rows, embedding_dim))
        if conditioning == "low_rank":
            self.left_theta = nn.Parameter(torch.zeros(embedding_dim, rows, rank))
            self.right_theta = nn.Parameter(torch.empty(embedding_dim, rank, units))
            nn.init.uniform_(self.right_theta, -bound, bound)

    def options(self) -> dict[str, JSON]:
        """Return the keyword arguments that rebuild this meta-model from the same spec."""
        return {
            "embedding_dim": self.embedding_dim,
            "units": self.cell_units,
            "token_dim": self.token_dim,
            "conditioning": self.conditioning,
            "rank": self.rank,
            "readout": self.readout,
        }

    def theta_weights(self) -> list[tuple[Tensor, int]]:
        """See `MetaModel.theta_weights`."""
        weights: list[tuple[Tensor, int]] = [(self.weight_theta, 1)]
        if self.conditioning == "film":
            weights.append((self.gain_theta, 1))
        if self.conditioning == "low_rank":
            weights.append((self.left_theta, 0))
        return [*weights, *((slopes, 0) for slopes in self.readout_theta or ())]

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

    def drive(self, inputs: Tensor) -> Tensor:
        """Return what inputs add to the gates, (..., gates * units); parameters as in `embed`."""
        return F.linear(self.embed(inputs), self.weight_input, self.bias_input)

    def recurrent_weights(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return W and b of the recurrent part W h + b at some thetas.

        Parameters
        ----------
        theta
            (..., embedding_dim).

        Returns
        -------
        tuple of Tensor
            (..., gates * units, units) and (..., gates * units), without the leading axes where
            theta makes no difference.
        """
        if self.conditioning == "film":
            gain = 1 + F.linear(theta, self.gain_theta)
            return gain.unsqueeze(-1) * self.weight_hidden, gain * self.bias_hidden
        if self.conditioning == "low_rank":
            change = torch.einsum("...k,kgr,kru->...gu", theta, self.left_theta, self.right_theta)
            return self.weight_hidden + change, self.bias_hidden
        return self.weight_hidden, self.bias_hidden

    def step(self, inputs: Tensor, theta: Tensor, state: Tensor) -> Tensor:
        """Advance the state by one time step: F(theta, x, h).

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
        weight, offset = self.recurrent_weights(theta)
        hidden = state[..., : self.cell_units]
        if weight.ndim == 2:
            recurrent = F.linear(hidden, weight, offset)
        else:
            recurrent = (weight @ hidden.unsqueeze(-1)).squeeze(-1) + offset
        driven = self.drive(inputs) + F.linear(theta, self.weight_theta)
        return self.cell.advance(driven, recurrent, state)

    def forward(self, inputs: Tensor, theta: Tensor, lengths: Tensor) -> Trajectory:
        """Run from a state of zeros; see `MetaModel.forward` for the shapes."""
        bias = F.linear(theta, self.weight_theta)
        hidden = recur(self.cell, self.drive(inputs), bias, *self.recurrent_weights(theta))
        lengths = lengths.to(hidden.device).expand(hidden.shape[:-2])
        return Trajectory({"hidden": hidden}, self.read(hidden, lengths, theta), lengths)

    def read(self, hidden: Tensor, lengths: Tensor, theta: Tensor) -> dict[str, Tensor]:
        """Read every output group off the states.

        Parameters
        ----------
        hidden
            (..., time, units).
        lengths
            (...): real steps.
        theta
            (..., embedding_dim); of no effect where the readout is shared.

        Returns
        -------
        dict
            Output group to (..., *shape), read at the last real step, or (..., time, *shape) for
            groups with an output per step.
        """
        hidden = hidden[..., : self.cell_units]
        final = last_step(hidden, lengths)
        return read_outputs(
            self.spec,
            self.readouts,
            final=final,
            steps=hidden,
            theta=theta,
            slopes=self.readout_theta,
        )
