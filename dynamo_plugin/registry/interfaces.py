"""What a plugin implements: abstract classes and call signatures, one per kind.

This module imports torch. The rest of the registry does not, so that plugins can be listed
without paying for it; import it where a plugin is written, not where it is registered.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
)

import numpy as np
from torch import Tensor, nn

from dynamo_plugin.registry.fingerprint import model_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.types import (
        JSON,
        PopulationSpec,
        SequenceBatch,
        Trajectory,
        TrajectorySpec,
    )

__all__ = [
    "OF_EMBEDDING",
    "Adapter",
    "AnalysisResult",
    "Invariance",
    "Loss",
    "MetaModel",
    "Metric",
    "Reads",
]

Invariance: TypeAlias = Literal["affine", "orthogonal", "permutation", "scaling", "translation"]
"""What may be done to the units of one of two sets of states and leave their comparison as it is:
an invertible linear map, a rotation or reflection, another order of the units, one positive factor,
an offset per unit. `affine` brings `orthogonal`, `permutation` and `scaling` with it."""

Reads: TypeAlias = Literal["states", "trials", "outputs", "theta", "pullback", "rendered"]
"""What a metric prepares of one network; see `Metric.reads`."""

OF_EMBEDDING: Final[frozenset[Reads]] = frozenset({"theta", "pullback", "rendered"})
"""What is read of an embedding; all else is read of a population."""

Prepared = TypeVar("Prepared")


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


class Metric(abc.ABC, Generic[Prepared]):
    """Compares what two networks compute on the same samples.

    A frozen dataclass whose fields are the options. `prepare` is called once per network,
    `compare` once per pair. Nothing that is passed in is changed.
    """

    kind: ClassVar[Literal["distance", "similarity"]]
    """Whether alike networks have small values or large ones."""
    reference: ClassVar[str]
    """Paper and DOI."""
    reads: ClassVar[Reads] = "states"
    """What `prepare` takes: (sample, unit) `states`; (trial, time, unit) states as `trials`;
    (sample, class) `outputs`. Of an embedding: the `theta` (embedding_dim,) of the network;
    `pullback`, its theta in coordinates in which the pull-back metric is Euclidean; `rendered`, the
    states of the rendered network: one (row, unit) array per stage of the meta-model."""

    @property
    @abc.abstractmethod
    def invariances(self) -> frozenset[Invariance]:
        """What either set of states may undergo without a change of the value."""

    @property
    def is_metric(self) -> bool:
        """Whether distances (of a similarity: what `to_distances` gives) keep the triangle
        inequality.
        """
        return False

    @property
    def symmetric(self) -> bool:
        """Whether the order of the two networks does not matter."""
        return True

    @property
    def value_of_itself(self) -> float | None:
        """What a network compared with itself has; None where that depends on the network."""
        return 0.0 if self.kind == "distance" else 1.0

    @property
    def distance_rule(self) -> str:
        """How values become distances, for people."""
        return "value" if self.kind == "distance" else "max(1 - value, 0)"

    @abc.abstractmethod
    def prepare(self, states: ArrayLike) -> Prepared:
        """Compute what depends on one network alone.

        Raises
        ------
        InvalidInput
            If the states cannot be compared: too few samples, not finite, no variance.
        """

    @abc.abstractmethod
    def compare(self, first: Prepared, second: Prepared) -> float:
        """Compare two networks.

        Raises
        ------
        InvalidInput
            If they were prepared from different numbers of samples.
        """

    def compare_many(
        self, first: Sequence[Prepared], second: Sequence[Prepared] | None = None
    ) -> NDArray[np.float64]:
        """Compare every network of one sequence with every one of another.

        Metrics override this where many pairs at once are faster than one after the other.

        Parameters
        ----------
        first
            Prepared networks.
        second
            Others; by default the first once more, of which each pair is compared once where the
            metric is symmetric.

        Returns
        -------
        ndarray
            (first, second).

        Raises
        ------
        InvalidInput
            As `compare`.
        """
        if second is not None:
            return np.array([[self.compare(a, b) for b in second] for a in first]).reshape(
                len(first), len(second)
            )
        values = np.empty((len(first), len(first)))
        for i, a in enumerate(first):
            known = self.value_of_itself
            values[i, i] = self.compare(a, a) if known is None else known
            for j, b in enumerate(first[:i]):
                values[j, i] = self.compare(b, a)
                values[i, j] = values[j, i] if self.symmetric else self.compare(a, b)
        return values

    def to_distances(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values as distances, by `distance_rule`."""
        return values.copy() if self.kind == "distance" else np.maximum(1 - values, 0)

    def __call__(self, first: ArrayLike, second: ArrayLike) -> float:
        """Compare two sets of states: (sample, unit) arrays, or what `reads` says.

        Raises
        ------
        InvalidInput
            As `prepare` and `compare`.
        """
        return self.compare(self.prepare(first), self.prepare(second))


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
