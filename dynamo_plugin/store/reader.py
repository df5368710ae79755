"""Reading a population. What comes back was committed, is whole, and is checked on every read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynamo_plugin.errors import IncompleteCapture, InvalidInput, UnknownName, suggest
from dynamo_plugin.store._block_cache import BlockCache
from dynamo_plugin.store._inputs_arrays import read_header
from dynamo_plugin.store._inputs_reader import InputsReader
from dynamo_plugin.store._location import Location, StoreLike, locate
from dynamo_plugin.store._model_reader import ModelReader
from dynamo_plugin.store._root import ModelHeader, Root, read_models, read_root
from dynamo_plugin.types import OutputSpec, PopulationSpec, TrajectorySpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dynamo_plugin.store.inputs import PopulationInputs
    from dynamo_plugin.store.projections import Projection
    from dynamo_plugin.types import JSON

__all__ = ["Population", "open_population"]


def open_population(store: StoreLike, *, allow_incomplete: bool = False) -> Population:
    """Open a population for reading.

    Opening runs no code from the store and loads nothing but descriptions. Data are read, and
    checked against their commit records, when they are asked for.

    Parameters
    ----------
    store
        A path, an fsspec URL or a Zarr store.
    allow_incomplete
        Leave models that were not captured to the end out instead of refusing.

    Raises
    ------
    StoreNotFound
        There is nothing.
    UnsupportedFormat
        It is no population, or one of another version.
    IncompleteCapture
        A model is incomplete (unless allowed), or no model is complete.
    CorruptBlock
        A description is damaged.
    """
    location = locate(store, create=False)
    root = read_root(location)
    header = read_header(location, root.inputs_hash, version=root.version)
    headers, errors = read_models(location, version=root.version)
    for error in errors.values():
        if not isinstance(error, IncompleteCapture):
            raise error
    complete = {name: header for name, header in headers.items() if header.complete}
    missing = [name for name in root.models or () if name not in complete]
    missing += [name for name in headers if name not in complete and name not in missing]
    # a group without its description has lost its id; known ids are already counted
    missing += [] if root.models is not None else sorted(errors)
    if missing and not allow_incomplete:
        shown = ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise IncompleteCapture(
            f"Expected every model of {location} to be captured to the end; {len(missing)} of "
            f"{len(complete) + len(missing)} are not: {shown}. Capture again with resume=True, "
            "or open with allow_incomplete=True to leave them out."
        )
    if not complete:
        raise IncompleteCapture(
            f"The population at {location} holds no complete model. Capture some into it with "
            "resume=True."
        )
    return Population(location, root, InputsReader(location, header), complete)


class Population:
    """A captured population: shared inputs, and hidden states and outputs of every model.

    Made by `open_population`. Every array that is returned is the caller's own. Rows are flat:
    those of sample i are `offsets[i]:offsets[i + 1]` for what was recorded per step.
    """

    __slots__ = ("_cache", "_inputs", "_location", "_models", "_readers", "_root")

    def __init__(
        self,
        location: Location,
        root: Root,
        inputs: InputsReader,
        models: Mapping[str, ModelHeader],
    ) -> None:
        self._location = location
        self._root = root
        self._inputs = inputs
        self._models = dict(models)
        self._cache = BlockCache()
        self._readers: dict[str, ModelReader] = {}

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        inputs = self._inputs.header
        return (
            f"Population({self.location!r}: {len(self)} models, {inputs.samples} samples, "
            f"{inputs.rows} rows)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Describe it for another process, which reads everything anew."""
        inputs = InputsReader(self._location, self._inputs.header)
        return type(self), (self._location, self._root, inputs, self._models)

    @property
    def location(self) -> str:
        """Where the population lies."""
        return str(self._location)

    @property
    def parts(self) -> tuple[Population, ...]:
        """The populations that this one joins; itself, if it is a single one."""
        return (self,)

    @property
    def config(self) -> dict[str, JSON]:
        """How it was captured."""
        return copy.deepcopy(self._root.config)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the models, in the population's order."""
        return tuple(self._models)

    @property
    def metadata(self) -> pd.DataFrame:
        """What is known about the models: one row per model, indexed by id (`model`)."""
        rows = [copy.deepcopy(header.metadata) for header in self._models.values()]
        # named here, for from_records forgets the columns' order of first appearance
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return pd.DataFrame(rows, index=pd.Index(self.ids, name="model"), columns=columns)

    @property
    def population_spec(self) -> PopulationSpec:
        """What a meta-model family must know to build itself.

        The dtype of an output group is one that holds the outputs of all its models.

        Raises
        ------
        InvalidInput
            Models of one output group differ in the shape or axis of their outputs.
        """
        groups: dict[str, tuple[str, OutputSpec]] = {}
        for name, header in self._models.items():
            output = header.spec.output
            first, seen = groups.setdefault(output.group, (name, output))
            if (output.shape, output.axis) != (seen.shape, seen.axis):
                raise InvalidInput(
                    f"Expected all models of output group {output.group!r} to return the same; "
                    f"{first!r} returns {seen.shape} per {seen.axis}, {name!r} {output.shape} "
                    f"per {output.axis}. Capture them with different output groups."
                )
            dtype = np.promote_types(output.dtype, seen.dtype).name
            groups[output.group] = (
                first,
                OutputSpec(output.group, output.shape, dtype, output.axis),
            )
        return PopulationSpec(
            inputs=self._inputs.header.spec,
            outputs=tuple(groups[group][1] for group in sorted(groups)),
        )

    @property
    def inputs(self) -> PopulationInputs:
        """All inputs, checked against their hash; read once.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            They are not what was written.
        """
        return self._inputs.inputs

    @property
    def inputs_hash(self) -> str:
        """Hash of the inputs, as the population states it: nothing is read."""
        return self._root.inputs_hash

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(sample + 1,): rows of sample i are offsets[i]:offsets[i + 1]; read-only.

        Raises
        ------
        IncompleteCapture, CorruptBlock
            They are not what was written.
        """
        return self._inputs.offsets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sample,): number of steps of every sample."""
        return self._inputs.lengths

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Ids of the samples."""
        return self._inputs.sample_ids

    def spec(self, model_id: str) -> TrajectorySpec:
        """Return what was recorded of a model.

        Raises
        ------
        UnknownName
            There is no such model.
        """
        return self._model(model_id).spec

    def sites(self, model_id: str) -> tuple[str, ...]:
        """Return the sites of a model, in the order in which the network computes them.

        Raises
        ------
        UnknownName
            There is no such model.
        """
        return tuple(site.name for site in self.spec(model_id).sites)

    def output_group(self, model_id: str) -> str:
        """Return the output group of a model.

        Raises
        ------
        UnknownName
            There is no such model.
        """
        return self.spec(model_id).output.group

    def model_hash(self, model_id: str) -> str:
        """Return the hash of a model's class and parameters.

        Raises
        ------
        UnknownName
            There is no such model.
        """
        return self._model(model_id).model_hash

    def nbytes(self, model_id: str) -> int:
        """Return how many bytes the states and outputs of a model take in memory.

        Raises
        ------
        UnknownName
            There is no such model.
        """
        return self._reader(model_id).nbytes

    def states(
        self, model_id: str, site: str | None = None, *, samples: ArrayLike | None = None
    ) -> NDArray[Any]:
        """Return hidden states of a model.

        Parameters
        ----------
        model_id
            Which model.
        site
            Which site; may be left out where the model has only one.
        samples
            Sample numbers, in any order, repeats allowed; all samples by default. Only blocks
            that hold some of them are read.

        Returns
        -------
        ndarray
            (row, *row shape): the rows of the samples one after the other, in the order asked.
            Of sites with one row per sample, (sample, *row shape). Where only every k-th step
            was stored, sample i has `ceil(lengths[i] / k)` rows.

        Raises
        ------
        UnknownName
            There is no such model or site.
        InvalidInput
            No site was named and the model has several, or a sample number is wrong.
        IncompleteCapture, CorruptBlock
            A block is missing or damaged.
        """
        return self._reader(model_id).states(site, samples)

    def projection(self, model_id: str, site: str | None = None) -> Projection:
        """Return what the states of a site were projected by, so that they can be mapped back.

        Parameters
        ----------
        model_id, site
            As in `states`.

        Returns
        -------
        Projection
            A new one with each call; `restore` maps stored rows back.

        Raises
        ------
        UnknownName
            There is no such model or site.
        InvalidInput
            The states of this site were not projected, or no site was named and the model has
            several.
        IncompleteCapture, CorruptBlock
            A block is missing or damaged.
        """
        return self._reader(model_id).projection(site)

    def outputs(self, model_id: str, *, samples: ArrayLike | None = None) -> NDArray[Any]:
        """Return outputs of a model.

        Parameters
        ----------
        model_id
            Which model.
        samples
            As in `states`.

        Returns
        -------
        ndarray
            (sample, *row shape), or (row, *row shape) for outputs per step.

        Raises
        ------
        UnknownName
            There is no such model.
        InvalidInput
            A sample number is wrong.
        IncompleteCapture, CorruptBlock
            A block is missing or damaged.
        """
        return self._reader(model_id).outputs(samples)

    def _model(self, model_id: str) -> ModelHeader:
        if model_id not in self._models:
            raise UnknownName(
                f"{self.location} holds no model {model_id!r}. {suggest(model_id, self._models)}"
            )
        return self._models[model_id]

    def _reader(self, model_id: str) -> ModelReader:
        header = self._model(model_id)
        if model_id not in self._readers:
            self._readers[model_id] = ModelReader(
                self._location, self._root, header, self._inputs, self._cache
            )
        return self._readers[model_id]
