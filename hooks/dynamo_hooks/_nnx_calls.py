"""Watching the calls of flax.nnx modules, which have no hooks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from dynamo_plugin.errors import CaptureError

__all__ = ["Calls", "callable_modules", "watched_calls"]

# Classes are changed while modules are watched; one thread at a time, again from within.
_LOCK = threading.RLock()


@dataclass(slots=True)
class Calls:
    """What one module did during one forward pass."""

    count: int = 0
    callers: list[tuple[str, ...]] = field(default_factory=list)
    """For each call, the modules that were running, outermost first."""
    results: list[Any] = field(default_factory=list)
    """What the reader made of each result."""


def callable_modules(model: Any) -> dict[str, Any]:
    """Return path to module for all modules that can be called; the model itself is ''.

    Paths are those of the flax graph: `layers.0`, `encoder.dense1`.
    """
    from flax import nnx

    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if _defines_call(type(module))
    }


@contextmanager
def watched_calls(
    modules: Mapping[str, Any],
    reader: Callable[[str, Any], Any],
    *,
    forbidden: Mapping[str, Any],
) -> Iterator[dict[str, Calls]]:
    """Watch modules; yield what was called, in order of the first return of each.

    Python looks `__call__` up on the class, so it is exchanged there: a wrapper passes every call
    on, and notes those of the given modules, by identity. A call counts once though a subclass
    calls the method of its parent. The classes are restored when the context is left, whatever
    happened inside; other threads that watch wait, other threads that merely call go ahead.

    Raises
    ------
    CaptureError
        One of the forbidden modules is called, from this thread.
    """
    names = {id(module): name for name, module in modules.items()}
    banned = {id(module): name for name, module in forbidden.items()}
    kinds = dict.fromkeys(map(type, [*modules.values(), *forbidden.values()]))
    called: dict[str, Calls] = {}
    running: list[str] = []
    thread = threading.get_ident()

    def wrapper_for(kind: type) -> Callable[..., Any]:
        original = _found_call(kind)

        @functools.wraps(original)
        def wrapper(self: Any, *arguments: Any, **keywords: Any) -> Any:
            bound = original.__get__(self, type(self)) if hasattr(original, "__get__") else original
            name = names.get(id(self))
            # A parent's method, called by a subclass, is part of the call of the subclass.
            if type(self) is not kind or threading.get_ident() != thread:
                return bound(*arguments, **keywords)
            if id(self) in banned:
                raise CaptureError(
                    f"module {banned[id(self)]!r} of the network itself was called, not that of "
                    "the copy that is read. Use the model that forward= is given, and modules "
                    "that are attributes, not those that a function holds on to."
                )
            if name is None:
                return bound(*arguments, **keywords)
            callers = tuple(running)
            running.append(name)
            try:
                result = bound(*arguments, **keywords)
            finally:
                running.pop()
            calls = called.setdefault(name, Calls())
            calls.count += 1
            calls.callers.append(callers)
            calls.results.append(reader(name, result))
            return result

        # `kind.__call__.__wrapped__` is what a decorator wraps, also while this is in its place.
        if hasattr(original, "__wrapped__"):
            wrapper.__wrapped__ = original.__wrapped__
        return wrapper

    with _LOCK, ExitStack() as restored:
        wrappers = {kind: wrapper_for(kind) for kind in kinds}
        for kind, wrapper in wrappers.items():
            if "__call__" in vars(kind):
                restored.callback(setattr, kind, "__call__", vars(kind)["__call__"])
            else:
                restored.callback(delattr, kind, "__call__")
            setattr(kind, "__call__", wrapper)  # noqa: B010
        yield called


def _defines_call(kind: type) -> bool:
    return any("__call__" in vars(base) for base in kind.__mro__)


def _found_call(kind: type) -> Any:
    """Return what the class would call; `kind.__call__` might be that of its metaclass."""
    return next(vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base))
