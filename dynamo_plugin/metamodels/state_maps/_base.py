"""What every kind of state map does."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidConfig, InvalidInput
from dynamo_plugin.metamodels.state_maps._moments import Moments

__all__ = ["RIDGE", "SolvableStateMaps", "StateMaps", "Total", "apply_affine"]

Total = Callable[[Sequence[Tensor]], list[Tensor]]
"""Sums tensors over processes; `list` where there is one."""

DECAY = 0.9
"""Of the moments, from one step to the next."""

RIDGE = 1e-3
"""Strength of the penalty, in units of the mean diagonal of the features' second moment."""


class StateMaps(nn.Module, abc.ABC):
    """The maps V_n from the meta-model's states to those of the base models, all models at once.

    The states of a base model are compared in units of their own: `normalise` takes the mean off,
    divides by one scale, and pads to the widest model with zeros; `restore` undoes that. Mean and
    scale are statistics of the training inputs, set before training.

    Parameters
    ----------
    source_units
        Width of the meta-model's states.
    units
        Number of hidden units of every base model.
    embedding_dim
        Length of theta, for maps that depend on it.
    solver
        `gradient`: the maps are parameters, learned with everything else. `ridge`: they are solved
        in closed form for the current states of the meta-model, see `solve`.
    """

    solvers: ClassVar[tuple[str, ...]] = ("gradient",)
    """Those that this kind of map has, the best one last."""
    per_model: ClassVar[tuple[str, ...]] = ("mean", "scale", "real_units")
    """Names of the tensors whose first axis is the model."""
    growing: ClassVar[tuple[str, ...]] = ()
    """Names of those that are matrices which grow by ones on the diagonal."""

    mean: Tensor
    """(model, max units) buffer."""
    scale: Tensor
    """(model,) buffer."""
    real_units: Tensor
    """(model, max units) boolean buffer: which units exist."""

    def __init__(
        self,
        source_units: int,
        units: Sequence[int],
        *,
        embedding_dim: int,
        solver: str = "gradient",
    ) -> None:
        super().__init__()
        if not units or min(units) < 1:
            raise InvalidInput(f"Every model needs at least one hidden unit, got {list(units)}.")
        if solver not in self.solvers:
            raise InvalidConfig(
                f"{type(self).__name__} are found by {' or '.join(self.solvers)}, not by "
                f"{solver!r}: choose another state_map or state_map_solver."
            )
        self.source_units = source_units
        self.units = tuple(units)
        self.embedding_dim = embedding_dim
        self.solver = solver
        widest = max(units)
        self.register_buffer("mean", torch.zeros(len(units), widest))
        self.register_buffer("scale", torch.ones(len(units)))
        real = torch.arange(widest) < torch.tensor(self.units)[:, None]
        self.register_buffer("real_units", real, persistent=False)

    def __len__(self) -> int:
        return len(self.units)

    @property
    def widest(self) -> int:
        """Number of units to which states are padded."""
        return self.mean.shape[1]

    def select(self, models: Sequence[int]) -> Self:
        """Return copies of some of the maps, in the order given."""
        chosen = copy.copy(self)
        chosen.units = tuple(self.units[model] for model in models)
        rows = torch.tensor(models, device=self.mean.device)
        # Not a deep copy, which would copy the maps of all other models first.
        chosen._parameters = {
            name: None
            if own is None
            else nn.Parameter(self._part(name, own, rows), requires_grad=own.requires_grad)
            for name, own in self._parameters.items()
        }
        chosen._buffers = {
            name: None if own is None else self._part(name, own, rows)
            for name, own in self._buffers.items()
        }
        return chosen

    def join(self, other: Self) -> Self:
        """Return copies of these maps and, after them, of some more; what models share is ours."""
        joined = type(self)(
            self.source_units,
            (*self.units, *other.units),
            embedding_dim=self.embedding_dim,
            solver=self.solver,
        ).requires_grad_(False)  # noqa: FBT003
        ours, theirs = self.state_dict(), other.state_dict()
        for name, target in joined.state_dict().items():
            target.zero_()
            if name in self.growing:
                target.diagonal(dim1=-2, dim2=-1).fill_(1)
            if name in self.per_model:
                _lay(target[: len(self)], ours[name])
                _lay(target[len(self) :], theirs[name])
            else:
                _lay(target, ours[name])
        return joined

    def _part(self, name: str, own: Tensor, rows: Tensor) -> Tensor:
        return own.detach()[rows] if name in self.per_model else own.detach().clone()

    def rescale_theta(self, factors: Tensor) -> None:
        """Change the units of theta: what is done at theta * factors is what was done at theta."""

    @property
    def model_tensors(self) -> set[str]:
        """Names, as in the state dict, of the tensors whose first axis is the model."""
        return set(self.per_model) - {"real_units"}

    @property
    def target_units(self) -> Tensor:
        """(model, max units) boolean: which entries of normalised states mean something."""
        return self.real_units

    @abc.abstractmethod
    def forward(self, states: Tensor, models: Tensor, thetas: Tensor) -> Tensor:
        """Map states of the meta-model to normalised states of the base models.

        Parameters
        ----------
        states
            (model, sample, row, source_units).
        models
            (model,) int64: which map each goes through.
        thetas
            (model, embedding_dim): theirs.

        Returns
        -------
        Tensor
            (model, sample, row, max units); zero past a model's own units.
        """

    def normalise(self, base_states: Tensor, models: Tensor) -> Tensor:
        """Express padded states of base models as `forward` predicts them.

        Parameters
        ----------
        base_states
            (model, ..., max units).
        models
            (model,) int64.
        """
        shape = (len(models),) + (1,) * (base_states.ndim - 2)
        mean = self.mean[models].view(*shape, -1)
        return (base_states - mean) / self.scale[models].view(*shape, 1)

    def restore(self, mapped: Tensor, models: Tensor) -> Tensor:
        """Undo `normalise`."""
        shape = (len(models),) + (1,) * (mapped.ndim - 2)
        mean = self.mean[models].view(*shape, -1)
        return mapped * self.scale[models].view(*shape, 1) + mean


