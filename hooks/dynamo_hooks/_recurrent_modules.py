"""Which modules of a model have a state at every step, and which of them the user chose."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from torch import nn

from dynamo_plugin.errors import UnknownName, suggest

from ._patterns import matches

__all__ = ["chosen_modules", "is_quantised", "named_modules", "recurrent_modules", "runs_sequences"]

# Imported only by those who quantise; the classes do not derive from those of torch.nn.
_QUANTISED = "torch.ao.nn.quantized.dynamic.modules.rnn"


def runs_sequences(module: nn.Module) -> bool:
    """Return whether one call of the module runs over all steps, as that of `nn.GRU` does.

    >>> runs_sequences(nn.GRU(2, 3)), runs_sequences(nn.GRUCell(2, 3))
    (True, False)
    """
    return isinstance(module, nn.RNNBase) or _is_quantised(module, "RNNBase")


def is_quantised(module: nn.Module) -> bool:
    """Return whether the module is a dynamically quantised LSTM, GRU or cell."""
    return _is_quantised(module, "RNNBase") or _is_quantised(module, "RNNCellBase")


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return path to module for all that can be called; a model itself is named after its class.

    >>> list(named_modules(nn.Sequential(nn.ModuleList([nn.Tanh()]))))
    ['sequential', '0.0']
    """
    return {
        name or type(module).__name__.lower(): module
        for name, module in model.named_modules()
        if type(module).forward is not nn.Module.forward
    }


def recurrent_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return path to module for the recurrent modules and cells of `torch.nn`.

    >>> list(recurrent_modules(nn.Sequential(nn.Linear(2, 2), nn.GRUCell(2, 3))))
    ['1']
    """
    return {
        name: module
        for name, module in named_modules(model).items()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) or is_quantised(module)
    }


def chosen_modules(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return path to module for those that patterns choose; without patterns, the recurrent ones.

    A pattern that matches recurrent modules of `torch.nn` chooses these; one that matches none
    chooses every module that it matches.

    Raises
    ------
    UnknownName
        A pattern matches no module.
    """
    recurrent = recurrent_modules(model)
    if patterns is None:
        return recurrent
    every = named_modules(model)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = _matching(recurrent, pattern) or _matching(every, pattern)
        if not matched:
            raise UnknownName(f"layers: {pattern!r} matches no module. {suggest(pattern, every)}")
        chosen.update(matched)
    return {name: module for name, module in every.items() if name in chosen}


def _matching(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    return [name for name in modules if matches(name, pattern)]


def _is_quantised(module: nn.Module, base: str) -> bool:
    kinds = sys.modules.get(_QUANTISED)
    return kinds is not None and isinstance(module, getattr(kinds, base))
