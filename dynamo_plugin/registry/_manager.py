"""The registry: one pluggy manager, and what its plugins registered."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from dynamo_plugin.errors import DuplicateName, DynamoError, PluginError, UnknownName, suggest
from dynamo_plugin.registry import _hookspecs
from dynamo_plugin.registry._contract import check_registration, find_hooks
from dynamo_plugin.registry._entry_points import describe, installed_plugins
from dynamo_plugin.registry._hookspecs import HOOKS, KINDS, PROJECT, Attribute, Kind
from dynamo_plugin.registry._plugins import (
    PluginListing,
    PluginRecord,
    Registration,
    list_one,
)
from dynamo_plugin.registry._selection import read_selection

__all__ = ["Registry"]

_logger = logging.getLogger(__name__)

# What plugin code can throw at us; Ctrl-C is the user's, SystemExit a module's bad manners.
_FAULTS = (Exception, SystemExit)


class Registry:
    """The plugins of one pluggy manager and the objects that they offer by name.

    An empty registry has no plugins; `Registry.from_entry_points` loads the installed ones.

    Examples
    --------
    >>> from dynamo_plugin.registry import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def dynamo_register_losses(self, register):
    ...         register("distance", "math:dist", role="hidden")
    >>> registry = Registry()
    >>> registry.register_plugin(Plugin(), name="mine").state
    'active'
    >>> registry.names("loss")
    ('distance',)
    >>> registry.load("loss", "distance")((0.0, 0.0), (3.0, 4.0))
    5.0
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(_hookspecs)
        self._plugins: list[PluginRecord] = []
        self._registrations: dict[tuple[Kind, str], Registration] = {}

    @classmethod
    def from_entry_points(cls, *, plugins: str | Sequence[str] | None = None) -> Registry:
        """Load the plugins that installed distributions announce.

        A plugin that cannot be imported, breaks the hook contract, raises while it registers or
        takes a name that is taken is disabled with its reason, and none of its registrations
        count; the others load. Our own come first, then all others by distribution and name.

        Parameters
        ----------
        plugins
            Entry-point names, as a sequence or separated by commas: these alone are loaded. With
            a leading `-` on each, all but these are loaded. None leaves the choice to the
            environment variable `DYNAMO_PLUGINS`, where the same syntax holds.

        Raises
        ------
        UnknownName
            If the choice names a plugin that is not installed.
        InvalidInput
            If the choice is malformed.
        """
        selection = read_selection(plugins)
        # pluggy's own loader stops at the first broken plugin and silently skips the second of
        # two entry points that share a name, so we walk the entry points ourselves.
        found = installed_plugins()
        selection.check({entry_point.name for entry_point in found})
        registry = cls()
        for entry_point in found:
            if selection.takes(entry_point.name):
                registry._load_entry_point(entry_point)
            else:
                reason = f"{selection.source} leaves it out."
                registry._plugins.append(describe(entry_point, "excluded", reason))
        return registry

    def register_plugin(self, plugin: object, *, name: str) -> PluginRecord:
        """Register a plugin made in this process: a module or an object.

        Parameters
        ----------
        plugin
            What carries the functions marked with `hookimpl`.
        name
            Name of the plugin, for messages and listings; unique in this registry.

        Raises
        ------
        PluginError
            If the plugin breaks the hook contract or raises while it registers.
        DuplicateName
            If the name of the plugin, or a name that it registers, is taken.
        """
        for other in self._plugins:
            if other.name == name:
                way_out = (
                    f"call unregister_plugin({name!r}) first"
                    if other.distribution is None
                    else "leave that one out by the choice of plugins"
                )
                raise DuplicateName(
                    f"There is already a {other.label}. Choose another name, or {way_out}."
                )
        record = PluginRecord(name=name, distribution=None, version=None, state="active")
        self._admit(plugin, record)
        return record

    def unregister_plugin(self, name: str) -> None:
        """Remove a plugin that `register_plugin` added, with all that it registered.

        Raises `UnknownName` if there is none of this name.
        """
        own = {record.name: record for record in self._plugins if record.distribution is None}
        if name not in own:
            raise UnknownName(
                f"No plugin named {name!r} was registered in this process. {suggest(name, own)}"
            )
        record = own[name]
        self._manager.unregister(name=_key(record))
        self._plugins.remove(record)
        self._registrations = {
            key: registration
            for key, registration in self._registrations.items()
            if registration.plugin != record
        }

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the registered names of a kind, in the order in which they were registered.

        Raises `UnknownName` for an unknown kind.
        """
        _check_kind(kind)
        return tuple(name for of_kind, name in self._registrations if of_kind == kind)

    def registration(self, kind: str, name: str) -> Registration:
        """Return what is registered of this kind under this name, without importing it.

        Raises `UnknownName`, naming the nearest known names and the plugins that did not load.
        """
        checked = _check_kind(kind)
        try:
            return self._registrations[checked, name]
        except KeyError:
            known = suggest(name, self.names(kind))
            absent = [
                f" {record.label[0].upper()}{record.label[1:]} is {record.state}: {record.reason}"
                for record in self._plugins
                if record.state != "active"
            ]
            raise UnknownName(
                f"There is no {kind} named {name!r}. {known}{''.join(absent)}"
            ) from None

    def load(self, kind: str, name: str) -> Any:
        """Import and return what is registered of this kind under this name.

        Raises
        ------
        UnknownName
            If there is no such name.
        PluginError
            If the target cannot be imported, does not exist, or cannot be called.
        """
        registration = self.registration(kind, name)
        module, _, path = registration.target.partition(":")
        try:
            target: Any = importlib.import_module(module)
            for part in path.split("."):
                target = getattr(target, part)
        except _FAULTS as error:
            raise PluginError(
                f"{kind} {name!r} of {registration.plugin.label} cannot be imported from "
                f"{registration.target!r}: {_one_line(error)}"
            ) from error
        if not callable(target):
            raise PluginError(
                f"{kind} {name!r} of {registration.plugin.label} must be a class or a function, "
                f"but {registration.target!r} is of type {type(target).__name__}."
            )
        return target

    def registrations(self, kind: str | None = None) -> tuple[Registration, ...]:
        """Return all registrations, or those of one kind, in order of registration.

        Raises `UnknownName` for an unknown kind.
        """
        if kind is not None:
            _check_kind(kind)
        return tuple(
            registration
            for registration in self._registrations.values()
            if kind is None or registration.kind == kind
        )

    def plugins(self) -> tuple[PluginRecord, ...]:
        """Return every plugin that was found: active, disabled or excluded."""
        return tuple(self._plugins)

    def listing(self) -> list[PluginListing]:
        """Return one record per registration, and one per plugin that registered nothing."""
        listing: list[PluginListing] = []
        for record in self._plugins:
            # Identity, as two distributions may bring plugins that are equal in every field.
            own = [item for item in self._registrations.values() if item.plugin is record]
            listing += [list_one(record, item) for item in own] or [list_one(record, None)]
        return listing

    def _load_entry_point(self, entry_point: EntryPoint) -> None:
        record = describe(entry_point, "active")
        try:
            try:
                plugin = entry_point.load()
            except _FAULTS as error:
                raise PluginError(
                    f"{entry_point.value!r} cannot be imported: {_one_line(error)}"
                ) from error
            self._admit(plugin, record)
        except DynamoError as error:
            reason = str(error).removeprefix(f"{record.label}: ")
            self._plugins.append(describe(entry_point, "disabled", reason))
            _logger.warning("%s is disabled: %s", record.label, reason)

    def _admit(self, plugin: object, record: PluginRecord) -> None:
        """Take a plugin in with all that it registers, or raise and leave nothing behind."""
        key = _key(record)
        for name, other in self._manager.list_name_plugin():
            if other is plugin:
                raise PluginError(
                    f"{record.label}: is the same object as the plugin {name!r}, which is loaded. "
                    "Announce it once."
                )
        try:
            hooks = find_hooks(self._manager, plugin, record)
            self._manager.register(plugin, name=key)
            new: dict[tuple[Kind, str], Registration] = {}
            for attribute, hook in hooks:
                self._collect(getattr(plugin, attribute), hook, record, new)
        except _FAULTS as error:
            if self._manager.get_plugin(key) is plugin:
                self._manager.unregister(name=key)
            if isinstance(error, DynamoError):
                raise
            raise PluginError(f"{record.label}: {_one_line(error)}") from error
        self._registrations |= new
        self._plugins.append(record)

    def _collect(
        self,
        function: Any,
        hook: str,
        record: PluginRecord,
        new: dict[tuple[Kind, str], Registration],
    ) -> None:
        """Call one hook of one plugin and add what it registers to `new`."""
        kind = HOOKS[hook]
        label = f"{record.label}: {hook}"
        returned = False

        def register(name: str, target: str, **attributes: Attribute) -> None:
            if returned:
                raise PluginError(
                    f"{label}: register was called for {name!r} after the hook had returned. "
                    "Register everything inside the hook."
                )
            name, target, checked = check_registration(kind, name, target, attributes, label)
            holder = self._registrations.get((kind, name)) or new.get((kind, name))
            if holder is not None:
                raise DuplicateName(
                    f"{label}: the name {name!r} of the {kind} {target!r} is taken by "
                    f"{holder.target!r} of {holder.plugin.label}. Choose another name."
                )
            new[kind, name] = Registration(kind, name, target, record, checked)

        try:
            function(register)
        except (PluginError, DuplicateName):
            raise
        except _FAULTS as error:
            raise PluginError(f"{label} raised {_one_line(error)}") from error
        finally:
            returned = True


def _check_kind(kind: str) -> Kind:
    for known in KINDS:
        if kind == known:
            return known
    raise UnknownName(f"There is no kind of plugin named {kind!r}. {suggest(kind, KINDS)}")


def _key(record: PluginRecord) -> str:
    """Return the name under which pluggy holds the plugin, unique across distributions."""
    return f"{record.distribution or ''}:{record.name}"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
