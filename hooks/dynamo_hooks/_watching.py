"""Copies of what chosen modules receive and return while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError, UnknownName, suggest

from ._tensors import copied

__all__ = ["Place", "Selector", "Side", "Watched", "tensor_at", "watched"]

Selector: TypeAlias = int | str | list[int | str] | EllipsisType | None
"""Where the state is in what a module returns: an index, a key or attribute, a list of these for
deeper places; None or Ellipsis for the tensor itself or the first floating one of several."""

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
            f"{type(model).__name__} has no module {path!r}, though it had one when it was "
            "described. The model changed in between."
        ) from None


def tensor_at(result: Any, selector: Selector, site: str) -> Tensor:
    """Return the tensor that is a state, in what a module returned.

    Parameters
    ----------
    result
        A tensor, or tuples, lists, mappings or objects that hold some.
    selector
        Which one; see `Selector`.
    site
        For messages.

    Raises
    ------
    UnknownName
        The selector names nothing.
    CaptureError
        There is no dense tensor at this place.

    Examples
    --------
    >>> tensor_at({"states": (torch.tensor([1]), torch.tensor([2.0]))}, ["states", 0], "block")
    tensor([1])
    >>> tensor_at((torch.tensor([1]), torch.tensor([2.0])), None, "block")
    tensor([2.])
    """
    found = result
    if selector is not None and selector is not Ellipsis:
        for part in selector if isinstance(selector, list) else [selector]:
            found = _part(found, part, site)
    if isinstance(found, PackedSequence):
        raise CaptureError(
            f"site {site!r} holds a packed sequence, whose rows are steps of several samples; "
            "expected a tensor. Recurrent modules are read by adapter='torch_recurrent'."
        )
    if isinstance(found, Mapping):
        found = tuple(found.values())
    if isinstance(found, tuple | list):
        tensors = [item for item in found if isinstance(item, Tensor)]
        floating = (item for item in tensors if item.is_floating_point() or item.is_quantized)
        found = next(floating, tensors[0] if tensors else found)
    if not isinstance(found, Tensor):
        raise CaptureError(
            f"site {site!r} holds no tensor but {_described(found)}; expected a tensor or a tuple, "
            "list or mapping with one. Name the part with a selector: "
            f"layers={{{site!r}: key, index, or a list of these}}."
        )
    if found.layout != torch.strided or found.is_nested:
        kind = "nested" if found.is_nested else str(found.layout).removeprefix("torch.")
        raise CaptureError(
            f"site {site!r} holds a {kind} tensor; expected a dense one. Choose other modules "
            "with layers=."
        )
    if found.is_meta:
        raise CaptureError(
            f"site {site!r} lies on the meta device, which holds no numbers. Load the weights of "
            "the model before it is recorded."
        )
    return found


def _part(result: Any, part: int | str, site: str) -> Any:
    if isinstance(part, int):
        if isinstance(result, tuple | list) and -len(result) <= part < len(result):
            return result[part]
        raise UnknownName(
            f"layers: selector {part} of site {site!r} asks for an entry of a tuple or list; "
            f"there is {_described(result)}."
        )
    if isinstance(result, Mapping):
        if part in result:
            return result[part]
        known = [str(key) for key in result]
    else:
        if hasattr(result, part):
            return getattr(result, part)
        known = [name for name in getattr(result, "_fields", ()) if isinstance(name, str)]
    raise UnknownName(
        f"layers: selector {part!r} of site {site!r} is no part of {_described(result)}. "
        f"{suggest(part, known)}"
    )


def _described(result: Any) -> str:
    if isinstance(result, Mapping):
        return f"{type(result).__name__} with keys {', '.join(map(str, result)) or '(none)'}"
    if isinstance(result, tuple | list):
        inside = ", ".join(type(item).__name__ for item in result) or "nothing"
        return f"{type(result).__name__} of {inside}"
    if isinstance(result, Tensor):
        return f"a tensor of shape {tuple(result.shape)}"
    return type(result).__name__
