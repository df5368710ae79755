"""The stack of blocks in a model of transformers, found by what runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch

from ._calling import Caller
from ._firings import firings
from ._layer_choice import Event
from ._layer_places import Place
from ._results import tensor_at

__all__ = ["block_places"]

# A second stack this large, relative to the first, is not an accessory of it.
_RIVAL = 0.1


@dataclass(frozen=True, slots=True)
class _Stack:
    path: str
    """Of the module list."""
    events: tuple[Event, ...]
    """Calls of its members, in order."""
    widths: frozenset[int]
    """Sizes of the last axis of what they return."""
    parameters: int


def block_places(model: nn.Module, call: Caller, batch: SequenceBatch) -> dict[str, Place]:
    """Run the model, and return where its residual stream can be read.

    The blocks are the members of the module list that is no part of another one, whose members
    run one after the other and return states of the model's hidden size.

    Returns
    -------
    dict of str to Place
        `embeddings`, what the first block receives; `block0`, `block1`, ..., what each call of a
        block returns; `final_norm`, what a normalisation of the last block's states returns, if
        there is one.

    Raises
    ------
    CaptureError
        There is no such module list, or there are several.
    """
    stack = _stack(model, call, batch)
    first, last = stack.events[0], stack.events[-1]
    norms = {
        path: module
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and not any(module.children())
        and not path.startswith(f"{stack.path}.")
    }
    ends = {path: model.get_submodule(path) for path in {first[0], last[0]}}
    with firings(norms | ends, _copy_of_call, keep=None) as fired:
        call(model, batch)
    places = {"embeddings": Place(*first, fired[first[0]].calls[first[1]].selector, "input")}
    for index, event in enumerate(stack.events):
        places[f"block{index}"] = Place(*event)
    final = fired[last[0]].calls[last[1]].returned
    for path, firing in fired.items():
        if path in norms and firing.count == 1 and _continues(firing.calls[0].received, final):
            places["final_norm"] = Place(path)
            break
    return places


def _stack(model: nn.Module, call: Caller, batch: SequenceBatch) -> _Stack:
    stacks = list(_stacks(model, call, batch))
    outer = [
        stack
        for stack in stacks
        if not any(stack.path.startswith(f"{other.path}.") for other in stacks)
    ]
    width = _hidden_size(model)
    fitting = [stack for stack in outer if stack.widths == {width}] or outer
    fitting.sort(key=lambda stack: stack.parameters, reverse=True)
    advice = "Choose modules with layers=, for example layers=['encoder.layer.*']."
    if not fitting:
        raise CaptureError(
            f"{type(model).__name__} has no list of modules that run one after the other and "
            f"return states, so that its blocks are not known. {advice}"
        )
    if len(fitting) > 1 and fitting[1].parameters > _RIVAL * fitting[0].parameters:
        raise CaptureError(
            f"{type(model).__name__} has several stacks of blocks: "
            f"{', '.join(repr(stack.path) for stack in fitting)}. {advice}"
        )
    return fitting[0]


def _stacks(model: nn.Module, call: Caller, batch: SequenceBatch) -> list[_Stack]:
    """Return the module lists whose members run in order and return states.

    Members may run several times, as those that are shared over depth do.
    """
    own = {id(module): path for path, module in model.named_modules()}
    lists = {
        path: (module, list(dict.fromkeys(own[id(member)] for member in module)))
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    }
    members = {name: model.get_submodule(name) for _, names in lists.values() for name in names}
    clock = itertools.count()

    def read(module: nn.Module, arguments: Any, keywords: Any, result: Any) -> tuple[int, int]:
        return next(clock), _width(result)

    with firings(members, read, keep=None) as fired:
        call(model, batch)
    stacks = []
    for path, (module, names) in lists.items():
        if not all(name in fired for name in names):
            continue
        calls = sorted(
            (*reading, name, index)
            for name in names
            for index, reading in enumerate(fired[name].calls)
        )
        order = list(dict.fromkeys(name for _, _, name, _ in calls))
        widths = frozenset(width for _, width, _, _ in calls)
        if order == names and 0 not in widths:
            events = tuple((name, index) for _, _, name, index in calls)
            size = sum(parameter.numel() for parameter in module.parameters())
            stacks.append(_Stack(path, events, widths, size))
    return stacks


def _width(result: Any) -> int:
    """Return the size of the last axis of a state; 0 if there is none, or no axis of samples."""
    try:
        state = tensor_at(result, None, "")
    except CaptureError:
        return 0
    return int(state.shape[-1]) if state.dim() >= 3 and state.is_floating_point() else 0


def _hidden_size(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    sizes = (getattr(each, "hidden_size", None) for each in (config, text))
    return next((size for size in sizes if isinstance(size, int)), None)


@dataclass(frozen=True, slots=True)
class _Call:
    received: Tensor | None
    returned: Tensor | None
    selector: str | None
    """Keyword of what was received, where it was not handed over by position."""


def _copy_of_call(
    module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any], result: Any
) -> _Call:
    by_position = any(isinstance(argument, Tensor) for argument in arguments)
    named = None if by_position or "hidden_states" not in keywords else "hidden_states"
    received = keywords[named] if named else (*arguments, *keywords.values())
    return _Call(_tensor_or_none(received), _tensor_or_none(result), named)


def _tensor_or_none(value: Any) -> Tensor | None:
    try:
        return tensor_at(value, None, "").detach().clone()
    except CaptureError:
        return None


def _continues(received: Tensor | None, final: Tensor | None) -> bool:
    """Return whether a module received the last block's states; RWKV halves them in between."""
    if received is None or final is None or received.shape != final.shape:
        return False
    return torch.equal(received, final) or torch.equal(received * 2, final)
