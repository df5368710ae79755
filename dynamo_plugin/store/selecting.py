"""Views of a population: the models of another one under ids of their own; nothing is copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store._root import ModelHeader
from dynamo_plugin.store.reader import Population

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.store.projections import Projection

__all__ = ["PopulationView", "renamed_headers", "select_models"]


class PopulationView(Population):
    """Reads models of another population; subclasses change what is read.

    Parameters
    ----------
    base
        The other population.
    headers
        Id in the view to what is said of the model.
    sources
        Id in the view to id in `base`.
    """

    __slots__ = ("_base", "_sources")

    def __init__(
        self, base: Population, headers: Mapping[str, ModelHeader], sources: Mapping[str, str]
    ) -> None:
        super().__init__(base._location, base._root, base._inputs, headers)
        self._base = base
        self._sources = dict(sources)

    @property
    def location(self) -> str:
        """Where the other population lies; subclasses add what they change."""
        return self._base.location

    def nbytes(self, model_id: str) -> int:
        """See `Population.nbytes`."""
        return self._base.nbytes(self._source(model_id))

    def states(
        self, model_id: str, site: str | None = None, *, samples: ArrayLike | None = None
    ) -> NDArray[Any]:
        """See `Population.states`."""
        return self._base.states(self._source(model_id), site, samples=samples)

    def outputs(self, model_id: str, *, samples: ArrayLike | None = None) -> NDArray[Any]:
        """See `Population.outputs`."""
        return self._base.outputs(self._source(model_id), samples=samples)

    def projection(self, model_id: str, site: str | None = None) -> Projection:
        """See `Population.projection`."""
        return self._base.projection(self._source(model_id), site)

    def _source(self, model_id: str) -> str:
        self._model(model_id)  # raises for an id that nobody has
        return self._sources[model_id]


def select_models(population: Population, models: Sequence[str] | Mapping[str, str]) -> Population:
    """Return some models of a population, in the order given; nothing is copied.

    All models in their own order are the population itself.

    Parameters
    ----------
    population
        Any population.
    models
        Ids; or a mapping from ids of the view to ids of the population, which may name one twice.

    Raises
    ------
    UnknownName
        If there is no such model.
    InvalidInput
        If there are none, or an id is there twice.
    """
    if not isinstance(models, Mapping):
        if len(set(models)) < len(models):
            raise InvalidInput(f"Expected every model once, got {', '.join(models)}.")
        if tuple(models) == population.ids:
            return population
        models = {model: model for model in models}
    if not models:
        raise InvalidInput("Expected models to select, got none.")
    return _SelectedModels(population, dict(models))


class _SelectedModels(PopulationView):
    """Some models, as they are."""

    __slots__ = ()

    def __init__(self, base: Population, sources: Mapping[str, str]) -> None:
        super().__init__(base, renamed_headers(base, sources), sources)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._base, self._sources)


def renamed_headers(
    base: Population, sources: Mapping[str, str], *, change: str = ""
) -> dict[str, ModelHeader]:
    """Return what is said of models, by their ids in a view.

    Parameters
    ----------
    base, sources
        As in `PopulationView`.
    change
        What the view changes. It becomes part of the models' hashes, so that an embedding of the
        view is not taken for one of the population.
    """
    headers = {}
    for index, (model, source) in enumerate(sources.items()):
        header = base._model(source)
        headers[model] = dataclasses.replace(
            header,
            id=model,
            index=index,
            model_hash=f"{header.model_hash} {change}".rstrip(),
        )
    return headers
