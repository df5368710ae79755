"""Plugins: what they may add, how they are found, and how they are asked for by name.

A plugin is a module, named in the entry-point group `dynamo_plugin` of its distribution, whose
functions marked with `hookimpl` register import strings::

    from dynamo_plugin.registry import Register, hookimpl

    @hookimpl
    def dynamo_register_losses(register: Register) -> None:
        register("huber", "my_package.losses:huber", role="hidden", summary="Huber loss")

The classes to derive from are in `dynamo_plugin.registry.interfaces`, which imports torch; this
package does not.
"""

from __future__ import annotations

from dynamo_plugin.registry._hookspecs import KINDS, Kind, Register, hookimpl
from dynamo_plugin.registry._manager import Registry
from dynamo_plugin.registry._plugins import PluginListing, PluginRecord, Registration
from dynamo_plugin.registry._process import get_registry, plugins, select_plugins

__all__ = [
    "KINDS",
    "Kind",
    "PluginListing",
    "PluginRecord",
    "Register",
    "Registration",
    "Registry",
    "get_registry",
    "hookimpl",
    "plugins",
    "select_plugins",
]
