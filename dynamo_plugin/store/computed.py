"""A population of which nothing is stored: states are computed when they are asked for."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store._inputs_reader import HeldInputs
from dynamo_plugin.store._location import locate
from dynamo_plugin.store._model_reader import find_site
from dynamo_plugin.store._root import ModelHeader, Root
from dynamo_plugin.store.inputs import sample_indices
from dynamo_plugin.store.reader import Population
from dynamo_plugin.types import JSON, OutputSpec, SiteSpec, TrajectorySpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.store.projections import Projection

__all__ = ["ComputedModel", "ComputedPopulation"]

KEPT_BYTES = 512 * 2**20
"""Most states that are kept in case another site of the same model and samples is asked for."""


@dataclass(frozen=True, slots=True)
class ComputedModel:
    """What is known of a model before it is run."""

    spec: TrajectorySpec
    """What it does."""
    metadata: Mapping[str, JSON]
    """What the user said about it."""
    model_hash: str
    """Of its class and parameters."""


class ComputedPopulation(Population, abc.ABC):
    """A population whose subclass computes what others read.

    Parameters
    ----------
    name
        Takes the place of a location.
    inputs
        What every model is shown.
    models
        By id.
    config
        How states are computed.
    """

    __slots__ = ("_kept", "_lock", "_name")

    def __init__(
        self,
        name: str,
        inputs: PopulationInputs,
        models: Mapping[str, ComputedModel],
        config: dict[str, JSON],
    ) -> None:
        headers = {
            model_id: ModelHeader(
                model_id, index, model.spec, dict(model.metadata), model.model_hash, complete=True
            )
            for index, (model_id, model) in enumerate(models.items())
        }
        root = Root(config, inputs.hash, tuple(models))
        super().__init__(locate({}, create=True), root, HeldInputs(inputs), headers)
        self._name = name
        self._kept: dict[tuple[str, bytes], dict[str, NDArray[Any]]] = {}
        self._lock = Lock()

    def __reduce__(self) -> NoReturn:
        """Raise `InvalidInput`: networks stay in the process that runs them."""
        raise InvalidInput(
            "Networks that are run when their states are needed stay in their process. Use threads "
            "(workers=...), or capture the population for processes to read."
        )

    @abc.abstractmethod
    def compute(
        self, model_id: str, samples: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """Return what a model does on some samples, in the order asked, repeats allowed.

        Returns
        -------
        tuple
            Site to (row, *row shape) states, and (sample or row, *row shape) outputs.
        """

    @property
    def location(self) -> str:
        """What takes the place of a location."""
        return self._name

    def nbytes(self, model_id: str) -> int:
        """See `Population.nbytes`."""
        spec, total = self.spec(model_id), 0
        arrays: list[SiteSpec | OutputSpec] = [*spec.sites, spec.output]
        for each in arrays:
            rows = len(self.sample_ids) if each.axis == "sample" else int(self.offsets[-1])
            total += rows * prod(each.shape) * np.dtype(each.dtype).itemsize
        return total

    def states(
        self, model_id: str, site: str | None = None, *, samples: ArrayLike | None = None
    ) -> NDArray[Any]:
        """See `Population.states`."""
        chosen = find_site(model_id, self.spec(model_id), site)
        return self._computed(model_id, samples)[chosen.name].copy()

    def outputs(self, model_id: str, *, samples: ArrayLike | None = None) -> NDArray[Any]:
        """See `Population.outputs`."""
        self._model(model_id)
        return self._computed(model_id, samples)[""].copy()

    def projection(self, model_id: str, site: str | None = None) -> Projection:
        """Raise `InvalidInput`: nothing is projected."""
        find_site(model_id, self.spec(model_id), site)
        raise InvalidInput("States that are computed when they are asked for are not projected.")

    def _computed(self, model_id: str, samples: ArrayLike | None) -> dict[str, NDArray[Any]]:
        """Return states by site, and outputs under the empty name."""
        count = len(self.sample_ids)
        chosen = np.arange(count) if samples is None else sample_indices(samples, count)
        key = (model_id, chosen.tobytes())
        with self._lock:
            found = self._kept.pop(key, None)
            if found is None:
                states, outputs = self.compute(model_id, chosen)
                found = {**states, "": outputs}
            self._kept[key] = found  # the last one is the last to be dropped
            sizes = [sum(rows.nbytes for rows in kept.values()) for kept in self._kept.values()]
            while sum(sizes) > KEPT_BYTES:
                self._kept.pop(next(iter(self._kept)))
                sizes.pop(0)
        return found
