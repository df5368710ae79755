"""Options of metrics, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamo_plugin.errors import InvalidInput, suggest

__all__ = ["check_choice", "check_count", "check_not_negative", "check_positive", "check_share"]


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `InvalidInput` unless the value is one of the choices."""
    if value not in choices:
        raise InvalidInput(f"{name} must not be {value!r}. {suggest(str(value), choices)}")


def check_positive(name: str, value: object) -> None:
    """Raise `InvalidInput` unless the value is a positive, finite number."""
    if not _is_number(value) or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise InvalidInput(f"{name} must be a positive number, got {value!r}.")


def check_not_negative(name: str, value: object) -> None:
    """Raise `InvalidInput` unless the value is zero or a positive, finite number."""
    if not _is_number(value) or not 0 <= float(value) < math.inf:  # type: ignore[arg-type]
        raise InvalidInput(f"{name} must be a number of at least 0, got {value!r}.")


def check_share(name: str, value: object) -> None:
    """Raise `InvalidInput` unless the value is a number from 0 to 1."""
    if not _is_number(value) or not 0 <= float(value) <= 1:  # type: ignore[arg-type]
        raise InvalidInput(f"{name} must be a number from 0 to 1, got {value!r}.")


def check_count(name: str, value: object, *, least: int) -> None:
    """Raise `InvalidInput` unless the value is a whole number, and not too small."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInput(f"{name} must be a whole number of at least {least}, got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
