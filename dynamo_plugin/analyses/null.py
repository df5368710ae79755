"""What chance makes of the statistics of an analysis: of its labels, or of its networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from dynamo_plugin.analyses._null_result import Kind, NullResult, null_result
from dynamo_plugin.analyses._null_table import Alternative, choose
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._permutation import permutation_test
from dynamo_plugin.analyses._refits import refits_of, statistics_in, statistics_of_refits
from dynamo_plugin.analyses._reset_networks import UntrainedFactory, untrained_population
from dynamo_plugin.analyses._statistics import VECTORISED, statistics_of
from dynamo_plugin.analyses._twins import STATISTICS, TwinDistance, twin_figures
from dynamo_plugin.analyses.labels import LabelSource, read_groups, read_labels
from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store import Reparametrisation, add_twins, select_models, shuffle_time

if TYPE_CHECKING:
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.recording.recorder import ModelSource
    from dynamo_plugin.store import Population

__all__ = ["NullResult", "null"]

MOST_ENUMERATED = 20_000
"""Labellings that are enumerated by default, where they are worked on many at a time."""


@analysis
def null(
    embedding: ModelEmbedding,
    *,
    labels: LabelSource | None = None,
    analysis: str = "clusters",
    kind: Kind = "labels",
    statistics: Sequence[str] | None = None,
    alternative: Alternative = "greater",
    permutations: int = 999,
    max_exact: int | None = None,
    refits: int | None = None,
    models: Mapping[str, ModelSource] | None = None,
    untrained: Mapping[str, UntrainedFactory] | None = None,
    capture_options: Mapping[str, Any] | None = None,
    twins_by: Reparametrisation = "permutation",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    **options: Any,
) -> NullResult:
    """Compare the statistics of an analysis with those that it has under a null.

    Statistics are the numbers in the analysis' `summary()`; nested ones have dotted names.

    `labels`: labels are permuted. If there are at most `max_exact` distinct labellings, all are
    enumerated, and p is the share of them that are at least as extreme; otherwise labels are drawn,
    and p is (1 + number at least as extreme) / (1 + permutations), which is never 0 and rejects no
    more often than it says (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585). For `clusters` and
    `attribution` the agreement of the labels with theta, and the share `r2` of the variance that
    they explain with its `pseudo_f`, are computed for many labellings at once. Any other analysis
    that has the option `labels`, a plugin's too, runs once per labelling.

    The other kinds fit a meta-model to other populations, with the settings of the embedding and
    another seed each, which takes as long as so many fits:

    `shuffled_time`: the steps of each sequence of states are in random order. Every network keeps
    its states, but when they occur no longer follows the inputs; inputs and outputs stay. A
    statistic that is not beyond this null does not rest on dynamics. Of networks without time, the
    samples are permuted.

    `untrained`: the networks have initial weights. What the statistic is here comes from
    architecture and inputs alone.

    For both, p is (1 + number of refits at least as extreme) / (1 + refits): exact if the embedding
    is a draw like the refits where the null holds.

    `twins`: every network is there twice, itself and a twin with its units in another order, which
    computes the same. `twin_found` is the share of networks whose nearest neighbour is their twin,
    `distance_ratio` the median distance of twins by the median distance of different networks; both
    are means over the refits. The null pairs every network with the twin of a random one; p counts
    pairings that find at least as many twins, or whose ratio is at most as large. How far apart
    networks are that are the same is the `noise_floor` of the result: distances below it mean
    nothing.

    Parameters
    ----------
    embedding
        At least three models where labels are permuted.
    labels
        A metadata column, a mapping from model id to label, or one label per model. Given to the
        analysis; of kind `twins` there are none.
    analysis
        Registered name; twins have no analysis.
    kind
        `labels`, `shuffled_time`, `untrained` or `twins`.
    statistics
        Which of its statistics; None for all that depend on what the null changes.
    alternative
        `greater`: values at least as large are extreme. `less`: at least as small. `two-sided`: at
        least as far from the mean over all draws looked at. Not for twins.
    permutations
        Labellings, or pairings of twins, that are drawn.
    max_exact
        Largest number of labellings that is enumerated; 0 never enumerates. None for 20,000 where
        many are worked on at once, else `permutations`.
    refits
        Fits to other populations; None for 19, with which p can be 0.05, and for 1 of twins.
    models
        Of kind `untrained`: id to network, or a factory of it, of every model, as they were
        captured. They are copied, and every submodule is reset by its `reset_parameters`.
    untrained
        Id to a function from a seed to an untrained network, where resetting is not possible.
    capture_options
        Of kind `untrained`: how the networks are read, see `live_population`.
    twins_by
        `permutation` of units, or `rotation` of states.
    seed
        Of the draws.
    device
        Where refits are trained.
    progress
        Whether refits show a bar on stderr.
    **options
        Options of the analysis; of twins, `distance`: `theta`, `pullback` or `functional`.

    Returns
    -------
    NullResult

    Raises
    ------
    UnknownName
        If there is no such analysis, column, model or statistic.
    InvalidInput
        If labels do not sort models into groups, an option does not fit, no statistic depends
        on what the null changes, or a network cannot be reset.
    """
    refits = (1 if kind == "twins" else 19) if refits is None else refits
    _check(kind, analysis, alternative, permutations, max_exact, refits, seed)
    if kind != "untrained" and any(
        given is not None for given in (models, untrained, capture_options)
    ):
        raise InvalidInput(
            "models, untrained and capture_options make untrained networks; say kind='untrained'."
        )
    if kind == "labels":
        if labels is None:
            raise InvalidInput(
                "The null of permuted labels needs labels=...; kind='shuffled_time', 'untrained' "
                "and 'twins' do without."
            )
        found = read_groups(embedding, labels)
        names, compute = statistics_of(analysis, embedding, found, options)
        if max_exact is None:
            max_exact = MOST_ENUMERATED if analysis in VECTORISED else permutations
        test = permutation_test(
            compute, found.codes, permutations=permutations, max_exact=max_exact, seed=seed
        )
        return null_result(
            names,
            test.observed,
            test.null,
            statistics,
            kind,
            analysis,
            alternative,
            found.name,
            exact=test.exact,
        )

    chosen = select_models(embedding.population, embedding.ids)

    def populations(draw: int) -> Population:
        if kind == "shuffled_time":
            return shuffle_time(chosen, seed=draw)
        if kind == "twins":
            return add_twins(chosen, seed=draw, by=twins_by)
        return untrained_population(
            embedding, models, untrained, seed=draw, capture_options=capture_options
        )

    others = refits_of(
        embedding, populations, refits=refits, seed=seed, device=device, progress=progress
    )
    if kind == "twins":
        distance = options.pop("distance", "theta")
        if distance not in get_args(TwinDistance):
            raise InvalidInput(
                f"distance must be 'theta', 'pullback' or 'functional', got {distance!r}."
            )
        if options or labels is not None:
            wrong = next(iter(options), "labels")
            raise InvalidInput(
                f"The null of twins has the option 'distance' and no analysis, got {wrong!r}."
            )
        figures = twin_figures(others, distance=distance, permutations=permutations, seed=seed)
        return null_result(
            list(STATISTICS),
            figures.observed,
            figures.null,
            statistics,
            kind,
            "distances",
            None,
            None,
            exact=False,
            twins=figures.twins,
            noise_floor=figures.noise_floor,
        )
    name = None
    if labels is not None:
        read = read_labels(embedding, labels)
        name, options["labels"] = read.name, list(read.of_models)
    observed = statistics_in(analysis, embedding, options)
    names = list(observed)
    choose(names, {}, statistics, analysis, on="networks")  # a wrong name costs no fits
    drawn = statistics_of_refits(analysis, names, others, options)
    return null_result(
        names,
        np.array(list(observed.values())),
        drawn,
        statistics,
        kind,
        analysis,
        alternative,
        name,
        exact=False,
    )


def _check(
    kind: Kind,
    analysis: str,
    alternative: Alternative,
    permutations: int,
    max_exact: int | None,
    refits: int,
    seed: int,
) -> None:
    if kind not in get_args(Kind):
        raise InvalidInput(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}.")
    if permutations < 1 or (max_exact is not None and max_exact < 0):
        raise InvalidInput(
            "permutations must be at least 1 and max_exact at least 0, got "
            f"{permutations} and {max_exact}."
        )
    if refits < 1 or seed < 0:
        raise InvalidInput(
            f"refits must be at least 1 and seed at least 0, got {refits} and {seed}."
        )
    if alternative not in get_args(Alternative):
        raise InvalidInput(
            f"alternative must be 'greater', 'less' or 'two-sided', got {alternative!r}."
        )
    if analysis == "null":
        raise InvalidInput("The null of the null is not defined; name another analysis.")
