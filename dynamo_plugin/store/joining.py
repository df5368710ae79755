"""Several populations on the same inputs, as one."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from dynamo_plugin.errors import DuplicateName, InvalidInput
from dynamo_plugin.store.projections import Projection
from dynamo_plugin.store.reader import Population

__all__ = ["join_populations"]


def join_populations(first: Population, *others: Population) -> Population:
    """Return the models of several populations side by side; nothing is copied.

    Parameters
    ----------
    first, others
        Open populations, captured on the same inputs.

    Returns
    -------
    Population
        Its location and configuration are those of the first; `parts` are all of them.

    Raises
    ------
    InvalidInput
        If they were captured on different inputs.
    DuplicateName
        If two have a model of the same id.
    """
    parts = [part for given in (first, *others) for part in given.parts]
    owners: dict[str, Population] = {}
    for part in parts:
        if part.inputs.hash != first.inputs.hash:
            raise InvalidInput(
                f"The populations at {first.location} and {part.location} were captured on "
                "different inputs, so that their states cannot be laid side by side. Capture the "
                "models of one on the inputs of the other."
            )
        for model in part.ids:
            if model in owners:
                raise DuplicateName(
                    f"Both {owners[model].location} and {part.location} have a model {model!r}. "
                    "Capture one of them under another id."
                )
            owners[model] = part
    return first if len(parts) == 1 else _JoinedPopulation(parts, owners)


class _JoinedPopulation(Population):
    """Reads every model where it is."""

    __slots__ = ("_owners", "_parts")

    def __init__(self, parts: list[Population], owners: dict[str, Population]) -> None:
        first = parts[0]
        headers = {model: owner._model(model) for model, owner in owners.items()}
        super().__init__(first._location, first._root, first._inputs, headers)
        self._parts = parts
        self._owners = owners

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._parts, self._owners)

    @property
    def parts(self) -> tuple[Population, ...]:
        return tuple(self._parts)

    def states(
        self, model_id: str, site: str | None = None, *, samples: ArrayLike | None = None
    ) -> NDArray[Any]:
        return self._owner(model_id).states(model_id, site, samples=samples)

    def outputs(self, model_id: str, *, samples: ArrayLike | None = None) -> NDArray[Any]:
        return self._owner(model_id).outputs(model_id, samples=samples)

    def projection(self, model_id: str, site: str | None = None) -> Projection:
        return self._owner(model_id).projection(model_id, site)

    def nbytes(self, model_id: str) -> int:
        return self._owner(model_id).nbytes(model_id)

    def _owner(self, model_id: str) -> Population:
        self._model(model_id)  # raises for an id that nobody has
        return self._owners[model_id]
