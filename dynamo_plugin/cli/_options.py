"""Free-form options of the form NAME=VALUE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

__all__ = ["parse_options"]


def parse_options(given: Sequence[str], *, flag: str) -> dict[str, Any]:
    """Turn NAME=VALUE texts into keyword arguments; a value that is not JSON is taken as text.

    >>> parse_options(["clusters=4", "labels=architecture"], flag="--option")
    {'clusters': 4, 'labels': 'architecture'}
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"Expected NAME=VALUE, got {text!r}.", param_hint=flag)
        if name in options:
            raise typer.BadParameter(f"{name!r} is given twice.", param_hint=flag)
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options
