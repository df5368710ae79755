"""Every error raised on purpose.

Each is a `DynamoError` and also the builtin that a caller who has never heard of this package
would catch. A message says what was expected, what came, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CaptureError",
    "CorruptBlock",
    "DivergedFit",
    "DuplicateName",
    "DynamoError",
    "IncompleteCapture",
    "InvalidConfig",
    "InvalidInput",
    "NonFiniteStates",
    "PluginError",
    "StoreError",
    "StoreExists",
    "StoreLocked",
    "StoreNotFound",
    "UnknownName",
    "UnsupportedFormat",
    "UnsupportedModel",
    "suggest",
]


class DynamoError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidInput(DynamoError, ValueError):
    """An argument or an array does not fit: shape, dtype, range, ids."""


class InvalidConfig(InvalidInput):
    """A configuration file is not what the documented schema asks for."""


class UnknownName(DynamoError, KeyError):
    """A name (model id, site, plugin, label) that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class DuplicateName(DynamoError, ValueError):
    """A name is already taken."""


class PluginError(DynamoError, RuntimeError):
    """A plugin cannot be loaded, or does not keep its contract."""


class UnsupportedModel(DynamoError, TypeError):
    """No adapter takes this model, or the adapter cannot read it."""


class CaptureError(DynamoError, RuntimeError):
    """A site did not behave while hidden states were recorded."""


class NonFiniteStates(CaptureError, ValueError):
    """A recorded state or output holds NaN or infinity."""


class StoreError(DynamoError):
    """Base of the errors of the population store."""


class StoreExists(StoreError, FileExistsError):
    """Something lies where a new store or folder was to be written."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store or folder at this place."""


class StoreLocked(StoreError, BlockingIOError):
    """Another writer is at work on the store."""


class UnsupportedFormat(StoreError, ValueError):
    """Not one of our formats, or a version that this release cannot read."""


class IncompleteCapture(StoreError, LookupError):
    """The data asked for was never committed."""


class CorruptBlock(StoreError, ValueError):
    """Stored bytes are not those that were committed."""


class DivergedFit(DynamoError, ArithmeticError):
    """Training produced a non-finite loss."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the nearest known names.

    >>> suggest("clutsers", ["clusters", "components"])
    "Did you mean 'clusters'? Known: clusters, components."
    >>> suggest("x", [])
    'None are known.'
    """
    names = sorted(known)
    if not names:
        return "None are known."
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    return f"{hint}Known: {shown}."
