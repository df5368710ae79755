"""Names of groups and arrays: any text, turned into a path segment that every file system takes."""

from __future__ import annotations

import hashlib
import re

from dynamo_plugin.errors import InvalidInput

__all__ = ["path_key"]

_PLAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9_-])?")
_UNSAFE = re.compile(r"[^a-z0-9_-]")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{device}{number}" for device in ("com", "lpt") for number in range(10)
}


def path_key(name: str) -> str:
    """Return the path segment under which the group or array called `name` is stored.

    A short name of lower-case letters, digits, `.`, `_` and `-` is kept as it is. Any other gets
    all other characters replaced and 16 hexadecimal digits of its SHA-256 appended after a `~`,
    which no plain name holds. So two names never share a key, not even on a file system that
    ignores case, and no key leaves its folder, is hidden, too long, reserved by Windows or by
    Zarr, or means something else in a URL. The key is not decoded: the name itself is stored in
    the attributes.

    Raises
    ------
    InvalidInput
        The name cannot be written as UTF-8 (it holds a lone surrogate).

    Examples
    --------
    >>> path_key("gru-3")
    'gru-3'
    >>> path_key("GRU/3")
    'gru_3~7a40134cb443d68f'
    """
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"A name must be text that UTF-8 can hold; {name!r} is not: {error.reason}. Rename it."
        ) from error
    reserved = name.partition(".")[0] in _WINDOWS_DEVICES or name == "zarr.json"
    if _PLAIN.fullmatch(name) and not reserved:
        return name
    head = _UNSAFE.sub("_", name.lower()[:60]).lstrip("_")
    return f"{head}~{hashlib.sha256(encoded).hexdigest()[:16]}"
