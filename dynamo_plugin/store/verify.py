"""Checking every byte of a population."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import pandas as pd
from tqdm import tqdm

from dynamo_plugin.errors import (
    CorruptBlock,
    IncompleteCapture,
    StoreError,
    StoreNotFound,
    UnsupportedFormat,
)
from dynamo_plugin.store._array_reader import ArrayReader
from dynamo_plugin.store._blocks import Identity
from dynamo_plugin.store._documents import check_group
from dynamo_plugin.store._inputs_arrays import InputsHeader, input_reader, read_header, read_inputs
from dynamo_plugin.store._inputs_reader import InputsReader
from dynamo_plugin.store._keys import path_key
from dynamo_plugin.store._location import Location, StoreLike, locate
from dynamo_plugin.store._plan import reduction_name
from dynamo_plugin.store._root import ModelHeader, Root, read_models, read_root
from dynamo_plugin.store._specs import (
    Sizes,
    model_path,
    output_layout,
    reduction_layouts,
    site_layouts,
)
from dynamo_plugin.store._strays import block_number, strays

if TYPE_CHECKING:
    from dynamo_plugin.types import JSON

__all__ = ["Problem", "ProblemKind", "VerifyReport", "verify_population"]

ProblemKind: TypeAlias = Literal["incomplete", "damaged", "format", "unexpected", "unreadable"]
"""`incomplete`: never committed. `damaged`: not what was committed. `format`: not as documented.
`unexpected`: a block that belongs to nothing. `unreadable`: the storage itself failed."""

_NAMED = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a population."""

    model: str | None
    """Id of the model, its key where the id is lost, or None for what all models share."""
    array: str | None
    """Key of the array relative to the population, if one array is meant."""
    block: int | None
    """Number of the block, if one block is meant."""
    kind: ProblemKind
    """What sort of problem."""
    message: str
    """What was expected, what came, how to mend it."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify_population` found."""

    location: str
    """Which population."""
    models: int
    """Models whose description can be read, complete or not."""
    blocks: int
    """Blocks that are as committed."""
    bytes: int
    """Bytes in these blocks."""
    problems: tuple[Problem, ...]
    """Everything that is wrong."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per problem: model, array, block, kind, message."""
        frame = pd.DataFrame(
            [asdict(problem) for problem in self.problems], columns=list(Problem.__slots__)
        )
        return frame.astype({"block": "Int64"})

    def summary(self) -> dict[str, JSON]:
        """Return the whole report, ready for JSON."""
        return {
            "location": self.location,
            "ok": self.ok,
            "models": self.models,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "problems": [asdict(problem) for problem in self.problems],
        }


def verify_population(store: StoreLike, *, progress: bool = False) -> VerifyReport:
    """Check a whole population: every description, every commit record, every byte.

    Damage never raises; it is what the report is for. Nothing is written.

    Parameters
    ----------
    store
        A path, an fsspec URL or a Zarr store.
    progress
        Show a bar on standard error.

    Raises
    ------
    StoreNotFound
        There is nothing.
    UnsupportedFormat
        It is no population, or one of another version.
    """
    location = locate(store, create=False)
    verifier = _Verifier(location)
    try:
        root = read_root(location)
    except (StoreNotFound, UnsupportedFormat):
        raise
    except StoreError as error:  # without the root nothing else can be judged
        verifier.note(error)
        return verifier.report(models=0)
    try:
        headers, errors = read_models(location, version=root.version)
    except StoreError as error:  # the storage failed, not a description
        verifier.note(error)
        return verifier.report(models=0)
    verifier.attempt(lambda: check_group(location, "models"))
    for key, fault in errors.items():
        verifier.note(fault, model=key)
    for name in root.models or ():
        if name not in headers:
            verifier.note(
                IncompleteCapture(
                    f"Expected model {name!r}, which was never captured. "
                    "Capture again with resume=True."
                ),
                model=name,
            )
    verifier.check(root, headers, progress=progress)
    return verifier.report(models=len(headers))


