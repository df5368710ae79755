"""What the user said about reading models, as it is stored and compared."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamo_plugin.types import JSON

__all__ = ["option_as_json"]


def option_as_json(value: Any) -> JSON:
    """Return an option of an adapter as it is stored; functions by name and source.

    >>> option_as_json({"layers": ("encoder", 1)})
    {'layers': ['encoder', 1]}
    """
    if value is ...:
        return None
    if isinstance(value, Mapping):
        return {str(key): option_as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [option_as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        return f"{name}"
    return f"{name} (source {hashlib.sha256(source.encode()).hexdigest()[:16]})"
