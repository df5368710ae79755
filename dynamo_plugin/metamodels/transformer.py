"""A meta-model of transformers, whose states are residual streams."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels._readouts import (
    Readout,
    last_step,
    make_readouts,
    make_slopes,
    read_outputs,
)
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import JSON, PopulationSpec, Trajectory

__all__ = ["TransformerMetaModel"]

TOKEN_STD = 0.1
"""Standard deviation of the initial token embedding."""

Conditioning = Literal["bias", "film"]


class TransformerMetaModel(MetaModel):
    """A transformer that theta enters at every block; its states are the residual stream.

    Stage 0 is what the first block receives; stage i is the sum of the stream after block i. There
    is one stage per recorded site, so a population that was recorded at the embeddings and behind
    every block (as transformers and TransformerLens' models are by default) gets as many blocks as
    it has, and one more for each other site, such as the final norm. Blocks are those of Vaswani et
    al. 2017 (arXiv:1706.03762), normalised before attention and feed-forward part (Xiong et al.
    2020, arXiv:2002.04745), with sinusoidal positions whose wavelengths begin at two steps, so that
    what base models learned of positions is near an affine map of them.

    Parameters
    ----------
    spec
        Sequences as inputs; stages with one vector per step.
    embedding_dim
        Length of theta.
    units
        Width of the stream.
    heads
        Of the attention; a divisor of units.
    causal
        Whether a step sees only those before it. Where base models are causal and this one is not,
        it can see what they cannot.
    conditioning
        `bias`: every block adds W theta to the stream before it. `film`: it also multiplies what
        its two normalisations give, channel by channel, by 1 + U theta (Perez et al. 2018,
        doi:10.1609/aaai.v32i1.11671).
    readout
        `conditional` or `shared` (the paper), see `dynamo_plugin.metamodels.Readout`.
    """

    layered = True

    def __init__(
        self,
        spec: PopulationSpec,
        *,
        embedding_dim: int,
        units: int = 128,
        heads: int = 4,
        causal: bool = True,
        conditioning: Conditioning = "bias",
        readout: Readout = "conditional",
    ) -> None:
        super(MetaModel, self).__init__()
        for name, value in (("embedding_dim", embedding_dim), ("units", units), ("heads", heads)):
            if value < 1:
                raise InvalidInput(f"{name} must be at least 1, got {value}.")
        if units % heads:
            raise InvalidInput(f"units must be a multiple of heads, got {units} and {heads}.")
        if conditioning not in get_args(Conditioning):
            raise InvalidInput(f"conditioning must be bias or film, got {conditioning!r}.")
        other = [stage.name for stage in spec.stages if stage.axis != "time" or stage.positions]
        if spec.inputs.kind == "array" or not spec.stages or other:
            raise InvalidInput(
                "The family 'transformer' reads sequences and compares one vector per step and "
                f"site; {', '.join(other) or 'this population'} has none. Choose other sites=[...]."
            )
        self.spec = spec
        self.embedding_dim = embedding_dim
        self.units = units
        self.heads = heads
        self.causal = causal
        self.conditioning: Conditioning = conditioning
        self.token_embedding = None
        if spec.inputs.kind == "ids":
            self.token_embedding = nn.Embedding(spec.inputs.size, units)
            nn.init.normal_(self.token_embedding.weight, std=TOKEN_STD)
        else:
            self.feature_map = nn.Linear(spec.inputs.size, units)
        self.theta_shift = nn.Linear(embedding_dim, units, bias=False)
        self.blocks = nn.ModuleList(
            _Block(units, heads, embedding_dim, causal=causal, gain=conditioning == "film")
            for _ in spec.stages[1:]
        )
        self.stage_units = {stage.name: units for stage in spec.stages}
        self.readouts = make_readouts(spec, units)
        self.readout: Readout = readout
        self.readout_theta = make_slopes(spec, units, embedding_dim, readout)

    def options(self) -> dict[str, JSON]:
        """Return the keyword arguments that rebuild this meta-model from the same spec."""
        return {
            "embedding_dim": self.embedding_dim,
            "units": self.units,
            "heads": self.heads,
            "causal": self.causal,
            "conditioning": self.conditioning,
            "readout": self.readout,
        }

    def theta_weights(self) -> list[tuple[Tensor, int]]:
        """See `MetaModel.theta_weights`."""
        blocks = [block for block in self.blocks if isinstance(block, _Block)]
        maps = [self.theta_shift, *(block.shift for block in blocks)]
        gains = [gain for block in blocks for gain in block.gains]
        return [
            *((layer.weight, 1) for layer in (*maps, *gains)),
            *((slopes, 0) for slopes in self.readout_theta or ()),
        ]

    def forward(self, inputs: Tensor, theta: Tensor, lengths: Tensor) -> Trajectory:
        """Run the network; see `MetaModel.forward`.

        Returns
        -------
        Trajectory
            Per stage (..., time, units); padding is not attended to.
        """
        if self.token_embedding is not None:
            embedded = self.token_embedding(inputs)
        else:
            embedded = self.feature_map(inputs.to(self.feature_map.weight.dtype))
        time = embedded.shape[-2]
        embedded = embedded + _positions(time, self.units, embedded)
        stream = embedded + self.theta_shift(theta).unsqueeze(-2)
        lengths = lengths.to(stream.device).expand(stream.shape[:-2])
        seen = torch.arange(time, device=stream.device) < lengths[..., None]
        states = {self.spec.stages[0].name: stream}
        for stage, block in zip(self.spec.stages[1:], self.blocks, strict=True):
            stream = block(stream, theta, seen)
            states[stage.name] = stream
        final = last_step(stream, lengths)
        outputs = read_outputs(
            self.spec,
            self.readouts,
            final=final,
            steps=stream,
            theta=theta,
            slopes=self.readout_theta,
        )
        return Trajectory(states, outputs, lengths)


class _Block(nn.Module):
    def __init__(
        self, units: int, heads: int, embedding_dim: int, *, causal: bool, gain: bool
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norms = nn.ModuleList([nn.LayerNorm(units), nn.LayerNorm(units)])
        self.attention = nn.Linear(units, 3 * units)
        self.merge = nn.Linear(units, units)
        self.inner = nn.Linear(units, 4 * units)
        self.outer = nn.Linear(4 * units, units)
        self.shift = nn.Linear(embedding_dim, units, bias=False)
        gains = [nn.Linear(embedding_dim, units, bias=False) for _ in range(2 if gain else 0)]
        for layer in gains:
            nn.init.zeros_(layer.weight)
        self.gains = nn.ModuleList(gains)

    def forward(self, stream: Tensor, theta: Tensor, seen: Tensor) -> Tensor:
        """Return the stream behind the block; `seen` (..., time) says which steps are real."""
        stream = stream + self.shift(theta).unsqueeze(-2)
        stream = stream + self._attend(self._normalised(0, stream, theta), seen)
        inner = F.gelu(self.inner(self._normalised(1, stream, theta)))
        result: Tensor = stream + self.outer(inner)
        return result

    def _normalised(self, which: int, stream: Tensor, theta: Tensor) -> Tensor:
        normalised: Tensor = self.norms[which](stream)
        if self.gains:
            normalised = normalised * (1 + self.gains[which](theta)).unsqueeze(-2)
        return normalised

    def _attend(self, values: Tensor, seen: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3).flatten(0, -4)
            for part in self.attention(values).chunk(3, dim=-1)
        )
        time = values.shape[-2]
        mask = seen.reshape(-1, 1, 1, time)
        if self.causal:
            mask = mask & torch.ones(time, time, dtype=torch.bool, device=seen.device).tril()
        # A step past the end sees itself, so that no softmax is empty; it counts nowhere.
        mask = mask | torch.eye(time, dtype=torch.bool, device=seen.device)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined = attended.transpose(-2, -3).flatten(-2).view(values.shape)
        merged: Tensor = self.merge(joined)
        return merged


def _positions(time: int, units: int, like: Tensor) -> Tensor:
    """Return (time, units): sines and cosines of geometrically spaced wavelengths, about as large
    as the token embedding is at first.

    The shortest wavelength is two steps. Those of Vaswani et al. begin at 2 pi, and what changes
    faster, as learned positions do, is no affine map of them.
    """
    steps = torch.arange(time, device=like.device, dtype=like.dtype)[:, None]
    half = -(-units // 2)
    exponents = torch.arange(half, device=like.device, dtype=like.dtype) / max(half, 1)
    angles = math.pi * steps * torch.exp(-math.log(10_000.0) * exponents)
    return TOKEN_STD * torch.cat([angles.sin(), angles.cos()], -1)[:, :units]
