"""Records of what was found: plugins, what they registered, and the two as one listing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dynamo_plugin.registry._hookspecs import Attribute, Kind

__all__ = ["PluginListing", "PluginRecord", "PluginState", "Registration", "list_one"]

PluginState: TypeAlias = Literal["active", "disabled", "excluded"]
"""`disabled`: faulty, see the reason; `excluded`: left out by choice."""


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plugin, loaded or not."""

    name: str
    """Name of its entry point, or the name it was registered under in this process."""
    distribution: str | None
    """Distribution that brought it; None for a plugin registered in this process."""
    version: str | None
    """Version of the distribution; None where there is none."""
    state: PluginState
    reason: str = ""
    """Why it is not active; empty for an active plugin."""

    @property
    def label(self) -> str:
        """The plugin as messages call it.

        >>> PluginRecord("hooks", "dynamo-plugin", "0.1.0", "active").label
        "plugin 'hooks' (dynamo-plugin 0.1.0)"
        """
        if self.distribution is None:
            return f"plugin {self.name!r} (registered in this process)"
        return f"plugin {self.name!r} ({self.distribution} {self.version or 'of unknown version'})"


@dataclass(frozen=True, slots=True)
class Registration:
    """One object that a plugin offers."""

    kind: Kind
    name: str
    """Name under which users ask for it, unique within its kind."""
    target: str
    """Import string `package.module:Object`."""
    plugin: PluginRecord
    """The plugin that registered it."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """Facts of its kind, for example `role` of a loss."""


@dataclass(frozen=True, slots=True)
class PluginListing:
    """One line of the list of plugins: a registration, or a plugin without any."""

    name: str | None
    """Registered name; None where the plugin registered nothing."""
    kind: Kind | None
    """Kind of the registration; None where the plugin registered nothing."""
    target: str | None
    """Import string of the registered object; None where the plugin registered nothing."""
    attributes: Mapping[str, Attribute]
    """Facts of the registration; empty where the plugin registered nothing."""
    plugin: str
    """Name of the plugin."""
    distribution: str | None
    """Distribution that brought the plugin; None for one registered in this process."""
    version: str | None
    """Version of the distribution; None where there is none."""
    state: PluginState
    """State of the plugin."""
    reason: str
    """Why the plugin is not active; empty for an active one."""


def list_one(record: PluginRecord, registration: Registration | None) -> PluginListing:
    """Return the line of a registration of this plugin, or of the plugin without any."""
    return PluginListing(
        name=None if registration is None else registration.name,
        kind=None if registration is None else registration.kind,
        target=None if registration is None else registration.target,
        attributes={} if registration is None else registration.attributes,
        plugin=record.name,
        distribution=record.distribution,
        version=record.version,
        state=record.state,
        reason=record.reason,
    )
