"""Copies of what chosen modules receive and return while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.registry.copying import copied
from dynamo_plugin.types import JSON

from ._results import Selector, tensor_at

__all__ = ["Place", "Side", "Watched", "watched"]

Side: TypeAlias = Literal["output", "input"]


@dataclass(frozen=True, slots=True)
class Place:
    """One call of one module, and the tensor there that is a state."""

    path: str
    """Module path, as `get_submodule` takes it; empty for the model itself."""
    call: int = 0
    """Which of the module's calls in a forward pass."""
    selector: Selector = None
    """Which tensor; of what a module receives, an index or a keyword."""
    side: Side = "output"
    """Whether it is among what the module returns or what it receives."""

    def as_json(self) -> dict[str, JSON]:
        """Return the arguments that make this place again, as a specification holds them."""
        selector = None if self.selector is Ellipsis else self.selector
        return {
            "path": self.path,
            "call": self.call,
            "selector": [*selector] if isinstance(selector, list) else selector,
            "side": self.side,
        }


@dataclass(slots=True)
class Watched:
    """What was seen during one forward pass."""

    states: dict[str, Tensor] = field(default_factory=dict)
    """Site name to copy, in order of computation."""
    calls: dict[str, int] = field(default_factory=dict)
    """Module path to the number of calls."""


@contextmanager
def watched(model: nn.Module, places: Mapping[str, Place]) -> Iterator[Watched]:
    """Watch the modules at some places; copy the states there as soon as they are computed.

    Our hooks are the last of each module, so that they see what earlier hooks made of its result,
    and are removed by handle when the context is left, whatever happened inside.

    Raises
    ------
    CaptureError
        The model has no such module.
    """
    seen = Watched()
    handles: list[Any] = []
    sides: dict[tuple[str, Side], dict[int, list[tuple[str, Selector]]]] = {}
    for name, place in places.items():
        calls = sides.setdefault((place.path, place.side), {})
        calls.setdefault(place.call, []).append((name, place.selector))
    counted: set[str] = set()
    try:
        for (path, side), wanted in sides.items():
            module = _submodule(model, path)
            if side == "output":
                handles.append(module.register_forward_hook(_on_return(path, wanted, seen)))
                counted.add(path)
            else:
                handles.append(
                    module.register_forward_pre_hook(_on_call(wanted, seen), with_kwargs=True)
                )
        for path, _ in sides:
            if path not in counted:  # only its input is read, and its calls are counted too
                counted.add(path)
                hook = _on_return(path, {}, seen)
                handles.append(_submodule(model, path).register_forward_hook(hook))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


Wanted: TypeAlias = Mapping[int, list[tuple[str, Selector]]]


def _on_return(
    path: str, wanted: Wanted, seen: Watched
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        index = seen.calls.get(path, 0)
        seen.calls[path] = index + 1
        for name, selector in wanted.get(index, ()):
            seen.states[name] = copied(tensor_at(result, selector, name))

    return hook


def _on_call(
    wanted: Wanted, seen: Watched
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    index = 0

    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal index
        for name, selector in wanted.get(index, ()):
            named = isinstance(selector, str)
            received = keywords if named else (*arguments, *keywords.values())
            seen.states[name] = copied(tensor_at(received, selector, name))
        index += 1

    return hook


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise CaptureError(
            f"module {path!r} was there when the model was described, and is gone. The model "
            "changed in between."
        ) from None
