"""What a command is told of a population, or of an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.store import Population

__all__ = ["opened_networks", "opened_population"]


def opened_population(named: str, *, allow_incomplete: bool) -> Population:
    """Return a stored population, or the one that a TOML file describes, not to be stored.

    Parameters
    ----------
    named
        Path or fsspec URL of a store, or path of a file that ends in .toml.
    allow_incomplete
        Whether models whose capture stopped are left out.
    """
    if named.endswith(".toml"):
        from dynamo_plugin.recording.configured import live_from_config

        return live_from_config(Path(named))
    from dynamo_plugin.store import open_population

    return open_population(named, allow_incomplete=allow_incomplete)


def opened_networks(named: str, *, population: str | None) -> Population | ModelEmbedding:
    """Return the embedding in a folder, or else a population, without incomplete models.

    Parameters
    ----------
    named
        Folder of an embedding, or what `opened_population` takes.
    population
        Where the population of an embedding is, if it is no longer where it was.

    Raises
    ------
    InvalidInput
        If a population is named twice.
    """
    from dynamo_plugin.embedding.saving import DOCUMENT

    if not (Path(named) / DOCUMENT).is_file():
        if population is not None:
            raise InvalidInput(
                f"--population says where that of an embedding is; {named} is no embedding."
            )
        return opened_population(named, allow_incomplete=True)
    from dynamo_plugin.embedding import load_embedding

    opened = None if population is None else opened_population(population, allow_incomplete=True)
    return load_embedding(named, population=opened)
