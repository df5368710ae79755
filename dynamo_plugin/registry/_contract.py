"""What a plugin and its registrations must look like; messages say what to write instead."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

import pluggy

from dynamo_plugin.errors import PluginError, suggest
from dynamo_plugin.registry._hookspecs import HOOKS, Attribute, Kind
from dynamo_plugin.registry._plugins import PluginRecord

__all__ = ["check_registration", "find_hooks"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LOSS_ROLES = ("hidden", "output")


def find_hooks(
    manager: pluggy.PluginManager, plugin: object, record: PluginRecord
) -> list[tuple[str, str]]:
    """Return (attribute, hook) of every hook the plugin implements, in order of the hook specs.

    Raises
    ------
    PluginError
        If a function looks like a hook and is none: not marked, misspelled, of another signature
        or a wrapper.
    """
    found: list[tuple[str, str]] = []
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            if attribute.startswith("dynamo_register_") and callable(
                inspect.getattr_static(plugin, attribute, None)
            ):
                raise PluginError(
                    f"{record.label}: {attribute} is not marked as a hook. Decorate it with "
                    "@hookimpl from dynamo_plugin.registry."
                )
            continue
        hook = options.get("specname") or attribute
        if hook not in HOOKS:
            if options.get("optionalhook"):  # the author says that a release may lack this hook
                continue
            raise PluginError(f"{record.label}: there is no hook {hook!r}. {suggest(hook, HOOKS)}")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(
                f"{record.label}: {hook} is marked as a wrapper, which registration hooks do not "
                "take. Use a plain @hookimpl."
            )
        _check_signature(getattr(plugin, attribute), hook, record)
        found.append((attribute, hook))
    order = list(HOOKS)
    return sorted(found, key=lambda pair: order.index(pair[1]))


def _check_signature(function: object, hook: str, record: PluginRecord) -> None:
    expected = f"def {hook}(register)"
    signature = inspect.signature(function)  # type: ignore[arg-type]
    required = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
    ]
    accepted = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    if [parameter.name for parameter in required] != ["register"] or (
        required[0].kind not in accepted
    ):
        raise PluginError(
            f"{record.label}: {hook} has the signature {signature}; expected `{expected}`."
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PluginError(
            f"{record.label}: {hook} is a generator or a coroutine, whose body would never run; "
            f"expected a plain function `{expected}`."
        )


def check_registration(
    kind: Kind, name: object, target: object, attributes: Mapping[str, object], label: str
) -> tuple[str, str, dict[str, Attribute]]:
    """Return the arguments of `register`, checked.

    Raises
    ------
    PluginError
        If the name, the target or an attribute is malformed.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(
            f"{label}: the name of the {kind} must be a string of letters, digits, '_', '-' and "
            f"'.' that begins with a letter or a digit, not {name!r}."
        )
    if not isinstance(target, str) or not _is_import_string(target):
        raise PluginError(
            f"{label}: the target of {kind} {name!r} must be an import string such as "
            f"'package.module:Object', not {target!r}."
        )
    checked: dict[str, Attribute] = {}
    for key, value in attributes.items():
        if not isinstance(value, str | int | float | bool):
            raise PluginError(
                f"{label}: attribute {key!r} of {kind} {name!r} must be a string, a number or a "
                f"boolean, not {type(value).__name__}."
            )
        checked[key] = value
    if kind == "loss" and checked.get("role") not in _LOSS_ROLES:
        raise PluginError(
            f"{label}: loss {name!r} must say what it compares, role='hidden' or role='output'; "
            f"role is {checked.get('role')!r}."
        )
    summary = checked.get("summary", "")
    if not isinstance(summary, str) or "\n" in summary:
        raise PluginError(
            f"{label}: the summary of {kind} {name!r} must be one line of text, not {summary!r}."
        )
    return name, target, checked


def _is_import_string(target: str) -> bool:
    module, colon, path = target.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (module + "." + path).split("."))
