"""What a plugin implements: abstract classes and call signatures, one per kind.

This module imports torch. The rest of the registry does not, so that plugins can be listed
without paying for it; import it where a plugin is written, not where it is registered.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from dynamo_plugin.registry.fingerprint import model_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import plotly.graph_objects as go

    from dynamo_plugin.types import (
        JSON,
        PopulationSpec,
        SequenceBatch,
        Trajectory,
        TrajectorySpec,
    )

__all__ = ["Adapter", "AnalysisResult", "Loss", "MetaModel"]


class Adapter(abc.ABC):
    """Knows how to read the hidden states of one framework or architecture family.

    An adapter is constructed by keyword arguments only, once per capture, and must leave every
    model as it found it: hooks, `training` flags, `requires_grad`, gradients and device, also
    after an exception.
    """

    @abc.abstractmethod
    def supports(self, model: object) -> bool:
        """Return whether this adapter can read the model; must not run it."""

    @abc.abstractmethod
    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        """Run the model on a few samples and say what `record` will return.

        The recorder puts sequences of different lengths into one batch only where the option
        `ragged_batches` of the result is true: padding must then not change what is recorded.

        Raises `UnsupportedModel` or `CaptureError`, naming the site, where it cannot.
        """

    @abc.abstractmethod
    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        """Run the model and return copies of its hidden states and its output.

        `inputs` come sorted by decreasing length. `spec` is what `describe` returned for this
        model. Every tensor of the result is detached and shares no memory with the model; the
        recorder keeps it without another copy, so contiguous ones (sample first) are cheapest.
        """

    def fingerprint(self, model: Any) -> str:
        """Return a hash that changes when what the model computes changes.

        By default of its class and `state_dict()`, which suits PyTorch.

        Raises
        ------
        UnsupportedModel
            It has no `state_dict()`; adapters of other frameworks override this method.
        """
        return model_hash(model)


class MetaModel(nn.Module, abc.ABC):
    """One executable network whose dynamics are chosen by a vector theta.

    A family is built as `family(spec, embedding_dim=..., **options)`, with its parameters drawn
    from torch's global generator, which the trainer seeds.
    """

    spec: PopulationSpec
    """What it was built for."""
    embedding_dim: int
    units: int
    """Width of the hidden state; of the last one where there are several."""
    layered: ClassVar[bool] = False
    """Whether depth takes the place of time: base models are compared with the meta-model site by
    site, at the stages of `spec`. Else their sites are joined to one state per step, `hidden`."""
    stage_units: Mapping[str, int]
    """Name of every state that `forward` returns to its width, the source of the state maps."""
    token_embedding: nn.Embedding | None
    """What ids are looked up in, so that the trainer can give it initial values; None if the
    inputs are features, or if the family has none."""

    @abc.abstractmethod
    def __init__(self, spec: PopulationSpec, *, embedding_dim: int, **options: Any) -> None: ...

    @abc.abstractmethod
    def forward(self, inputs: Tensor, theta: Tensor, lengths: Tensor) -> Trajectory:
        """Run the meta-model.

        Parameters
        ----------
        inputs
            (..., time) integer ids, (..., time, feature) numbers, or (..., *shape) arrays.
        theta
            (..., embedding_dim). The leading dimensions of inputs and theta broadcast, so that
            (1, sequence) inputs and (model, 1) thetas run every model on every sequence.
        lengths
            Real steps per sequence, broadcastable to the leading dimensions of inputs.

        Returns
        -------
        Trajectory
            One state, `hidden`: (..., time, units), or one per stage: (..., row, units), where a
            row is a step or a position of the sample. Per output group (..., *shape) or
            (..., time, *shape).
        """

    @abc.abstractmethod
    def options(self) -> dict[str, JSON]:
        """Return the keyword arguments that rebuild this meta-model from the same spec."""

    def theta_weights(self) -> Sequence[tuple[Tensor, int]]:
        """Return the weights that multiply theta, each with the axis along which theta lies.

        Needed only where the units of theta are changed, which fits with private dimensions do.
        """
        raise NotImplementedError

    def rescale_theta(self, factors: Tensor) -> None:
        """Change the units of theta: what is done at theta * factors is what was done at theta.

        Parameters
        ----------
        factors
            (embedding_dim,), positive.
        """
        for weight, axis in self.theta_weights():
            shape = [1] * weight.ndim
            shape[axis] = -1
            weight.data /= factors.to(weight.device).view(shape)


class Loss(Protocol):
    """A pure function of prediction, target and mask to one value per sample."""

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Compare.

        Parameters
        ----------
        prediction, target
            (..., time, feature), of one shape; one time step for per-sequence outputs.
        mask
            Boolean, broadcastable to prediction: which entries count. Every sample has one.

        Returns
        -------
        Tensor
            (...): the mean over the entries that count.
        """


class AnalysisResult(Protocol):
    """What an analysis returns: frozen, and readable three ways."""

    @property
    def name(self) -> str:
        """Registered name of the analysis."""

    def to_dataframe(self) -> pd.DataFrame:
        """Return the result as a tidy table."""

    def plot(self) -> go.Figure:
        """Return the result as a Plotly figure."""

    def summary(self) -> dict[str, JSON]:
        """Return the headline figures, ready for JSON: no NaN, no NumPy types."""
