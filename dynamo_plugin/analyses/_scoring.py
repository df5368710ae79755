"""How well networks do on their task: those at any thetas, many at once, and recorded ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from tqdm.auto import tqdm

from dynamo_plugin.analyses._targets import align_targets
from dynamo_plugin.embedding.geometry import pairs_at_once
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import OutputSpec

__all__ = [
    "Scores",
    "TargetSource",
    "TaskScorer",
    "emulated_outputs",
    "output_rows",
    "targets_of",
    "the_output",
]

TargetSource: TypeAlias = "ArrayLike | Mapping[str, ArrayLike]"
"""Targets of all models, or output group to targets."""

THETAS = 512
"""Most thetas that run at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of some networks on the same samples.

    Accuracy, and R2 = 1 - sum of squared errors / sum of squares about the mean of each channel,
    are both a sum over samples of `gains`, by that of `weights`.
    """

    kind: Literal["accuracy", "r2"]
    gains: NDArray[np.float64]
    """(network, sample): right decisions; or squares about the mean less squared errors."""
    weights: NDArray[np.float64]
    """(sample,): decisions; or squares about the mean."""

    @property
    def values(self) -> NDArray[np.float64]:
        """(network,): the score of each."""
        values: NDArray[np.float64] = self.gains.sum(1) / self.weights.sum()
        return values

    @property
    def standard_errors(self) -> NDArray[np.float64]:
        """(network,): standard errors, samples drawn at random; steps of a sample go together.

        That of a ratio of two means, linearised (Cochran 1977, Sampling Techniques, 6.4).
        """
        return self._errors(self.gains - self.values[:, None] * self.weights)

    def above(self, reference: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how much better than one of them each network is, and the standard error of that.

        The samples are the same, so that the error is that of the differences sample by sample.

        Returns
        -------
        tuple of ndarray
            (network,) differences and (network,) standard errors.
        """
        differences = self.gains - self.gains[reference]
        values = differences.sum(1) / self.weights.sum()
        return values, self._errors(differences - values[:, None] * self.weights)

    def of(self, samples: NDArray[Any]) -> Scores:
        """Return the scores on some of the samples, by position or by mask."""
        return Scores(self.kind, self.gains[:, samples], self.weights[samples])

    def _errors(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        count = len(self.weights)
        summed = (residuals**2).sum(1) * count / (count - 1)
        errors: NDArray[np.float64] = np.sqrt(summed) / self.weights.sum()
        return errors


class TaskScorer:
    """Scores networks of one output group on some samples of the embedded population.

    Parameters
    ----------
    embedding
        Its population is read.
    targets
        Right answers, see `align_targets`; by output group if it is a mapping. None for those that
        were captured with the inputs.
    output_group
        Which readout answers; may be left out where there is only one.
    samples
        (sample,) indices, at least two; None for those that the fit kept aside.

    Raises
    ------
    InvalidInput
        If there are no targets or they do not fit, there are several output groups and none is
        named, or fewer than two samples.
    UnknownName
        If there is no such output group.
    """

    def __init__(
        self,
        embedding: ModelEmbedding,
        *,
        targets: TargetSource | None = None,
        output_group: str | None = None,
        samples: NDArray[np.int64] | None = None,
    ) -> None:
        self.embedding = embedding
        self.output = the_output(embedding, output_group)
        self.samples = embedding.held_out_samples.numpy() if samples is None else samples
        if len(self.samples) < 2:
            raise InvalidInput(
                f"A score with its standard error needs at least 2 samples, got "
                f"{len(self.samples)}. Keep more aside with held_out=..., or score all samples."
            )
        population = embedding.population
        aligned = targets_of(embedding, self.output, targets)
        self._targets = aligned[output_rows(population.offsets, self.samples, self.output)]
        self.kind: Literal["accuracy", "r2"] = "accuracy" if aligned.ndim == 1 else "r2"
        self._counts = (
            np.ones(len(self.samples), np.int64)
            if self.output.axis == "sample"
            else np.diff(population.offsets)[self.samples]
        )
        self._starts = np.cumsum(self._counts) - self._counts
        self._weights = self._counts.astype(np.float64)
        if self.kind == "r2":
            squares = (self._targets - self._targets.mean(0)) ** 2
            self._weights = np.add.reduceat(squares.sum(-1), self._starts)
            if not self._weights.sum() > 0:
                raise InvalidInput(
                    "R2 needs targets that vary; these are constant on the scored samples. Give "
                    "integer classes for accuracy, or use more samples."
                )

    def thetas(self, thetas: Tensor | NDArray[Any], *, progress: bool = False) -> Scores:
        """Score the networks at some thetas, (theta, embedding_dim); they run side by side.

        With `progress`, a bar on stderr counts the runs of a network on a sample.
        """
        given = torch.as_tensor(thetas, dtype=torch.float32)
        gains = np.zeros((len(given), len(self.samples)))
        with tqdm(total=gains.size, desc="scores", unit="run", disable=not progress) as bar:
            for which, places, outputs in emulated_outputs(
                self.embedding, given, self.samples, self.output
            ):
                gains[which, places] = self._gains(outputs, places)
                bar.update(gains[which, places].size)
        return Scores(self.kind, gains, self._weights)

    def recorded(self, models: Sequence[str]) -> Scores:
        """Score embedded networks by the outputs that were recorded of them."""
        population = self.embedding.population
        gains = [
            self._gains(population.outputs(model, samples=self.samples)[None], slice(None))[0]
            for model in models
        ]
        return Scores(self.kind, np.stack(gains), self._weights)

    def outputs(self, outputs: NDArray[Any]) -> Scores:
        """Score outputs (network, sample or row, *shape) on the samples of this scorer."""
        return Scores(self.kind, self._gains(outputs, slice(None)), self._weights)

    def _gains(self, outputs: NDArray[Any], places: slice) -> NDArray[np.float64]:
        """Return the gains of (network, row, *shape) outputs of a run of the samples."""
        starts, counts = self._starts[places], self._counts[places]
        rows = slice(int(starts[0]), int(starts[-1] + counts[-1]))
        flat = outputs.reshape(len(outputs), rows.stop - rows.start, -1)
        if not np.isfinite(flat).all():
            raise InvalidInput(
                "Outputs are not finite, so that they have no score. Thetas far from those of the "
                "networks make numbers too large; stay nearer."
            )
        targets = self._targets[rows]
        if self.kind == "accuracy":
            decided = flat[..., 0] > 0 if flat.shape[-1] == 1 else flat.argmax(-1)
            right = (decided == targets).astype(np.float64)
            return np.add.reduceat(right, starts - rows.start, axis=1)
        errors = ((flat.astype(np.float64) - targets) ** 2).sum(-1)
        gains: NDArray[np.float64] = self._weights[places] - np.add.reduceat(
            errors, starts - rows.start, axis=1
        )
        return gains


def the_output(embedding: ModelEmbedding, output_group: str | None) -> OutputSpec:
    """Return an output group by name, or the only one there is.

    Raises
    ------
    InvalidInput
        If there are several, and none is named.
    UnknownName
        If there is no such group.
    """
    outputs = {output.group: output for output in embedding.meta_model.spec.outputs}
    if output_group is None:
        if len(outputs) > 1:
            raise InvalidInput(
                f"The networks belong to the output groups {', '.join(outputs)}. Choose one with "
                "output_group=..."
            )
        return next(iter(outputs.values()))
    if output_group not in outputs:
        raise UnknownName(
            f"There is no output group {output_group!r}. {suggest(output_group, outputs)}"
        )
    return outputs[output_group]


@torch.no_grad()
def emulated_outputs(
    embedding: ModelEmbedding, thetas: Tensor, samples: NDArray[np.int64], output: OutputSpec
) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
    """Yield what the networks at some thetas answer, many thetas and samples at a time.

    Parameters
    ----------
    thetas
        (theta, embedding_dim).
    samples
        (sample,) indices into the population.
    output
        The output group whose readout answers.

    Yields
    ------
    tuple
        Which of the thetas, which of the samples, and their outputs: (theta, sample or row, number)
        where a row is a real step.
    """
    inputs = embedding.population.inputs
    pairs = pairs_at_once(embedding, torch.as_tensor(samples))
    for first in range(0, len(thetas), THETAS):
        some = thetas[first : first + THETAS]
        step = max(pairs // len(some), 1)
        for start in range(0, len(samples), step):
            chunk = samples[start : start + step]
            batch = inputs.batch(chunk)
            found = embedding.meta_model(batch.values[None], some[:, None], batch.lengths[None])
            values = found.outputs[output.group]
            if output.axis == "time":
                values = values[:, torch.arange(values.shape[2]) < batch.lengths[:, None]]
            yield (
                slice(first, first + len(some)),
                slice(start, start + len(chunk)),
                values.reshape(len(some), -1, math.prod(output.shape)).numpy(),
            )


def output_rows(
    offsets: NDArray[np.int64], samples: NDArray[np.int64], output: OutputSpec
) -> NDArray[np.int64]:
    """Return where the outputs of some samples lie among those of all."""
    if output.axis == "sample":
        return samples
    lengths = np.diff(offsets)[samples]
    before = np.cumsum(lengths) - lengths
    rows: NDArray[np.int64] = np.repeat(offsets[samples] - before, lengths) + np.arange(
        lengths.sum()
    )
    return rows


def targets_of(
    embedding: ModelEmbedding, output: OutputSpec, targets: TargetSource | None
) -> NDArray[Any]:
    """Return the targets of an output group, as `align_targets` lays them out.

    Raises
    ------
    InvalidInput
        If there are none, or they do not fit.
    UnknownName
        If a mapping names an output group that is not there.
    """
    if isinstance(targets, Mapping):
        for group in targets:
            if group not in embedding.output_groups:
                raise UnknownName(
                    f"Targets are given for the output group {group!r}. "
                    f"{suggest(str(group), set(embedding.output_groups))}"
                )
        targets = targets.get(output.group)
    elif targets is None:
        targets = embedding.population.inputs.targets
    if targets is None:
        raise InvalidInput(
            f"Networks are scored on their task, and there are no targets for the output group "
            f"{output.group!r}. Capture them with targets=..., or give targets here."
        )
    return align_targets(embedding.population, output, targets)
