"""Behaviour: whether two networks answer alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from scipy.special import entr, log_expit, log_softmax

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.metrics._checks import check_choice
from dynamo_plugin.metrics._states import as_samples, check_same_samples
from dynamo_plugin.registry.interfaces import Invariance, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Answers", "Disagreement", "JensenShannon"]

_SCALES: Final = ("logits", "probabilities")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one network answers; made by `Disagreement.prepare`."""

    chosen: NDArray[np.int64]
    """(sample,) classes."""
    classes: int
    """Number of outputs."""


@dataclass(frozen=True, slots=True)
class Disagreement(Metric[Answers]):
    """Share of the samples to which two networks give different answers.

    The answer is the class of the largest output, of equal ones the first; of a single output,
    whether it is positive. (Madani, Pennock and Flake 2004, NIPS 17; Klabunde et al. 2025,
    doi:10.1145/3728458.)

    Examples
    --------
    >>> Disagreement()([[1, 2], [3, 1], [0, 1], [1, 0]], [[1, 2], [1, 3], [0, 1], [5, 0]])
    0.25
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "Klabunde et al. 2025, doi:10.1145/3728458"
    reads: ClassVar[Literal["outputs"]] = "outputs"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """One factor."""
        return frozenset({"scaling"})

    @property
    def is_metric(self) -> bool:
        """A share of differences keeps the triangle inequality."""
        return True

    def prepare(self, states: ArrayLike) -> Answers:
        """Find the answers.

        Parameters
        ----------
        states
            (sample, class) outputs, logits or probabilities; (sample, 1) logits of a yes.

        Raises
        ------
        InvalidInput
            If there are fewer than four samples, or outputs are not finite.
        """
        outputs = as_samples(states, what="outputs", unit="class")
        classes = outputs.shape[1]
        chosen = outputs[:, 0] > 0 if classes == 1 else outputs.argmax(1)
        return Answers(chosen.astype(np.int64), classes)

    def compare(self, first: Answers, second: Answers) -> float:
        """Return the disagreement of two networks, from 0 to 1; raises as `Metric`."""
        check_same_samples(len(first.chosen), len(second.chosen))
        _check_same_classes(first.classes, second.classes)
        return float((first.chosen != second.chosen).mean())


@dataclass(frozen=True, slots=True)
class JensenShannon(Metric["NDArray[np.float64]"]):
    """Mean Jensen-Shannon distance, or divergence, of the outputs of two networks.

    For distributions p and q with the mean m, (KL(p, m) + KL(q, m)) / 2, in nats (Lin 1991,
    doi:10.1109/18.61115), whose root is a metric (Endres and Schindelin 2003,
    doi:10.1109/TIT.2003.813506); then the mean over samples.

    Parameters
    ----------
    measure
        `distance`, the root, or `divergence`.
    outputs
        Whether outputs are `logits`, or `probabilities`.

    Examples
    --------
    >>> certain = [[1, 0], [1, 0], [0, 1], [0, 1]]
    >>> apart = JensenShannon(measure="divergence", outputs="probabilities")
    >>> round(apart(certain, certain[::-1]), 6), round(float(np.log(2)), 6)
    (0.693147, 0.693147)
    """

    kind: ClassVar[Literal["distance"]] = "distance"
    reference: ClassVar[str] = "Lin 1991, doi:10.1109/18.61115"
    reads: ClassVar[Literal["outputs"]] = "outputs"
    measure: Literal["distance", "divergence"] = "distance"
    outputs: Literal["logits", "probabilities"] = "logits"

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, ("distance", "divergence"))
        check_choice("outputs", self.outputs, _SCALES)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """None."""
        return frozenset()

    @property
    def is_metric(self) -> bool:
        """The distance keeps the triangle inequality, the divergence does not."""
        return self.measure == "distance"

    def prepare(self, states: ArrayLike) -> NDArray[np.float64]:
        """Turn outputs into distributions.

        Parameters
        ----------
        states
            (sample, class) outputs; (sample, 1) for the logit or the probability of a yes.

        Returns
        -------
        ndarray
            (sample, class) probabilities.

        Raises
        ------
        InvalidInput
            If there are fewer than four samples, outputs are not finite, or probabilities are
            negative or do not sum to 1.
        """
        outputs = as_samples(states, what="outputs", unit="class").astype(np.float64)
        alone = outputs.shape[1] == 1
        if self.outputs == "logits":
            if alone:
                return np.exp(log_expit(np.concatenate([-outputs, outputs], axis=1)))
            return np.exp(np.asarray(log_softmax(outputs, axis=1)))
        if alone:
            outputs = np.concatenate([1 - outputs, outputs], axis=1)
        if outputs.min() < 0 or not np.allclose(outputs.sum(1), 1, atol=1e-4):
            raise InvalidInput(
                "Expected probabilities, which are not negative and sum to 1; got outputs from "
                f"{outputs.min():.3g}, with sums up to {outputs.sum(1).max():.3g}. If they are "
                "logits, use outputs='logits'."
            )
        return outputs

    def compare(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        """Return the distance or divergence of two networks; raises as `Metric`."""
        check_same_samples(len(first), len(second))
        _check_same_classes(first.shape[1], second.shape[1])
        mixed = entr((first + second) / 2).sum(1)
        divergence = (mixed - (entr(first).sum(1) + entr(second).sum(1)) / 2).clip(min=0)
        return float((np.sqrt(divergence) if self.measure == "distance" else divergence).mean())


def _check_same_classes(first: int, second: int) -> None:
    if first != second:
        raise InvalidInput(
            f"Expected outputs of the same classes, got {first} and {second} of them. Compare the "
            "networks of one task (pairwise: models=[...])."
        )