@dataclass(slots=True)
class _Verifier:
    """Collects what is right and what is wrong."""

    location: Location
    problems: list[Problem] = field(default_factory=list)
    blocks: int = 0
    bytes: int = 0

    def report(self, *, models: int) -> VerifyReport:
        return VerifyReport(
            str(self.location), models, self.blocks, self.bytes, tuple(self.problems)
        )

    def note(
        self,
        error: StoreError,
        *,
        model: str | None = None,
        array: str | None = None,
        block: int | None = None,
    ) -> None:
        kind: ProblemKind = "unreadable"
        if isinstance(error, IncompleteCapture):
            kind = "incomplete"
        elif isinstance(error, CorruptBlock):
            kind = "damaged"
        elif isinstance(error, UnsupportedFormat):
            kind = "format"
        self.problems.append(Problem(model, array, block, kind, str(error)))

    def attempt(
        self, check: Callable[[], object], *, model: str | None = None, array: str | None = None
    ) -> None:
        """Run a check and note what it raises."""
        try:
            check()
        except StoreError as error:
            self.note(error, model=model, array=array)

    def check(self, root: Root, headers: dict[str, ModelHeader], *, progress: bool) -> None:
        try:
            header = read_header(self.location, root.inputs_hash, version=root.version)
        except StoreError as error:  # without it no array's length is known
            self.note(error)
            return
        arrays: list[tuple[ArrayReader, ModelHeader | None]] = [*self._input_arrays(header)]
        inputs = InputsReader(self.location, header)
        for model in headers.values():
            try:
                arrays += self._model_arrays(model, inputs, root)
            except StoreError as error:  # of the offsets, without which no array is judged
                self.note(error, model=model.id)
        total = sum(reader.blocks.count for reader, _ in arrays)
        with tqdm(total=total, unit="block", file=sys.stderr, disable=not progress) as bar:
            for reader, owner in arrays:
                self.attempt(
                    partial(self._check_array, reader, owner, on_block=bar.update),
                    model=None if owner is None else owner.id,
                    array=reader.layout.path,
                )
        if not any(problem.array in _paths(header) for problem in self.problems):
            # every block of the inputs is whole; now whether they agree with each other
            self.attempt(lambda: read_inputs(self.location, header))

    def _input_arrays(self, header: InputsHeader) -> Iterator[tuple[ArrayReader, None]]:
        for name, layout in header.layouts.items():
            try:
                yield input_reader(self.location, header, name), None
            except StoreError as error:
                self.note(error, array=layout.path)

    def _model_arrays(
        self, model: ModelHeader, inputs: InputsReader, root: Root
    ) -> Iterator[tuple[ArrayReader, ModelHeader]]:
        if not model.complete:
            self.note(
                IncompleteCapture(
                    f"Model {model.id!r} was not captured to the end. "
                    "Capture again with resume=True."
                ),
                model=model.id,
            )
        sizes = Sizes(inputs.header.samples, inputs.count_rows, root.version)
        reductions = reduction_layouts(model.id, model.spec, sizes)
        folders = ["states", "outputs"]
        if reductions:
            folders += ["reductions", *(f"reductions/{path_key(site)}" for site in reductions)]
        for folder in folders if model.complete else ():
            path = f"{model_path(model.id)}/{folder}"
            self.attempt(partial(check_group, self.location, path), model=model.id)
        identity = Identity(root.inputs_hash, model.model_hash, root.config_hash)
        layouts = {
            f"site {site!r} of model {model.id!r}": layout
            for site, layout in site_layouts(model.id, model.spec, sizes).items()
        }
        output = output_layout(model.id, model.spec, sizes)
        layouts[f"the output of model {model.id!r}"] = output
        for site, parts in reductions.items():
            layouts |= {reduction_name(name, site, model.id): parts[name] for name in parts}
        for where, layout in layouts.items():
            try:
                if not model.complete and self.location.get(f"{layout.path}/zarr.json") is None:
                    continue  # not begun: said already
                yield ArrayReader(self.location, layout, where, identity), model
            except StoreError as error:
                self.note(error, model=model.id, array=layout.path)

    def _check_array(
        self, reader: ArrayReader, model: ModelHeader | None, *, on_block: Callable[[], object]
    ) -> None:
        path, blocks = reader.layout.path, reader.blocks.count
        name = None if model is None else model.id
        names = self.location.children(f"{path}/commits")
        numbers = {block_number(n.removesuffix(".json")) for n in names if n.endswith(".json")}
        records = {number for number in numbers if number is not None and number < blocks}
        for block in sorted(records):
            try:
                for _, data in reader.fetch([block]):
                    self.blocks += 1
                    self.bytes += data.size
            except StoreError as error:
                self.note(error, model=name, array=path, block=block)
            on_block()
        if model is None or model.complete:  # what another model lacks was said once
            self._note_missing(reader, name, records)
        for key in strays(reader.blocks):
            message = (
                f"Expected blocks 0 to {blocks - 1}, found {key}, which belongs to none of them. "
                "It is never read; delete it, or have dynamo-plugin repair do so."
            )
            self.problems.append(Problem(name, path, None, "unexpected", message))

    def _note_missing(self, reader: ArrayReader, model: str | None, committed: set[int]) -> None:
        """Name the blocks without a record, the first ones singly: their number is unchecked."""
        blocks = reader.blocks.count
        missing = blocks - len(committed)
        absent = (block for block in range(blocks) if block not in committed)
        for block in itertools.islice(absent, _NAMED):
            try:
                next(reader.fetch([block]))
            except StoreError as error:
                self.note(error, model=model, array=reader.layout.path, block=block)
        if missing > _NAMED:
            message = f"{missing - _NAMED} more blocks of {reader.layout.path} were not committed."
            self.problems.append(Problem(model, reader.layout.path, None, "incomplete", message))


def _paths(header: InputsHeader) -> set[str | None]:
    return {layout.path for layout in header.layouts.values()}
