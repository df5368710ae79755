"""What a command is told of a population."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo_plugin.store import Population

__all__ = ["opened_population"]


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
