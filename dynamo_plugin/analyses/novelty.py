"""Whether a new network is like those that a meta-model was fitted to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from dynamo_plugin.analyses._conformal import adjusted_for_each, conformal_p_values
from dynamo_plugin.analyses._novelty_calibration import (
    Calibration,
    FidelityOf,
    calibrate,
    scores_of,
)
from dynamo_plugin.analyses._novelty_result import NoveltyResult
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses.fidelity import fidelity
from dynamo_plugin.analyses.labels import LabelSource, read_labels
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Population, open_population

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["NoveltyResult", "novelty"]

OPTIMISTIC = (
    "Members were learned with the meta-model: they may be emulated better than new networks of "
    "their kind, and lie farther apart than inserted ones, so that fidelity may flag too readily "
    "and place too seldom. calibration='refit' compares like with like."
)


@analysis
def novelty(
    embedding: ModelEmbedding,
    *,
    population: Population | str | os.PathLike[str],
    models: Sequence[str] | None = None,
    labels: LabelSource | None = None,
    neighbours: int = 5,
    calibration: Calibration = "refit",
    fidelity_of: FidelityOf = "both",
    folds: int = 5,
    alpha: float = 0.05,
    steps: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> NoveltyResult:
    """Put new networks into the frozen meta-model, and say whether they belong there.

    The theta and the state map of each new network are fitted, the meta-model stays
    (`ModelEmbedding.insert`). Two scores say how strange it is: the mean distance to its nearest
    members, and what its emulation lacks on held-out samples, (1 - hidden R2) + (1 - output
    agreement) as in the objective of the fit. Hidden R2 alone does not tell: states that are
    simpler than the members' are emulated better than theirs, whatever they compute.

    Either score gives a conformal p-value, the share of members, and the new network itself, that
    are at least as strange (Vovk et al. 2005, doi:10.1007/b106715; Laxhammar and Falkman 2010,
    doi:10.1145/1833280.1833287; Angelopoulos and Bates 2021, arXiv:2107.07511). A network is
    flagged if either, corrected for the two, is at most `alpha`: of networks like the members, at
    most that share are. N members allow no p-value below 2 / (N + 1); at 0.05 that takes 39.

    That holds if members are scored as new networks are, which is what `calibration` is about.

    Parameters
    ----------
    embedding
        The members.
    population
        Where the new networks are, captured on the inputs of the embedded population; or its path.
    models
        Their ids; None for all that the embedding does not have.
    labels
        Of the members: a metadata column, a mapping from id to label, or one label per member.
    neighbours
        How many members are near; at most one less than there are.
    calibration
        `members`: members as the fit left them, which is cheap; but the meta-model has learned
        them, so that fidelity may flag too readily and place too seldom. `inserted`: members are
        inserted again, as if new, into the meta-model that has learned them. `refit`: the
        meta-model is fitted again without a fold of the members, which are then inserted beside
        the new networks, fold after fold; this costs `folds` fits, and is the only one in which
        members are as new as the new ones. Its p-values are cross-conformal, and proven but for
        a factor of at most 2.
    fidelity_of
        What fidelity is: of `states`, of `outputs`, or the sum of `both`.
    folds
        Of `refit`, into which members are dealt at random; at most as many as members.
    alpha
        Level of the flag.
    steps, batch_size
        Of insertion, see `ModelEmbedding.insert`.
    seed
        Of the folds.
    device
        Where to compute.
    progress
        Whether to show bars on stderr.

    Returns
    -------
    NoveltyResult

    Raises
    ------
    InvalidInput
        If an option is out of range, all members lie at one place, or the new networks do not fit
        the embedding, see `ModelEmbedding.insert`.
    UnknownName, DuplicateName
        As `ModelEmbedding.insert`, and if a metadata column does not exist.
    StoreNotFound
        If a population is not where it is said to be.
    """
    count = len(embedding)
    _check(count, neighbours, calibration, fidelity_of, folds, alpha)
    found = None if labels is None else read_labels(embedding, labels)
    thetas = embedding.thetas.double().numpy()
    mean = thetas.mean(0)
    _, sizes, axes = np.linalg.svd(thetas - mean, full_matrices=False)
    if not sizes[0] > 1e-7 * np.abs(thetas).max():
        raise InvalidInput(
            f"A place needs members that differ; the thetas of these {count} are all equal. Fit "
            "longer, or with a smaller theta_decay."
        )
    axes = axes[: min(count - 1, thetas.shape[1])]
    opened = population if isinstance(population, Population) else open_population(population)
    options: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "device": device,
        "progress": progress,
    }
    joined = embedding.insert(opened, models=models, **options)
    figures = fidelity(joined, untrained=False).table
    own = scores_of(joined, figures, count, neighbours)
    members, beside = calibrate(
        embedding,
        joined,
        own,
        calibration,
        neighbours=neighbours,
        folds=folds,
        seed=seed,
        options=options,
        progress=progress,
    )
    p_values = np.stack(
        [
            conformal_p_values(new, old)
            for new, old in zip(
                beside.strangeness(fidelity_of), members.strangeness(fidelity_of), strict=True
            )
        ]
    )
    adjusted = adjusted_for_each(p_values)
    ids, new = joined.ids[count:], joined.thetas[count:].double().numpy()
    near = _near(embedding.ids, ids, cdist(new, thetas), neighbours)
    if found is not None:
        near["label"] = near["neighbour"].map(
            dict(zip(embedding.ids, found.of_models, strict=True))
        )
    first = near[near["rank"] == 1]
    table = pd.DataFrame(
        {
            "model": ids,
            "output_group": joined.output_groups[count:],
            "flagged": (adjusted <= alpha).any(0),
            "place_p": p_values[0],
            "fidelity_p": p_values[1],
            "place_p_adjusted": adjusted[0],
            "fidelity_p_adjusted": adjusted[1],
            "neighbour_distance": own.distance,
            "nearest": first["neighbour"].to_numpy(),
        }
    )
    if found is not None:
        # Of equally frequent ones, Counter gives the first that it met: that of the nearer ones.
        table["neighbour_label"] = [
            Counter(some).most_common(1)[0][0]
            for some in near["label"].to_numpy().reshape(len(ids), neighbours).tolist()
        ]
    table["hidden_r2"] = own.hidden_r2
    table["output_agreement"] = own.output_agreement
    table["output_kind"] = figures["output_kind"].to_numpy()[count:]
    smallest = min(2 / (count + 1), 1.0)
    return NoveltyResult(
        table,
        near,
        _coordinates(joined, count, axes, mean, None if found is None else found.of_models),
        pd.DataFrame(
            new,
            index=pd.Index(ids, name="model"),
            columns=[f"theta_{dimension}" for dimension in range(new.shape[1])],
        ),
        pd.DataFrame(
            {
                "model": embedding.ids,
                "neighbour_distance": members.distance,
                "hidden_r2": members.hidden_r2,
                "output_agreement": members.output_agreement,
            }
        ),
        tuple((sizes[: len(axes)] ** 2 / (sizes**2).sum()).tolist()),
        calibration,
        float(alpha),
        smallest,
        _note(count, alpha, smallest, calibration),
    )


def _check(
    count: int,
    neighbours: int,
    calibration: Calibration,
    fidelity_of: FidelityOf,
    folds: int,
    alpha: float,
) -> None:
    if not 1 <= neighbours < count:
        raise InvalidInput(
            f"neighbours must be at least 1 and fewer than the {count} members, got {neighbours}."
        )
    if calibration not in get_args(Calibration):
        raise InvalidInput(
            f"calibration must be 'members', 'inserted' or 'refit', got {calibration!r}."
        )
    if fidelity_of not in get_args(FidelityOf):
        raise InvalidInput(
            f"fidelity_of must be 'both', 'states' or 'outputs', got {fidelity_of!r}."
        )
    if not 2 <= folds <= count:
        raise InvalidInput(
            f"folds must be at least 2 and at most the number of members ({count}), got {folds}."
        )
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha must be between 0 and 1, got {alpha!r}.")


def _near(
    members: Sequence[str], new: Sequence[str], distances: NDArray[np.float64], neighbours: int
) -> pd.DataFrame:
    order = np.argsort(distances, axis=1, kind="stable")[:, :neighbours]
    return pd.DataFrame(
        {
            "model": np.repeat(list(new), neighbours),
            "rank": np.tile(np.arange(1, neighbours + 1), len(new)),
            "neighbour": [members[place] for place in order.ravel().tolist()],
            "distance": np.take_along_axis(distances, order, axis=1).ravel(),
        }
    )


def _coordinates(
    joined: ModelEmbedding,
    count: int,
    axes: NDArray[np.float64],
    mean: NDArray[np.float64],
    labels: Sequence[str] | None,
) -> pd.DataFrame:
    scores = (joined.thetas.double().numpy() - mean) @ axes.T
    frame = pd.DataFrame(
        scores,
        index=pd.Index(joined.ids, name="model"),
        columns=[f"pc_{component + 1}" for component in range(len(axes))],
    )
    if labels is not None:
        frame.insert(0, "label", [*labels, *[None] * (len(joined) - count)])
    frame.insert(0, "member", np.arange(len(joined)) < count)
    return frame


def _note(count: int, alpha: float, smallest: float, calibration: Calibration) -> str | None:
    notes = []
    if smallest > alpha:
        notes.append(
            f"No network can be flagged at {alpha:g}: {count} members allow no p-value below "
            f"{smallest:.3g}. Take an alpha of at least that, or {int(np.ceil(2 / alpha)) - 1} "
            "members."
        )
    if calibration == "members":
        notes.append(OPTIMISTIC)
    return " ".join(notes) or None
