"""A meta-model of feed-forward networks that were recorded as one vector per layer."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metamodels._readouts import Readout, make_readouts, make_slopes, read_outputs
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import JSON, PopulationSpec, Trajectory

__all__ = ["ResidualMetaModel"]


class ResidualMetaModel(MetaModel):
    """Residual blocks on vectors, h_i = h_(i-1) + B tanh(A h_(i-1) + W_i theta + a) + b.

    Depth takes the place of time (Cotler et al. 2023, arXiv:2302.14078, appendix A): state i is the
    output of block i, one block per recorded site. For any feed-forward network that was recorded
    as one vector per layer; feature maps are averaged over their positions when they are captured
    (`reduction`), or embedded by the family `resnet`.

    Parameters
    ----------
    spec
        Arrays as inputs, which are flattened; one stage per recorded site, without positions.
    embedding_dim
        Length of theta.
    units
        Width of the states.
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
        readout: Readout = "conditional",
    ) -> None:
        super(MetaModel, self).__init__()
        for name, value in (("embedding_dim", embedding_dim), ("units", units)):
            if value < 1:
                raise InvalidInput(f"{name} must be at least 1, got {value}.")
        other = [stage.name for stage in spec.stages if stage.axis != "sample" or stage.positions]
        if spec.inputs.kind != "array" or not spec.stages or other:
            raise InvalidInput(
                "The family 'residual' reads arrays and compares one vector per sample and site; "
                f"{', '.join(other) or 'this population'} has none. Choose other sites=[...], or "
                "the family 'resnet' for feature maps, 'transformer' for one vector per step."
            )
        self.spec = spec
        self.embedding_dim = embedding_dim
        self.units = units
        self.token_embedding = None
        self.enter = nn.Linear(math.prod(spec.inputs.shape), units)
        self.inner = nn.ModuleList(nn.Linear(units, units) for _ in spec.stages)
        self.outer = nn.ModuleList(nn.Linear(units, units) for _ in spec.stages)
        self.theta_maps = nn.ModuleList(
            nn.Linear(embedding_dim, units, bias=False) for _ in spec.stages
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
            "readout": self.readout,
        }

    def theta_weights(self) -> list[tuple[Tensor, int]]:
        """See `MetaModel.theta_weights`."""
        return [
            *((layer.weight, 1) for layer in self.theta_maps),
            *((slopes, 0) for slopes in self.readout_theta or ()),
        ]

    def forward(self, inputs: Tensor, theta: Tensor, lengths: Tensor) -> Trajectory:
        """Run the network; see `MetaModel.forward`.

        Returns
        -------
        Trajectory
            Per stage (..., 1, units): one row, since a sample has one vector.
        """
        dims = len(self.spec.inputs.shape)
        hidden = self.enter(inputs.flatten(-dims).to(self.enter.weight.dtype))
        states = {}
        for stage, inner, outer, theta_map in zip(
            self.spec.stages, self.inner, self.outer, self.theta_maps, strict=True
        ):
            hidden = hidden + outer(F.tanh(inner(hidden) + theta_map(theta)))
            states[stage.name] = hidden.unsqueeze(-2)
        outputs = read_outputs(
            self.spec, self.readouts, final=hidden, theta=theta, slopes=self.readout_theta
        )
        return Trajectory(states, outputs, lengths.to(hidden.device).expand(hidden.shape[:-1]))
