"""A population whose states come at the wrong time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store._model_reader import find_site
from dynamo_plugin.store._plan import strided_rows
from dynamo_plugin.store.inputs import sample_indices
from dynamo_plugin.store.reader import Population
from dynamo_plugin.store.selecting import PopulationView, renamed_headers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.types import SiteSpec

__all__ = ["shuffle_time"]


def shuffle_time(population: Population, *, seed: int) -> PopulationView:
    """Return a population with the steps of every sequence of states in random order.

    Each network keeps the states that it had in each sequence, but when they occur no longer
    follows the inputs, nor each other. The order is drawn anew for every network and sequence, and
    is the same at all sites of a network that were recorded at the same steps. Inputs and outputs
    stay.

    Where a site has one state per sample, as in feed-forward networks on images, there is no time.
    There the samples are permuted, anew for every network and likewise for all its sites: which
    input made which state is lost.

    Parameters
    ----------
    population
        Any population; nothing is copied.
    seed
        Of the orders.

    Raises
    ------
    InvalidInput
        If a site has nothing to permute: no sequence has two stored steps, or there is one sample.
    """
    for model in population.ids:
        for site in population.spec(model).sites:
            counts = strided_rows(population.lengths, site.every)
            if (len(counts) if site.axis == "sample" else counts.max()) < 2:
                raise InvalidInput(
                    f"The states of model {model!r} at site {site.name!r} cannot be shuffled: "
                    "there are no two in a sequence. Capture longer sequences, or each step of "
                    "them."
                )
    return _ShuffledPopulation(population, seed)


class _ShuffledPopulation(PopulationView):
    """Reads states in another order."""

    __slots__ = ("_places", "_seed")

    def __init__(self, base: Population, seed: int) -> None:
        sources = {model: model for model in base.ids}
        change = f"(steps shuffled, seed {seed})"
        super().__init__(base, renamed_headers(base, sources, change=change), sources)
        self._seed = seed
        self._places = {model: place for place, model in enumerate(base.ids)}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._base, self._seed)

    @property
    def location(self) -> str:
        return f"{self._base.location} (steps shuffled, seed {self._seed})"

    def states(
        self, model_id: str, site: str | None = None, *, samples: ArrayLike | None = None
    ) -> NDArray[Any]:
        self._model(model_id)
        count = len(self.sample_ids)
        chosen = np.arange(count) if samples is None else sample_indices(samples, count)
        spec = find_site(model_id, self.spec(model_id), site)
        generator = np.random.default_rng([self._seed, self._places[model_id]])
        if spec.axis == "sample":
            order = generator.permutation(count)
            return super().states(model_id, spec.name, samples=order[chosen])
        rows = super().states(model_id, spec.name, samples=chosen)
        return rows[self._order(generator, spec, chosen)]

    def _order(
        self, generator: np.random.Generator, site: SiteSpec, samples: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return where each row of some samples, laid one after the other, comes from."""
        every = strided_rows(self.lengths, site.every)
        stops = np.cumsum(every)
        counts = every[samples]
        # All keys are drawn, whichever samples are asked for: each has its own order.
        keys = generator.random(int(stops[-1]))
        starts = np.cumsum(counts) - counts
        within = np.arange(int(counts.sum())) - np.repeat(starts, counts)
        sources = np.repeat((stops - every)[samples], counts) + within
        places = np.repeat(np.arange(len(samples)), counts)
        return np.lexsort((keys[sources], places))
