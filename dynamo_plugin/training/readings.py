"""The last fit of the readouts: to what the meta-model's states are in the end, all else held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn

from dynamo_plugin.training.objective import Objective, OutputTerm
from dynamo_plugin.training.targets import TargetBatch, Targets
from dynamo_plugin.types import Trajectory

__all__ = ["Readings"]

ROWS_PER_FEATURE = 8
"""Outputs that a readout is fitted to, of all models together, for each number that it has."""

ALIKE = 8
"""Steps of a sequence resemble each other: so many of them count as one output."""

VALIDATION = 5
"""One of so many samples says when the fit of a readout stops."""

RIDGE = 1e-3
"""Share of the mean variance below which directions of states, and of thetas, count for less."""

ROUNDS, ITERATIONS, PATIENCE = 30, 5, 3
"""Most rounds of so many iterations of L-BFGS; the fit stops after so many without gain."""

GAIN = 1e-3
"""Share by which the loss has to fall in a round to count as a gain."""

Total: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]
"""Sums tensors over processes."""


class Readings:
    """Keeps what the readouts read, and fits them to it.

    A readout learns from the few sequences of each step while the states that it reads change. Once
    these do not change any more, it can be fitted to many outputs at once: readouts are affine in
    the state and in theta, so that this is a convex problem for convex losses, and a small one.
    The fit starts from what was learned and ends where samples kept aside are read best, so that it
    cannot do harm.

    Parameters
    ----------
    objective
        Of all models of this process. Readouts of a family that has no `readouts` stay as they are.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._readouts = list(getattr(objective.meta_model, "readouts", None) or ())
        self._slopes: Sequence[Tensor | None] = list(
            getattr(objective.meta_model, "readout_theta", None) or [None] * len(self._readouts)
        )
        self._outputs = objective.meta_model.spec.outputs if self._readouts else ()
        self._read: dict[int, Tensor] = {}
        self._rows: dict[str, list[_Rows]] = {}

    def __enter__(self) -> Self:
        self._handles = [
            readout.register_forward_pre_hook(partial(self._note, number))
            for number, readout in enumerate(self._readouts)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def samples_wanted(self, targets: Targets, samples: Tensor) -> int:
        """Return how many of some samples, of the first ones, a fit of all readouts takes."""
        models, most = len(targets.stages[0].units), 0
        lengths = targets.lengths[samples]
        dims = 1 + min(self._objective.thetas.shape[1], models - 1)
        for output, readout in zip(self._outputs, self._readouts, strict=True):
            rows = -(-ROWS_PER_FEATURE * (readout.in_features + 1) * dims // models)
            each = lengths / ALIKE if output.axis == "time" else torch.ones_like(lengths)
            most = max(most, int((each.cumsum(0) < rows).sum()) + 1)
        return min(most, len(samples))

    def add(
        self, batch: TargetBatch, trajectory: Trajectory, models: Tensor, places: Tensor
    ) -> None:
        """Keep what the readouts have just read.

        Parameters
        ----------
        batch
            What the base models did.
        trajectory
            What the meta-model just did on it.
        models
            (model,) indices of the batch's models.
        places
            (sample,): what numbers the samples of the batch have among all that are added.
        """
        objective = self._objective
        aside = (places % VALIDATION == 0).to(models.device)
        for number, output in enumerate(self._outputs):
            if output.group not in batch.outputs:
                continue
            positions, target = batch.outputs[output.group]
            emulated, mask = objective.outputs[output.group].laid_out(
                trajectory.outputs[output.group][positions], batch.real_steps
            )
            states = self._read[number][positions]
            states = states if output.axis == "time" else states.unsqueeze(2)
            mask = mask.expand(len(target), -1, -1, -1)
            whole = (nn.functional.pad(states, (0, 1), value=1.0), emulated, target, mask)
            for validates in (False, True):
                chosen = [tensor[:, aside == validates] for tensor in whole]
                if chosen[0].shape[1]:
                    rows = _Rows(validates, models[positions], *chosen)
                    self._rows.setdefault(output.group, []).append(rows)
        self._read.clear()

    def fit(self) -> None:
        """Fit every readout to what was kept."""
        for output, readout, slopes in zip(
            self._outputs, self._readouts, self._slopes, strict=True
        ):
            term = self._objective.outputs.get(output.group)
            if term is None:
                continue
            rows = self._rows.get(output.group, [])
            weights = _Refit(rows, readout, slopes, term, self._objective).run()
            readout.weight.data += weights[0, :-1].mT
            readout.bias.data += weights[0, -1]
            if slopes is not None:
                slopes.data += weights[1:]

    def _note(self, number: int, readout: nn.Module, arguments: tuple[Tensor]) -> None:
        self._read[number] = arguments[0].detach()


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a readout read, and what it should have said."""

    validates: bool
    """Whether these samples are kept aside."""
    models: Tensor
    """(member,) indices into the thetas."""
    states: Tensor
    """(member, sample, time, units + 1), the last one 1."""
    read: Tensor
    """(member, sample, time, size): what it said."""
    target: Tensor
    """The same of the base models."""
    mask: Tensor
    """(member, sample, time, 1)."""


class _Refit:
    """The fit of one readout, over the rows of all processes.

    In coordinates in which states, and thetas, have about unit covariance, so that L-BFGS needs few
    iterations.
    """

    def __init__(
        self,
        rows: Sequence[_Rows],
        readout: nn.Linear,
        slopes: Tensor | None,
        term: OutputTerm,
        objective: Objective,
    ) -> None:
        self._rows = rows
        self._term = term
        self._total = total = objective.ranks.total
        thetas = objective.thetas.detach()
        contexts = thetas.new_ones(len(thetas), 1 if slopes is None else 1 + thetas.shape[1])
        contexts[:, 1:] = thetas[:, : contexts.shape[1] - 1]
        (square,) = total([contexts.square().sum(0)])
        units = square.where(square > 0, 1.0).rsqrt()[:, None]
        self._by_context = units * _whitener([contexts * units.T], total)
        self._contexts = contexts @ self._by_context
        seen = [one.states[one.mask.squeeze(-1)] for one in rows if not one.validates]
        nothing = thetas.new_zeros(0, readout.in_features + 1)
        self._by_state = _whitener([nothing, *seen], total)
        shape = (contexts.shape[1], len(self._by_state), readout.out_features)
        self._weights = nn.Parameter(thetas.new_zeros(shape))

    def run(self) -> Tensor:
        """Return (1 or 1 + embedding_dim, units + 1, size): what is to be added to the readout."""
        optimiser = torch.optim.LBFGS(
            [self._weights], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
        )
        best, found, since = self._validation(), self._weights.detach().clone(), 0
        for _ in range(ROUNDS):
            optimiser.step(self._descend)
            now, since = self._validation(), since + 1
            if now < best * (1 - GAIN):
                best, found, since = now, self._weights.detach().clone(), 0
            if since == PATIENCE:
                break
        return torch.einsum("jk,uv,kvc->juc", self._by_context, self._by_state, found)

    def _descend(self) -> Tensor:
        """Return the loss of all processes, and have its gradient."""
        self._weights.grad = torch.zeros_like(self._weights)
        own = self._loss(validates=False)
        if own.requires_grad:
            own.backward()
        loss, self._weights.grad = self._total([own.detach(), self._weights.grad])
        return loss

    @torch.no_grad()
    def _validation(self) -> float:
        return float(self._total([self._loss(validates=True)])[0])

    def _loss(self, *, validates: bool) -> Tensor:
        """Return this process's share of the mean loss of all rows, or of those kept aside."""
        loss, count = self._weights.new_zeros(2)
        bends = torch.einsum("nk,uv,kvc->nuc", self._contexts, self._by_state, self._weights)
        for one in self._rows:
            if one.validates == validates:
                more = one.states.flatten(1, 2) @ bends[one.models]
                read = one.read + more.view_as(one.read)
                losses = self._term.compare(read, one.target, one.mask)
                loss, count = loss + losses.sum(), count + losses.numel()
        mean: Tensor = loss / self._total([count])[0].clamp(min=1)
        return mean


def _whitener(parts: Sequence[Tensor], total: Total) -> Tensor:
    """Return (feature, feature): rows times it have about a unit second moment.

    Of directions in which they hardly vary, little is made.
    """
    dim = parts[0].shape[1]
    moment = torch.zeros(dim, dim, dtype=torch.float64, device=parts[0].device)
    for part in parts:
        moment += part.mT.double() @ part.double()
    (moment,) = total([moment / max(sum(map(len, parts)), 1)])
    values, vectors = torch.linalg.eigh(moment)
    floor = RIDGE * values.mean().where(values.mean() > 0, 1.0)
    whitener: Tensor = vectors * (values.clamp(min=0) + floor).rsqrt()
    return whitener.to(parts[0].dtype)
