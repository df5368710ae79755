"""Which adapter reads a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dynamo_plugin.errors import InvalidInput, PluginError, UnsupportedModel
from dynamo_plugin.recording.registering import RegisteredModel, registered_models
from dynamo_plugin.registry import get_registry
from dynamo_plugin.registry.interfaces import Adapter

__all__ = ["AdapterChoice"]


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """The user's choice of adapter, or none; travels to worker processes."""

    adapter: str | Adapter | None = None
    """A registered name, an adapter, or None for the last registered one that takes the model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments with which adapters are built."""
    registered: tuple[RegisteredModel, ...] = field(default_factory=registered_models)
    """How models of certain classes are read, where `adapter` is None."""

    def __post_init__(self) -> None:
        if isinstance(self.adapter, Adapter) and self.options:
            raise InvalidInput(
                f"{', '.join(self.options)} cannot be applied to an adapter that is already "
                f"built ({type(self.adapter).__name__}); give them to its constructor."
            )
        if isinstance(self.adapter, str):
            get_registry().registration("adapter", self.adapter)
        elif self.adapter is not None and not isinstance(self.adapter, Adapter):
            raise InvalidInput(
                "adapter must be a registered name or an Adapter; got "
                f"{type(self.adapter).__name__}."
            )

    def supports(self, source: object) -> bool:
        """Return whether an adapter takes this object as a model, as it is."""
        try:
            self.of(source)
        except UnsupportedModel:
            return False
        return True

    def entry_of(self, model: object) -> RegisteredModel | None:
        """Return what was said about models of this class, if that is not overruled."""
        if self.adapter is not None:
            return None
        inner = _innermost(model)
        fitting = (e for e in reversed(self.registered) if isinstance(inner, e.model_class))
        return next(fitting, None)

    def of(self, model: object) -> Adapter:
        """Return the adapter for a model.

        Third parties register after the adapters that come with this package, and so take
        precedence over them. Where none knows the model by itself, options take part in the
        choice: some adapters take any module, once they are told which of its layers to read.

        Raises
        ------
        UnsupportedModel
            None takes it.
        InvalidInput
            The adapter does not know one of the options.
        """
        if self.adapter is not None:
            chosen = (
                self.adapter
                if isinstance(self.adapter, Adapter)
                else _built(self.adapter, self.options)
            )
            if chosen.supports(model):
                return chosen
            name = self.adapter if isinstance(self.adapter, str) else type(chosen).__name__
            raise UnsupportedModel(f"adapter {name!r} does not take {_described(model)}.")
        options = self.options
        if entry := self.entry_of(model):
            options = {**entry.options, **options}
            if entry.adapter is not None:
                return _built(entry.adapter, options)
        names = tuple(reversed(get_registry().names("adapter")))
        knowing = (name for name in names if _takes_without_options(name, model))
        if (known := next(knowing, None)) is not None:
            return _built(known, options)
        tried: list[str] = []
        for name in names:
            try:
                candidate = _built(name, options)
            except (PluginError, InvalidInput) as error:
                tried.append(f"{name} (unusable: {error})")
                continue
            if candidate.supports(model):
                return candidate
            tried.append(name)
        raise UnsupportedModel(
            f"no adapter takes {_described(model)}. Tried: {', '.join(tried) or 'none'}. Install "
            "a plugin that knows the architecture, or pass adapter= with one of your own."
        )


def _innermost(model: object) -> object:
    """Return the module inside those that `torch.compile` and the parallel wrappers make."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(model, nn.Module) and isinstance(inner, nn.Module):
            return model if type(model).__module__.partition(".")[0] != "torch" else inner
    return model


def _built(name: str | type[Adapter], options: Mapping[str, Any]) -> Adapter:
    target = get_registry().load("adapter", name) if isinstance(name, str) else name
    name = name if isinstance(name, str) else name.__name__
    try:
        adapter = target(**options)
    except TypeError as error:
        given = ", ".join(options) or "no arguments"
        raise InvalidInput(f"adapter {name!r} cannot be built with {given}: {error}.") from error
    if not isinstance(adapter, Adapter):
        raise PluginError(
            f"adapter {name!r} must derive from dynamo_plugin.registry.interfaces.Adapter; "
            f"{type(adapter).__name__} does not."
        )
    return adapter


def _takes_without_options(name: str, model: object) -> bool:
    """Return whether an adapter knows how to read a model without being told anything."""
    try:
        return _built(name, {}).supports(model)
    except (PluginError, InvalidInput):
        return False


def _described(model: object) -> str:
    if not isinstance(model, nn.Module):
        return f"an object of type {type(model).__name__}"
    kinds = sorted({type(module).__name__ for module in model.modules()})
    return f"{type(model).__name__} (modules of type {', '.join(kinds)})"
