"""`register_adapter`: how models of one class are read, said once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.registry import get_registry
from dynamo_plugin.registry.interfaces import Adapter

__all__ = ["RegisteredModel", "register_adapter", "registered_models"]


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """How models of one class are read."""

    model_class: type
    """They, and those derived from it."""
    adapter: str | type[Adapter] | None
    """Registered name, class, or None for the last registered one that takes the model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments with which the adapter is built; those of a capture come before them."""


_registered: dict[type, RegisteredModel] = {}


def register_adapter(
    model_class: type,
    *,
    layers: Sequence[str] | Mapping[str, Any] | None = None,
    forward: Callable[..., Any] | None = None,
    output: str | int | None = None,
    adapter: str | type[Adapter] | None = None,
    **options: Any,
) -> None:
    """Say how models of a class are read, for every capture of this process and its workers.

    A later call for the same class takes the place of an earlier one. Where a model belongs to
    several registered classes, the one registered last counts. What is said in a call of `capture`
    comes before what is said here.

    Parameters
    ----------
    model_class
        Class of the models.
    layers, forward, output
        As in `capture`.
    adapter
        Registered name of an adapter, or a class derived from `Adapter`; by default the last
        registered one that takes the model with these options, `torch_layers` for most modules
        with `layers=`.
    **options
        Further keyword arguments of the adapter.

    Raises
    ------
    InvalidInput
        `model_class` is no class, or `adapter` names or is no adapter.

    Examples
    --------
    >>> import torch
    >>> class MyNet(torch.nn.Sequential):
    ...     pass
    >>> register_adapter(MyNet, layers=["0", "2"])
    >>> network = MyNet(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> from dynamo_plugin.recording import capture
    >>> capture({"a": network}, torch.ones(5, 3), {}, progress=False).sites("a")
    ('0', '2')
    """
    if not inspect.isclass(model_class):
        raise InvalidInput(
            f"register_adapter takes the class of the models; got {model_class!r}. Write "
            "register_adapter(type(model), ...)."
        )
    if isinstance(adapter, str):
        get_registry().registration("adapter", adapter)
    elif adapter is not None and not (inspect.isclass(adapter) and issubclass(adapter, Adapter)):
        raise InvalidInput(
            "adapter must be a registered name or a class derived from "
            f"dynamo_plugin.registry.interfaces.Adapter; got {adapter!r}."
        )
    given = {"layers": layers, "forward": forward, "output": output}
    chosen = options | {name: value for name, value in given.items() if value is not None}
    if adapter is None and not chosen:
        raise InvalidInput(
            f"register_adapter({model_class.__name__}) says nothing about how it is read; give "
            "layers=, forward=, output= or adapter=."
        )
    _registered.pop(model_class, None)
    _registered[model_class] = RegisteredModel(model_class, adapter, chosen)


def registered_models() -> tuple[RegisteredModel, ...]:
    """Return what was registered, the last one last."""
    return tuple(_registered.values())
