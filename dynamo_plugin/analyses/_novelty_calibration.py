"""Scores that new networks are compared with: those of networks that belong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from scipy.spatial.distance import cdist
from tqdm.auto import tqdm

from dynamo_plugin.analyses._conformal import mean_distances
from dynamo_plugin.analyses.fidelity import fidelity
from dynamo_plugin.embedding.refitting import refit_like
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import select_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["Calibration", "FidelityOf", "Scores", "calibrate", "scores_of"]

Calibration: TypeAlias = Literal["members", "inserted", "refit"]

FidelityOf: TypeAlias = Literal["both", "states", "outputs"]


@dataclass(frozen=True, slots=True)
class Scores:
    """What tells how strange networks are."""

    distance: NDArray[np.float64]
    """Mean distance to the nearest members."""
    hidden_r2: NDArray[np.float64]
    """On held-out samples."""
    output_agreement: NDArray[np.float64]
    """Likewise."""

    def strangeness(self, fidelity_of: FidelityOf) -> tuple[NDArray[np.float64], ...]:
        """Return that of their places, and that of their fidelity: the larger, the stranger."""
        states, outputs = 1 - self.hidden_r2, 1 - self.output_agreement
        misfit = {"states": states, "outputs": outputs, "both": states + outputs}
        return self.distance, misfit[fidelity_of]


def scores_of(
    embedding: ModelEmbedding, figures: pd.DataFrame, count: int, neighbours: int
) -> Scores:
    """Return the scores of the networks of an embedding that come after its first `count`.

    Parameters
    ----------
    figures
        Its table of `fidelity`.
    """
    thetas = embedding.thetas.double().numpy()
    distances = cdist(thetas[count:], thetas[:count])
    return Scores(mean_distances(distances, neighbours), *_r2(figures[count:]))


def calibrate(
    embedding: ModelEmbedding,
    joined: ModelEmbedding,
    new: Scores,
    calibration: Calibration,
    *,
    neighbours: int,
    folds: int,
    seed: int,
    options: dict[str, Any],
    progress: bool,
) -> tuple[Scores, Scores]:
    """Return the scores of all members, and those of new networks beside each.

    Parameters
    ----------
    embedding
        Of the members.
    joined
        The same with the new networks after them.
    new
        Their scores.
    calibration
        See `novelty`.
    neighbours, folds, seed
        See `novelty`.
    options
        Of insertion.
    progress
        Whether refits show a bar.

    Returns
    -------
    tuple of Scores
        (member,), and (new, member).
    """
    count = len(embedding)
    if calibration == "refit":
        return _refitted(
            embedding,
            joined,
            neighbours=neighbours,
            folds=folds,
            seed=seed,
            options=options,
            progress=progress,
        )
    thetas = embedding.thetas.double().numpy()
    if calibration == "members":
        distances = cdist(thetas, thetas)
        figures = _r2(fidelity(embedding, untrained=False).table)
    else:
        # Copies under other ids, for an embedding holds a network once.
        again = {_unused(f"{model} (again)", joined.ids): model for model in embedding.ids}
        copies = embedding.insert(select_models(embedding.population, again), **options)
        distances = cdist(copies.thetas[count:].double().numpy(), thetas)
        figures = _r2(fidelity(copies, untrained=False).table[count:])
    # Nobody is his own neighbour.
    np.fill_diagonal(distances, np.inf)
    own = Scores(mean_distances(distances, neighbours), *figures)
    beside = (
        np.repeat(values[:, None], count, axis=1)
        for values in (new.distance, new.hidden_r2, new.output_agreement)
    )
    return own, Scores(*beside)


def _refitted(
    embedding: ModelEmbedding,
    joined: ModelEmbedding,
    *,
    neighbours: int,
    folds: int,
    seed: int,
    options: dict[str, Any],
    progress: bool,
) -> tuple[Scores, Scores]:
    """Leave out fold after fold of the members, and insert it beside the new networks."""
    count, new = len(embedding), joined.ids[len(embedding) :]
    own = Scores(*np.zeros((3, count)))
    beside = Scores(*np.zeros((3, len(new), count)))
    order = np.random.default_rng(seed).permutation(count)
    device = options.get("device")
    for fold in tqdm(np.array_split(order, folds), desc="folds", disable=not progress):
        left = [model for place, model in enumerate(embedding.ids) if place not in fold]
        if len(left) <= neighbours:
            raise InvalidInput(
                f"A fold leaves {len(left)} members, too few for {neighbours} neighbours. Take "
                "more folds, or fewer neighbours."
            )
        refit = refit_like(embedding, select_models(embedding.population, left), device=device)
        some = [embedding.ids[place] for place in fold.tolist()]
        population = joined.population
        inserted = refit.insert(population, models=[*some, *new], **{**options, "progress": False})
        found = scores_of(
            inserted, fidelity(inserted, untrained=False).table, len(left), neighbours
        )
        for name in ("distance", "hidden_r2", "output_agreement"):
            values = getattr(found, name)
            getattr(own, name)[fold] = values[: len(fold)]
            getattr(beside, name)[:, fold] = values[len(fold) :, None]
    return own, beside


def _r2(figures: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return hidden R2 and output agreement of some rows of the table of `fidelity`."""
    hidden_r2, agreement = figures[["hidden_r2", "output_agreement"]].to_numpy(np.float64).T
    return hidden_r2, agreement


def _unused(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "'"
    return name
