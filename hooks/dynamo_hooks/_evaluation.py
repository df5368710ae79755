"""Run a foreign model for reading only, and leave it as it was found."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["Firing", "evaluation_mode", "firings", "random_state_kept"]


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
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, without gradients, and restore each flag.

    The flags are set one by one rather than through `model.eval()`, so that models that do work
    in `train` (merging adapters, for example) are not set in motion.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


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


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Put the random generators of the CPU and of the model's CUDA devices back afterwards.

    Threads share them: in any but the main thread they are left alone, since putting them back
    would take away what others have drawn meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = itertools.chain(model.parameters(), model.buffers())
    devices = sorted({tensor.device.index for tensor in held if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield
