"""Globs over module paths, whose components are separated by dots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from dynamo_plugin.errors import InvalidInput

__all__ = ["checked_patterns", "matches"]


def checked_patterns(layers: Sequence[str] | None, *, example: str) -> tuple[str, ...] | None:
    """Return the patterns that a user gave, if any.

    Raises
    ------
    InvalidInput
        It is no sequence of at least one pattern.

    Examples
    --------
    >>> checked_patterns(["encoder.*"], example="rnn")
    ('encoder.*',)
    """
    if layers is None:
        return None
    if (
        not isinstance(layers, Sequence)
        or isinstance(layers, str | bytes)
        or not layers
        or not all(isinstance(pattern, str) and pattern for pattern in layers)
    ):
        raise InvalidInput(
            f"layers must be a sequence of at least one pattern, for example [{example!r}]; got "
            f"{layers!r}."
        )
    return tuple(layers)


def matches(path: str, pattern: str) -> bool:
    """Return whether a module path matches a pattern as a whole, case-sensitively.

    `*` stands for any characters within one component, `?` for one of them, `[ab]` and `[!ab]`
    for one of a set; none of them crosses a dot. `**` crosses dots: as a whole component it
    stands for any number of components, none too; next to other characters for any characters.

    Raises
    ------
    InvalidInput
        A set holds a range that runs backwards.

    Examples
    --------
    >>> paths = ["layer1", "layer1.0", "layer1.0.conv1", "head"]
    >>> [path for path in paths if matches(path, "layer*")]
    ['layer1']
    >>> [path for path in paths if matches(path, "layer*.**")]
    ['layer1', 'layer1.0', 'layer1.0.conv1']
    >>> [path for path in paths if matches(path, "**.conv?")]
    ['layer1.0.conv1']
    """
    try:
        return _compiled(pattern).fullmatch(path) is not None
    except re.error as error:
        raise InvalidInput(
            f"layers: {pattern!r} is not a pattern: {error}. Write sets as [0-3] or [!ab]."
        ) from error


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = pattern.split(".")
    if all(part == "**" for part in parts):
        return re.compile(".*", re.DOTALL)
    # Each whole `**` brings the dots that set it apart, so that it may also stand for nothing.
    expression = ""
    dotted = True  # whether what follows needs no dot before it
    for index, part in enumerate(parts):
        if part == "**":
            if all(later == "**" for later in parts[index:]):
                expression += r"(?:\..*)?"
                break
            expression += r"(?:.*\.)?" if dotted else r"\.(?:.*\.)?"
            dotted = True
            continue
        expression += ("" if dotted else r"\.") + _component(part)
        dotted = False
    return re.compile(expression, re.DOTALL)


def _component(part: str) -> str:
    expression = ""
    position = 0
    while position < len(part):
        character = part[position]
        position += 1
        if character == "*":
            if part[position : position + 1] == "*":
                position += 1
                expression += ".*"
            else:
                expression += "[^.]*"
        elif character == "?":
            expression += "[^.]"
        elif character == "[" and (end := part.find("]", position + 1)) > 0:
            members = part[position:end]
            position = end + 1
            negated = members.startswith("!")
            inside = re.escape(members[negated:]).replace(r"\-", "-")
            expression += f"[^.{inside}]" if negated else f"[{inside}]"
        else:
            expression += re.escape(character)
    return expression
