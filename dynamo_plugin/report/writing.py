"""Writes the report of a model embedding."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, StoreExists, StoreNotFound, UnknownName, suggest
from dynamo_plugin.registry.interfaces import AnalysisResult
from dynamo_plugin.report._findings import find
from dynamo_plugin.report._page import build_page
from dynamo_plugin.report._results_section import check_results

__all__ = ["write_report"]


def write_report(
    embedding: ModelEmbedding,
    path: str | os.PathLike[str],
    *,
    labels: str | None = None,
    results: Sequence[AnalysisResult] = (),
    overwrite: bool = False,
) -> Path:
    """Write one HTML file that says what was run and what came of it.

    The file holds all that it shows, Plotly's script among it, and asks for nothing over the
    network. It has the fidelity of every emulation on held-out inputs, the embedding in its first
    two principal components, training curves, clusters against every metadata column that sorts
    the models into groups, what each column explains of the thetas, averages where there are
    targets, and the distances between thetas. What does not apply says why.

    Parameters
    ----------
    embedding
        Its population is read.
    path
        The file to write. It appears whole or not at all.
    labels
        Metadata column that models are coloured and averaged by; by default the first that has
        groups.
    results
        Results of further analyses, a plugin's too. Each gets a section with its method, options
        and seeds, its plot, and the first rows of its table.
    overwrite
        Whether a file that is there may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StoreExists
        If there is a file and `overwrite` is off, or a folder.
    StoreNotFound
        If the folder of the file does not exist, or the population is no longer there.
    UnknownName
        If there is no such metadata column.
    InvalidInput
        If the embedding or a result is none.
    """
    if not isinstance(embedding, ModelEmbedding):
        raise InvalidInput(
            f"Expected a ModelEmbedding, got {type(embedding).__name__}. Open a saved one with "
            "dynamo_plugin.load_embedding(path)."
        )
    target = Path(path)
    _check_target(target, overwrite=overwrite)
    if labels is not None and labels not in embedding.metadata.columns:
        known = [str(column) for column in embedding.metadata.columns]
        raise UnknownName(f"The metadata have no column {labels!r}. {suggest(labels, known)}")
    check_results(results)
    page = build_page(find(embedding, labels=labels, results=results))
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        # Half of a surrogate pair, which a name may hold, has no UTF-8; a reference has.
        partial.write_bytes(page.encode("utf-8", errors="xmlcharrefreplace"))
        if overwrite:
            partial.replace(target)
        else:
            _check_target(target, overwrite=False)
            partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.is_dir():
        raise StoreExists(f"{target} is a folder. Name a file in it, such as report.html.")
    if target.exists() and not overwrite:
        raise StoreExists(
            f"{target} exists. Choose another file, or replace it with overwrite=True "
            "(--overwrite)."
        )
    if not target.absolute().parent.is_dir():
        raise StoreNotFound(
            f"There is no folder {target.parent} to write {target.name} into. Make it first."
        )
