"""A population with a twin of every network: the same function in another basis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynamo_plugin.errors import DuplicateName, InvalidInput
from dynamo_plugin.store._model_reader import find_site
from dynamo_plugin.store.reader import Population
from dynamo_plugin.store.selecting import PopulationView, renamed_headers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.store.projections import Projection

__all__ = ["Reparametrisation", "add_twins", "twin_name"]

Reparametrisation = Literal["permutation", "rotation"]


def twin_name(model: str) -> str:
    """Return the id of the twin of a model.

    >>> twin_name("gru-3")
    'gru-3 (twin)'
    """
    return f"{model} (twin)"


def add_twins(
    population: Population, *, seed: int, by: Reparametrisation = "permutation"
) -> PopulationView:
    """Return a population with every network twice: itself, and a twin in another basis.

    The twin of a network has the same outputs, and its states with units (channels of feature
    maps) in a random order, or rotated at random (Haar 1933). Sites of the same width have the same
    order, as those of one residual stream, or the two states of an LSTM, must have. A permutation
    of units is a network with other weights that computes the same; a rotation is one if nothing
    acts on single units.

    Parameters
    ----------
    population
        Any population; nothing is copied.
    seed
        Of the bases, which differ between networks.
    by
        `permutation` or `rotation`.

    Returns
    -------
    Population
        The networks first, then their twins in the same order; see `twin_name`.

    Raises
    ------
    InvalidInput
        If `by` is neither.
    DuplicateName
        If a model has the id that a twin would have.
    """
    if by not in ("permutation", "rotation"):
        raise InvalidInput(f"Twins are made by 'permutation' or 'rotation', got {by!r}.")
    taken = [model for model in population.ids if twin_name(model) in population.ids]
    if taken:
        raise DuplicateName(
            f"The twin of {taken[0]!r} would be called {twin_name(taken[0])!r}, which is a model "
            "of the population. Capture that one under another id."
        )
    return _TwinPopulation(population, seed, by)


class _TwinPopulation(PopulationView):
    """Reads the states of twins in their basis."""

    __slots__ = ("_by", "_places", "_seed")

    def __init__(self, base: Population, seed: int, by: Reparametrisation) -> None:
        selves = {model: model for model in base.ids}
        twins = {twin_name(model): model for model in base.ids}
        headers = renamed_headers(base, selves)
        headers |= renamed_headers(base, twins, change=f"({by} of units, seed {seed})")
        super().__init__(base, headers, selves | twins)
        self._seed = seed
        self._by: Reparametrisation = by
        self._places = {twin: place for place, twin in enumerate(twins)}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._base, self._seed, self._by)

    @property
    def location(self) -> str:
        return f"{self._base.location} (with twins by {self._by}, seed {self._seed})"

    def states(
        self, model_id: str, site: str | None = None, *, samples: ArrayLike | None = None
    ) -> NDArray[Any]:
        states = super().states(model_id, site, samples=samples)
        if model_id not in self._places:
            return states
        units = states.shape[1]
        generator = np.random.default_rng([self._seed, self._places[model_id], units])
        if self._by == "permutation":
            return states[:, generator.permutation(units)]
        basis, upper = np.linalg.qr(generator.normal(size=(units, units)))
        # The signs make the rotation uniform (Mezzadri 2007, arXiv:math-ph/0609050).
        basis *= np.sign(np.diagonal(upper))
        rotated = np.moveaxis(np.tensordot(states.astype(np.float64), basis, axes=(1, 0)), -1, 1)
        return np.ascontiguousarray(rotated, dtype=states.dtype)

    def projection(self, model_id: str, site: str | None = None) -> Projection:
        if model_id in self._places:
            find_site(model_id, self.spec(model_id), site)
            raise InvalidInput(
                f"The states of the twin {model_id!r} cannot be mapped back to what was recorded. "
                "Ask for the projection of the network itself."
            )
        return super().projection(model_id, site)