class SolvableStateMaps(StateMaps):
    """State maps that have a closed form: they enter linearly, so ridge regression finds them.

    Parameters are those of `StateMaps`.
    """

    _seen_thetas: Tensor | None
    solvers = ("gradient", "ridge")
    per_model = (*StateMaps.per_model, "_seen_thetas")

    def __init__(
        self, source_units: int, units: Sequence[int], *, embedding_dim: int = 0, solver: str
    ) -> None:
        super().__init__(source_units, units, embedding_dim=embedding_dim, solver=solver)
        self._running: Moments | None = None
        self.register_buffer("_seen_thetas", None)

    def solve(
        self,
        states: Tensor,
        targets: Tensor,
        mask: Tensor,
        models: Tensor,
        thetas: Tensor,
        *,
        total: Total = list,
    ) -> None:
        """Solve the maps of some models for what the meta-model does now.

        Ridge regression on moments that decay from call to call: those of one minibatch alone are
        too few rows, and those of long ago belong to another meta-model. No gradient flows into
        the solution. A map that models share is solved for all that were seen so far, at the
        thetas that they had then.

        Parameters
        ----------
        states, models, thetas
            As in `forward`.
        targets
            (model, sample, row, max units): normalised states of the base models.
        mask
            (1 or model, sample, row) boolean: which rows count.
        total
            Sums tensors over the processes that share the models.
        """
        running, seen = self._remember()
        if len(models):
            seen[models] = thetas[:, : self.embedding_dim]
            self.collect(running, states, targets, mask, models)
        concerned = self.concerned(running, models)
        self.solve_for(running, concerned, seen[concerned], total=total)

    def forget(self) -> None:
        """Drop the running moments: the maps are not solved again."""
        self._running = self._seen_thetas = None

    def _remember(self) -> tuple[Moments, Tensor]:
        """Return the running moments, and the thetas at which models were last seen."""
        if self._running is None or self._seen_thetas is None:
            self._running = self.new_moments(decay=DECAY, dtype=self.mean.dtype)
            self._running.to(self.mean.device)
            self._seen_thetas = self.mean.new_zeros(len(self), self.embedding_dim)
        return self._running, self._seen_thetas

    @property
    def model_tensors(self) -> set[str]:
        """See `StateMaps.model_tensors`; running moments are of one model each."""
        running = () if self._running is None else self._running.state_dict()
        return super().model_tensors | {f"_running.{name}" for name in running}

    def select(self, models: Sequence[int]) -> Self:
        """See `StateMaps.select`."""
        chosen = super().select(models)
        chosen._modules = {}
        chosen._running = None
        if self._running is not None:
            chosen._running = self._running.select(models)
        return chosen

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}_seen_thetas" in state_dict:
            self._remember()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def concerned(self, moments: Moments, models: Tensor) -> Tensor:
        """Return which models the solution is for when some were seen anew."""
        return models

    def new_moments(self, *, decay: float | None, dtype: torch.dtype) -> Moments:
        """Return empty moments of the shape that this kind of map is solved from."""
        sizes = (len(self), self.source_units, self.widest)
        return Moments(*sizes, decay=decay, dtype=dtype)

    def collect(
        self, moments: Moments, states: Tensor, targets: Tensor, mask: Tensor, models: Tensor
    ) -> None:
        """Take what the meta-model and the base models do into moments; see `solve`."""
        rows = mask.expand(len(models), *states.shape[1:3]).flatten(1)
        moments.update(models, states.flatten(1, 2), targets.flatten(1, 2), rows)

    @abc.abstractmethod
    def solve_for(
        self, moments: Moments, models: Tensor, thetas: Tensor, *, total: Total = list
    ) -> None:
        """Set the maps of some models, at these thetas, to the ridge solution.

        A map that models share is solved for those of all processes, over which `total` sums.
        """


def apply_affine(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return W h + b, (model, sample, row, out), with one W (model, out, in) and b per model."""
    flat = torch.baddbmm(bias.unsqueeze(1), states.flatten(1, 2), weight.mT)
    result: Tensor = flat.unflatten(1, states.shape[1:3])
    return result


def _lay(target: Tensor, part: Tensor) -> None:
    """Copy a tensor into the corner of one that is at least as large."""
    target[tuple(slice(size) for size in part.shape)] = part
