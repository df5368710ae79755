"""The hooks a plugin may implement, and the marker that says it does."""

from __future__ import annotations

from typing import Final, Literal, Protocol, TypeAlias, get_args

import pluggy

__all__ = ["HOOKS", "KINDS", "PROJECT", "Attribute", "Kind", "Register", "hookimpl"]

PROJECT: Final = "dynamo_plugin"
"""Name of the pluggy project, and of the entry-point group that plugins use."""

Kind: TypeAlias = Literal["adapter", "meta_model", "loss", "metric", "analysis", "exporter"]
"""What a plugin can add."""

Attribute: TypeAlias = str | int | float | bool
"""A fact about a registration: plain, so that it can be listed without importing the target."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorator that marks a function as the implementation of the hook it is named after."""

_hookspec = pluggy.HookspecMarker(PROJECT)


class Register(Protocol):
    """The callback that a hook receives."""

    def __call__(self, name: str, target: str, **attributes: Attribute) -> None:
        """Register one object.

        Parameters
        ----------
        name
            What users ask for: letters, digits, `_`, `-` and `.`. Unique within its kind.
        target
            Import string `package.module:Object`. It is imported on first use, not before.
        **attributes
            Facts kept for listing and selection. A loss must say `role="hidden"` or
            `role="output"`; every kind may give `summary="one line"`.

        Raises
        ------
        PluginError
            If the name, the target or an attribute is malformed.
        DuplicateName
            If the name is taken.
        """


@_hookspec
def dynamo_register_adapters(register: Register) -> None:
    """Register classes that derive from `dynamo_plugin.registry.interfaces.Adapter`."""


@_hookspec
def dynamo_register_meta_models(register: Register) -> None:
    """Register classes that derive from `dynamo_plugin.registry.interfaces.MetaModel`."""


@_hookspec
def dynamo_register_losses(register: Register) -> None:
    """Register `dynamo_plugin.registry.interfaces.Loss` functions, each with its `role`."""


@_hookspec
def dynamo_register_metrics(register: Register) -> None:
    """Register classes that derive from `dynamo_plugin.registry.interfaces.Metric`."""


@_hookspec
def dynamo_register_analyses(register: Register) -> None:
    """Register functions from a model embedding to an `AnalysisResult`."""


@_hookspec
def dynamo_register_exporters(register: Register) -> None:
    """Register functions that turn one of our objects into another tool's."""


HOOKS: Final[dict[str, Kind]] = {
    "dynamo_register_adapters": "adapter",
    "dynamo_register_meta_models": "meta_model",
    "dynamo_register_losses": "loss",
    "dynamo_register_metrics": "metric",
    "dynamo_register_analyses": "analysis",
    "dynamo_register_exporters": "exporter",
}
"""Hook name to the kind of what it registers."""
