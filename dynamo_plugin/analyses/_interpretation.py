"""Whether a theta says anything about its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Difference", "interpret"]

CONFIDENCE = 0.95
"""Of the intervals that tell a difference from noise."""

NEAR = 0.5
"""Up to this share of the root mean square distance from the mean theta, a theta is at the mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """How much more hidden R2 the models have at their own theta than something else gives."""

    values: NDArray[np.float64]
    """(model,)."""
    standard_errors: NDArray[np.float64]
    """(model,): paired over samples, which are the same; infinite for a single sample."""
    samples: int

    @classmethod
    def between(cls, errors: NDArray[np.float64], others: NDArray[np.float64]) -> Difference:
        """Compare squared errors with larger ones, (model, sample), as shares of all squares."""
        gains = others - errors
        count = gains.shape[1]
        noise = np.full(len(gains), np.inf)
        if count > 1:
            noise = gains.std(1, ddof=1) * np.sqrt(count)
        return cls(gains.sum(1), noise, count)

    @property
    def above(self) -> NDArray[np.bool_]:
        """(model,): whether the confidence interval (Student) lies above zero."""
        found: NDArray[np.bool_] = self.values > self._reach
        return found

    @property
    def below(self) -> NDArray[np.bool_]:
        """(model,): whether it lies below zero."""
        found: NDArray[np.bool_] = self.values < -self._reach
        return found

    @property
    def _reach(self) -> NDArray[np.float64]:
        if self.samples < 2:
            return self.standard_errors
        critical = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.samples - 1))
        return critical * self.standard_errors


def interpret(
    hidden_r2: NDArray[np.float64],
    threshold: float,
    thetas: NDArray[np.float64],
    groups: Sequence[str],
    errors: NDArray[np.float64],
    mean_theta_errors: NDArray[np.float64],
    above_untrained: Difference | None,
) -> tuple[list[str], list[str]]:
    """Return why thetas should not be interpreted, and what to know of those that may be.

    Parameters
    ----------
    hidden_r2
        (model,) on the samples that count.
    threshold
        Below it, nothing is interpreted.
    thetas
        (model, embedding_dim).
    groups
        (model,): output groups, each of which has a mean theta of its own.
    errors, mean_theta_errors
        (model, sample) squared errors as shares of all squares, at the own and the mean theta.
    above_untrained
        The gain over an untrained meta-model; None if that was not computed.

    Returns
    -------
    tuple of list
        (model,) reasons, empty where the theta may be interpreted; and (model,) notes.
    """
    reasons: list[list[str]] = [[] for _ in groups]
    notes = [""] * len(groups)
    own = Difference.between(errors, mean_theta_errors)
    for model, value in enumerate(hidden_r2.tolist()):
        if value < threshold:
            reasons[model].append(f"hidden R2 below {threshold:g}")
        if above_untrained is not None and not above_untrained.above[model]:
            reasons[model].append("no better than an untrained meta-model")
    for group in sorted(set(groups)):
        members = np.flatnonzero(np.array(groups) == group)
        if len(members) == 1:
            notes[members[0]] = "the only model of its output group, so that theta is the mean"
            continue
        distances = np.linalg.norm(thetas[members] - thetas[members].mean(0), axis=1)
        typical = float(np.sqrt((distances**2).mean()))
        if typical == 0:
            for model in members.tolist():
                notes[model] = "all thetas of its output group are equal"
            continue
        together = (part[members].mean(0)[None] for part in (errors, mean_theta_errors))
        carries = bool(Difference.between(*together).above[0])
        for model, distance in zip(members.tolist(), distances.tolist(), strict=True):
            if own.below[model]:
                reasons[model].append("emulated worse at its own theta than at the mean theta")
            elif not carries:
                reasons[model].append("thetas of its output group say no more than their mean")
            elif not own.above[model]:
                if distance > NEAR * typical:
                    reasons[model].append("far from the mean theta and emulated no better there")
                else:
                    notes[model] = "near the mean theta and not told apart from it"
    return ["; ".join(found) for found in reasons], notes
