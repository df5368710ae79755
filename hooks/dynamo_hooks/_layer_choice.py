"""Which calls of which modules the user's patterns choose."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeAlias

from torch import nn

from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, suggest
from dynamo_plugin.types import SequenceBatch

from ._calling import Caller
from ._firings import firings
from ._layer_places import Place
from ._patterns import matches
from ._results import Selector

__all__ = ["Event", "Layers", "calls_of", "chosen_places", "normalised"]

Layers: TypeAlias = Mapping[str, Selector]
"""Pattern to selector, in order of precedence."""

Event: TypeAlias = tuple[str, int]
"""Path of a module, and which of its calls."""

_ONE_CALL = re.compile(r"(?P<module>.+)\.call(?P<index>\d+)")


def normalised(layers: Any) -> Layers | None:
    """Return the user's patterns with their selectors, checked.

    Raises
    ------
    InvalidInput
        It is neither a sequence nor a mapping of at least one pattern, or a selector is none.

    Examples
    --------
    >>> normalised(["block*"])
    {'block*': None}
    """
    if layers is None:
        return None
    if isinstance(layers, Mapping):
        given = dict(layers)
    elif isinstance(layers, Sequence) and not isinstance(layers, str | bytes):
        given = dict.fromkeys(layers)
    else:
        given = {}
    if not given or not all(isinstance(pattern, str) and pattern for pattern in given):
        raise InvalidInput(
            "layers must be a sequence of at least one pattern, for example ['encoder.*'], or a "
            f"mapping of patterns to selectors, for example {{'encoder.*': 0}}; got {layers!r}."
        )
    return {pattern: _selector(pattern, selector) for pattern, selector in given.items()}


def _selector(pattern: str, selector: Any) -> Selector:
    parts = list(selector) if isinstance(selector, tuple | list) else [selector]
    if selector is None or isinstance(selector, EllipsisType) or selector == "...":
        return None  # TOML has only the string
    if not parts or any(
        isinstance(part, bool) or not isinstance(part, int | str) for part in parts
    ):
        raise InvalidInput(
            f"layers: the selector of {pattern!r} must be an index, a key or attribute, a list of "
            f"these, or None or ... for the first floating tensor; got {selector!r}."
        )
    return parts if isinstance(selector, tuple | list) else parts[0]


@dataclass(frozen=True, slots=True)
class _Match:
    """A pattern, and the modules that it chooses."""

    pattern: str
    selector: Selector
    paths: tuple[str, ...]
    call: int | None
    """The only call that counts, or None for all."""


def calls_of(model: nn.Module, call: Caller, batch: SequenceBatch) -> list[Event]:
    """Run the model, and return which modules were called, in order of return."""
    clock = itertools.count()
    with firings(dict(model.named_modules()), lambda *_: next(clock), keep=None) as fired:
        call(model, batch)
    ticks = [
        (tick, path, index)
        for path, firing in fired.items()
        for index, tick in enumerate(firing.calls)
    ]
    return [(path, index) for _, path, index in sorted(ticks)]


def chosen_places(model: nn.Module, layers: Layers, events: Sequence[Event]) -> dict[str, Place]:
    """Return site name to place, in order of computation.

    Parameters
    ----------
    layers
        Patterns over module paths. `path.call1` chooses the second call of a module alone. Where
        several match a module, the first counts.
    events
        What `calls_of` returned.

    Raises
    ------
    UnknownName
        A pattern matches no module.
    CaptureError
        What a pattern matches never ran.
    """
    aliases = _paths(model)
    found = [_match(pattern, selector, aliases) for pattern, selector in layers.items()]
    counts: dict[str, int] = {}
    for path, _ in events:
        counts[path] = counts.get(path, 0) + 1
    for match in found:
        _check_ran(match, aliases, counts)
    places: dict[str, Place] = {}
    for path, index in events:
        for match in found:
            names = [name for name in match.paths if aliases[name] == path]
            if names and match.call in (None, index):
                site = names[0] if counts[path] == 1 else f"{names[0]}.call{index}"
                places[site] = Place(path, index, match.selector)
                break
    return places


def _paths(model: nn.Module) -> dict[str, str]:
    """Return every path of every module to the first path of the same module.

    A model without parts is its own only module, and named after its class.
    """
    first = {id(module): path for path, module in model.named_modules()}
    if len(first) == 1:
        return {type(model).__name__.lower(): ""}
    every = model.named_modules(remove_duplicate=False)
    return {path: first[id(module)] for path, module in every if path}


def _match(pattern: str, selector: Selector, aliases: Mapping[str, str]) -> _Match:
    paths = tuple(path for path in aliases if matches(path, pattern))
    call = None
    one = _ONE_CALL.fullmatch(pattern)
    if not paths and one is not None:
        paths = tuple(path for path in aliases if matches(path, one["module"]))
        call = int(one["index"])
    if not paths:
        raise UnknownName(
            f"layers: {pattern!r} matches no module; * stays within one component of a path, ** "
            f"crosses dots. {suggest(pattern, aliases)}"
        )
    return _Match(pattern, selector, paths, call)


def _check_ran(match: _Match, aliases: Mapping[str, str], counts: Mapping[str, int]) -> None:
    ran = {path: counts.get(aliases[path], 0) for path in match.paths}
    if not any(ran.values()):
        names = [path for path in counts if path]
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        silent = ", ".join(repr(path) for path in match.paths[:5])
        raise CaptureError(
            f"site {silent}{', ...' if len(match.paths) > 5 else ''} did not run in the forward "
            f"pass (modules that did: {shown or 'none'}). Hooks see modules that are called as "
            "module(...), not module.forward(...), and lists of modules are never called; choose "
            "with layers= among those that run, or make the model run it with forward=."
        )
    if match.call is not None and match.call >= max(ran.values()):
        path = max(ran, key=lambda name: ran[name])
        raise CaptureError(
            f"layers: {match.pattern!r} asks for call {match.call} of {path!r}, counted from 0; "
            f"it was called {ran[path]} times."
        )
