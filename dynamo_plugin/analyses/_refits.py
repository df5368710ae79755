"""What other populations make of the statistics of an analysis: one fit for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from dynamo_plugin.analyses._statistics import numbers_in
from dynamo_plugin.analyses.run import analyse
from dynamo_plugin.embedding.refitting import refit_like
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import device as Device

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.store import Population

__all__ = ["refits_of", "statistics_in", "statistics_of_refits"]


def refits_of(
    embedding: ModelEmbedding,
    populations: Callable[[int], Population],
    *,
    refits: int,
    seed: int,
    device: str | Device | None,
    progress: bool,
) -> Iterator[ModelEmbedding]:
    """Yield the embeddings of further populations, one at a time.

    Parameters
    ----------
    populations
        From a seed to a population.
    refits
        How many.
    seed
        The draws of another seed are others. None is fitted with the seed of the embedding.
    """
    for draw in tqdm(range(refits), desc="refits", unit="fit", disable=not progress):
        own = seed * refits + draw
        yield refit_like(
            embedding, populations(own), seed=embedding.config.seed + 1 + own, device=device
        )


def statistics_in(
    analysis: str, embedding: ModelEmbedding, options: Mapping[str, Any]
) -> dict[str, float]:
    """Return the numbers in the summary of an analysis."""
    return numbers_in(analyse(analysis, embedding, **options).summary())


def statistics_of_refits(
    analysis: str,
    names: Sequence[str],
    refits: Iterable[ModelEmbedding],
    options: Mapping[str, Any],
) -> NDArray[np.float64]:
    """Return statistics of an analysis of each refit.

    Returns
    -------
    ndarray
        (statistic, refit); NaN where a refit has no such number.

    Raises
    ------
    InvalidInput
        If the analysis is not possible for one of them; says which.
    """
    rows = []
    for draw, refit in enumerate(refits):
        try:
            found = statistics_in(analysis, refit, options)
        except InvalidInput as error:
            raise InvalidInput(
                f"The analysis {analysis!r} is not possible for refit {draw}: {error}"
            ) from error
        rows.append([found.get(name, np.nan) for name in names])
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names)).T
