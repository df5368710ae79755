"""The registry of this process, loaded on first use."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from dynamo_plugin.errors import PluginError
from dynamo_plugin.registry._manager import Registry
from dynamo_plugin.registry._plugins import PluginListing
from dynamo_plugin.registry._selection import VARIABLE

__all__ = ["get_registry", "plugins", "select_plugins"]

_lock = threading.RLock()
_current: Registry | None = None
_loading = False


def get_registry() -> Registry:
    """Return the registry of this process; the first call loads the installed plugins.

    The environment variable `DYNAMO_PLUGINS` chooses what is loaded, as in
    `Registry.from_entry_points`.

    Raises
    ------
    UnknownName, InvalidInput
        If the environment variable names a plugin that is not installed, or is malformed.
    PluginError
        If a plugin asks for the registry while it is being loaded.
    """
    with _lock:
        return _load(None) if _current is None else _current


def select_plugins(plugins: str | Sequence[str]) -> Registry:
    """Load the registry of this process anew, with a choice of plugins, and return it.

    The choice is left in the environment variable `DYNAMO_PLUGINS`, so that worker processes
    follow it. Plugins registered in this process are forgotten.

    Parameters
    ----------
    plugins
        Entry-point names, as a sequence or separated by commas: these alone are loaded. With a
        leading `-` on each, all but these are loaded.

    Raises
    ------
    UnknownName, InvalidInput
        If the choice names a plugin that is not installed, or is malformed; nothing changes then.
    """
    with _lock:
        registry = _load(plugins)
        os.environ[VARIABLE] = plugins if isinstance(plugins, str) else ",".join(plugins)
        return registry


def plugins() -> list[PluginListing]:
    """Return what plugins offer: one record per registration, none of them imported.

    A plugin that is disabled or excluded, or registered nothing, has one record without a name.

    Examples
    --------
    >>> sorted({record.kind for record in plugins() if record.plugin == "builtin"})
    ['analysis', 'loss', 'meta_model', 'metric']
    """
    return get_registry().listing()


def _load(choice: str | Sequence[str] | None) -> Registry:
    global _current, _loading
    if _loading:
        raise PluginError(
            "A plugin asked for the registry while plugins were being loaded. Ask for it where it "
            "is used, not where a plugin is imported or registers."
        )
    _loading = True
    try:
        _current = Registry.from_entry_points(plugins=choice)
    finally:
        _loading = False
    return _current
