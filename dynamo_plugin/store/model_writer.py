"""Writing one model of a population."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dynamo_plugin.errors import IncompleteCapture, UnknownName, suggest
from dynamo_plugin.store._array_writer import ArrayWriter
from dynamo_plugin.store._documents import group_document
from dynamo_plugin.store._root import ModelHeader, write_model
from dynamo_plugin.store._specs import model_path, output_layout, site_layouts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from dynamo_plugin.store._location import Location

__all__ = ["ModelWriter"]


class ModelWriter:
    """Takes the states and outputs of one model, sample by sample in order.

    Rows may come in any portions. Whole blocks are written as they fill; each counts from the
    moment its commit record is there.
    """

    __slots__ = ("_header", "_location", "_output", "_sites")

    def __init__(
        self,
        location: Location,
        header: ModelHeader,
        *,
        samples: int,
        rows: int,
        inputs_hash: str,
    ) -> None:
        self._location = location
        self._header = header
        path = model_path(header.id)
        write_model(location, header)
        for folder in ("states", "outputs"):
            location.set(f"{path}/{folder}/zarr.json", group_document())
        self._sites = {
            name: ArrayWriter(
                location, layout, model_hash=header.model_hash, inputs_hash=inputs_hash
            )
            for name, layout in site_layouts(
                header.id, header.spec, samples=samples, rows=rows
            ).items()
        }
        self._output = ArrayWriter(
            location,
            output_layout(header.id, header.spec, samples=samples, rows=rows),
            model_hash=header.model_hash,
            inputs_hash=inputs_hash,
        )

    def append_states(self, site: str, rows: ArrayLike) -> None:
        """Append rows of one site, (rows, *row shape), of the declared dtype.

        Raises
        ------
        UnknownName
            The spec has no such site.
        InvalidInput
            Their shape or dtype is not the declared one, or they are too many.
        """
        if site not in self._sites:
            raise UnknownName(
                f"Model {self._header.id!r} has no site {site!r}. {suggest(site, self._sites)}"
            )
        self._sites[site].append(np.asarray(rows), self._where(site))

    def append_outputs(self, rows: ArrayLike) -> None:
        """Append rows of the output, (rows, *row shape), of the declared dtype.

        Raises
        ------
        InvalidInput
            Their shape or dtype is not the declared one, or they are too many.
        """
        self._output.append(np.asarray(rows), f"the output of model {self._header.id!r}")

    def _where(self, site: str) -> str:
        return f"site {site!r} of model {self._header.id!r}"

    def finish(self) -> None:
        """Declare the model complete.

        Raises
        ------
        IncompleteCapture
            Rows of a site or of the output are missing.
        """
        arrays = {self._where(site): writer for site, writer in self._sites.items()}
        arrays[f"the output of model {self._header.id!r}"] = self._output
        for where, writer in arrays.items():
            if writer.received < writer.expected:
                raise IncompleteCapture(
                    f"Expected {writer.expected} rows of {where}, got {writer.received}. "
                    "Append every sample before finish()."
                )
        write_model(self._location, replace(self._header, complete=True))
