"""Options of `semi_supervised`, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynamo_plugin.analyses._few_labels import BEST
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = [
    "check_options",
    "checked_counts",
    "checked_starts",
    "checked_strengths",
    "split_samples",
]


def check_options(
    samples: str,
    test_fraction: float,
    repeats: int,
    subspace: int | None,
    steps: int,
    learning_rate: float,
) -> None:
    """Raise `InvalidInput` if an option is out of range."""
    if samples not in ("held_out", "all"):
        raise InvalidInput(f"samples must be 'held_out' or 'all', got {samples!r}.")
    if not 0 < test_fraction < 1:
        raise InvalidInput(f"test_fraction must lie between 0 and 1, got {test_fraction!r}.")
    for name, value, least in (("repeats", repeats, 2), ("steps", steps, 1)):
        if not isinstance(value, int) or value < least:
            raise InvalidInput(f"{name} must be a whole number from {least}, got {value!r}.")
    if subspace is not None and (not isinstance(subspace, int) or subspace < 1):
        raise InvalidInput(f"subspace must be a whole number from 1, or None, got {subspace!r}.")
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise InvalidInput(f"learning_rate must be above 0, got {learning_rate!r}.")


def checked_strengths(given: Sequence[float] | float) -> tuple[float, ...]:
    """Return the strengths of the prior, strongest first."""
    found = [given] if isinstance(given, int | float) else list(given)
    if not found or not all(np.isfinite(value) and value >= 0 for value in found):
        raise InvalidInput(f"prior_strengths must be numbers from 0, got {given!r}.")
    return tuple(sorted({float(value) for value in found}, reverse=True))


def split_samples(
    embedding: ModelEmbedding, samples: str, fraction: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pool and the test samples. At random, for to stratify takes their targets."""
    available = (
        embedding.held_out_samples.cpu().numpy()
        if samples == "held_out"
        else np.arange(len(embedding.population.sample_ids))
    )
    tested = max(round(fraction * len(available)), 2)
    if len(available) - tested < 2:
        raise InvalidInput(
            f"Expected at least 2 samples to draw labels from and 2 to test on; there are "
            f"{len(available)}, of which {tested} would be for testing. Keep more aside with "
            "held_out=..., use samples='all', or another test_fraction."
        )
    shuffled = generator.permutation(available)
    return np.sort(shuffled[tested:]), np.sort(shuffled[:tested])


def checked_starts(
    given: Sequence[str] | str, members: Sequence[str]
) -> tuple[list[str], tuple[int, ...]]:
    """Return names and codes of the starting points."""
    codes: dict[str, int] = {}
    for name in [given] if isinstance(given, str) else given:
        if name == "all":
            codes |= {member: 1 + place for place, member in enumerate(members)}
        elif name in ("mean", "best"):
            codes[name] = 0 if name == "mean" else BEST
        elif name in members:
            codes[name] = 1 + members.index(name)
        else:
            known = ["mean", "best", "all", *members]
            raise UnknownName(f"There is no start {name!r}. {suggest(str(name), known)}")
    if not codes:
        raise InvalidInput("starts must name at least one of 'mean', 'best', 'all', or a model.")
    return list(codes), tuple(codes.values())


def checked_counts(label_counts: Sequence[int] | int, available: int) -> tuple[int, ...]:
    """Return the label counts that a pool allows, in order of size."""
    given = [label_counts] if isinstance(label_counts, int) else list(label_counts)
    wrong = [
        n for n in given if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 2
    ]
    if wrong or not given:
        raise InvalidInput(
            f"label_counts must be whole numbers from 2 (to validate on), got {label_counts!r}."
        )
    fitting = tuple(sorted({int(n) for n in given if n <= available}))
    if not fitting:
        raise InvalidInput(
            f"The smallest label count is {min(given)}, and labels can be drawn from {available} "
            "samples only. Ask for fewer labels, keep more samples aside with held_out=..., use "
            "samples='all', or a smaller test_fraction."
        )
    return fitting
