"""What chosen modules do while the model that holds them runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Firing", "firings"]


@dataclass(slots=True)
class Firing:
    """What one module did during one forward pass of the model that holds it."""

    count: int = 0
    """How often the module was called."""
    calls: list[Any] = field(default_factory=list)
    """What the reader made of each call, as far as calls are kept."""


Reader = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
"""Takes module, positional and keyword arguments and result; returns what to keep, cloned."""


@contextmanager
def firings(
    modules: Mapping[str, nn.Module], reader: Reader, *, keep: int | None = 1
) -> Iterator[dict[str, Firing]]:
    """Watch modules; yield what fired, in order of the first call of each.

    The first `keep` calls of each module are read, all of them if None; the others are counted.
    Hooks are removed by handle when the context is left, whatever happened inside.
    """
    fired: dict[str, Firing] = {}
    handles: list[Any] = []

    def watch(name: str) -> Callable[[nn.Module, Any, dict[str, Any], Any], None]:
        def hook(module: nn.Module, arguments: Any, keywords: dict[str, Any], result: Any) -> None:
            firing = fired.setdefault(name, Firing())
            firing.count += 1
            if keep is None or firing.count <= keep:
                firing.calls.append(reader(module, tuple(arguments), keywords, result))

        return hook

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(watch(name), with_kwargs=True))
        yield fired
    finally:
        for handle in handles:
            handle.remove()
