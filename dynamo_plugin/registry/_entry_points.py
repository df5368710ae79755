"""The entry points by which installed distributions announce plugins."""

from __future__ import annotations

import logging
import re
from importlib.metadata import EntryPoint, entry_points

from dynamo_plugin.registry._hookspecs import PROJECT
from dynamo_plugin.registry._plugins import PluginRecord, PluginState

__all__ = ["describe", "installed_plugins"]

_logger = logging.getLogger(__name__)


def installed_plugins() -> list[EntryPoint]:
    """Return the entry points of all plugins: our own first, then by distribution and name."""
    return sorted(entry_points(group=PROJECT), key=_load_order)


def describe(entry_point: EntryPoint, state: PluginState, reason: str = "") -> PluginRecord:
    """Return the record of a plugin that an entry point announces."""
    distribution, version = _origin(entry_point)
    return PluginRecord(entry_point.name, distribution, version, state, reason)


def _origin(entry_point: EntryPoint) -> tuple[str, str | None]:
    """Return name and version of the distribution; a damaged one must not stop the others."""
    try:
        distribution = entry_point.dist
        if distribution is not None and distribution.name:
            return distribution.name, distribution.version
    except Exception:
        _logger.debug("The metadata behind %r cannot be read.", entry_point, exc_info=True)
    return "unknown distribution", None


def _load_order(entry_point: EntryPoint) -> tuple[bool, str, str]:
    name = re.sub(r"[-_.]+", "-", _origin(entry_point)[0]).lower()
    return name != "dynamo-plugin", name, entry_point.name
