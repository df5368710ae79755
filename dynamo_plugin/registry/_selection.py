"""Which plugins are to be loaded, by argument or by environment variable."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

__all__ = ["VARIABLE", "Selection", "read_selection"]

VARIABLE: Final = "DYNAMO_PLUGINS"
"""Environment variable that chooses plugins where the argument does not."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice of plugins by entry-point name."""

    only: frozenset[str]
    """If not empty, these alone are loaded."""
    without: frozenset[str]
    """If not empty, all but these are loaded."""
    source: str
    """Where the choice was made, for messages; empty where none was."""

    def takes(self, name: str) -> bool:
        """Return whether the plugin of this name is to be loaded.

        >>> Selection(frozenset(), frozenset({"hooks"}), "a test").takes("builtin")
        True
        """
        return name not in self.without and (not self.only or name in self.only)

    def check(self, known: Collection[str]) -> None:
        """Raise `UnknownName` if the choice names a plugin that is not installed."""
        for name in sorted(self.only | self.without):
            if name not in known:
                raise UnknownName(
                    f"{self.source} names the plugin {name!r}, which is not installed. "
                    f"{suggest(name, known)}"
                )


def read_selection(plugins: str | Sequence[str] | None) -> Selection:
    """Return the choice made by the argument, else by `DYNAMO_PLUGINS`, else all plugins.

    Parameters
    ----------
    plugins
        Entry-point names, as a sequence or separated by commas: these alone are loaded. With a
        leading `-` on each, all but these are loaded. None leaves the choice to the variable,
        where an empty value means no choice.

    Raises
    ------
    InvalidInput
        If no name is given, or some names have a leading `-` and others do not.
    """
    if plugins is None:
        source, given = f"The environment variable {VARIABLE}", os.environ.get(VARIABLE, "")
        if not given.strip():
            return Selection(frozenset(), frozenset(), "")
        names = given.split(",")
    else:
        source = "The choice of plugins"
        names = plugins.split(",") if isinstance(plugins, str) else list(plugins)
    names = [name.strip() for name in names]
    without = frozenset(name[1:].strip() for name in names if name.startswith("-"))
    only = frozenset(name for name in names if not name.startswith("-"))
    if not names or "" in only | without:
        raise InvalidInput(
            f"{source} has an empty name in {','.join(names)!r}. Give names separated by commas, "
            "'builtin,hooks', or with a leading '-' those to leave out, '-hooks'."
        )
    if only and without:
        raise InvalidInput(
            f"{source} both names plugins to load ({', '.join(sorted(only))}) and plugins to leave "
            f"out ({', '.join(sorted(without))}). Give one or the other."
        )
    return Selection(only, without, source)
