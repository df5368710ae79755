"""Parts of what models and modules return."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dynamo_plugin.errors import CaptureError, UnknownName, suggest

__all__ = ["Selector", "select_output", "tensor_at"]

Selector: TypeAlias = int | str | list[int | str] | EllipsisType | None
"""Where the state is in what a module returns: an index, a key or attribute, a list of these for
deeper places; None or Ellipsis for the tensor itself or the first floating one of several."""

_OUTPUT_KEYS = ("logits", "output", "outputs")


def select_output(result: Any, selector: str | int | None) -> Tensor | PackedSequence:
    """Find the output tensor in what a model returned.

    A tensor is itself; of a tuple or list the first floating tensor counts; of a mapping the
    entry `logits`, `output` or `outputs`. A selector (key, attribute or index) overrides that.

    Raises
    ------
    UnknownName
        The selector names nothing in the result.
    CaptureError
        Nothing in the result is an output by these rules.
    """
    if selector is not None:
        result = _part(result, selector, f"output={selector!r}")
    if isinstance(result, Tensor | PackedSequence):
        return result
    if selector is None and isinstance(result, Mapping):
        for key in _OUTPUT_KEYS:
            if isinstance(result.get(key), Tensor | PackedSequence):
                found: Tensor | PackedSequence = result[key]
                return found
    elif isinstance(result, tuple | list):
        for item in result:
            if isinstance(item, PackedSequence) or (
                isinstance(item, Tensor) and item.is_floating_point()
            ):
                return item
    raise CaptureError(
        f"the model returned {_described(result)}, in which no output was found. Expected a "
        "tensor, a tuple or list with a floating tensor, or a mapping with one of the keys "
        f"{', '.join(_OUTPUT_KEYS)}. Name the part that is the output with output= (a key or an "
        "index), or return it from forward=."
    )


def tensor_at(result: Any, selector: Selector, site: str) -> Tensor:
    """Return the tensor that is a state, in what a module returned.

    Parameters
    ----------
    result
        A tensor, or tuples, lists, mappings or objects that hold some.
    selector
        Which one; see `Selector`.
    site
        For messages.

    Raises
    ------
    UnknownName
        The selector names nothing.
    CaptureError
        There is no dense tensor at this place.

    Examples
    --------
    >>> import torch
    >>> tensor_at({"states": (torch.tensor([1]), torch.tensor([2.0]))}, ["states", 0], "block")
    tensor([1])
    >>> tensor_at((torch.tensor([1]), torch.tensor([2.0])), None, "block")
    tensor([2.])
    """
    found = result
    if selector is not None and selector is not Ellipsis:
        for part in selector if isinstance(selector, list) else [selector]:
            found = _part(found, part, f"layers: selector {part!r} of site {site!r}")
    if isinstance(found, PackedSequence):
        raise CaptureError(
            f"site {site!r} holds a packed sequence, whose rows are steps of several samples; "
            "expected a tensor. Recurrent modules are read by adapter='torch_recurrent'."
        )
    if isinstance(found, Mapping):
        found = tuple(found.values())
    if isinstance(found, tuple | list):
        tensors = [item for item in found if isinstance(item, Tensor)]
        floating = (item for item in tensors if item.is_floating_point() or item.is_quantized)
        found = next(floating, tensors[0] if tensors else found)
    if not isinstance(found, Tensor):
        raise CaptureError(
            f"site {site!r} holds no tensor but {_described(found)}; expected a tensor or a tuple, "
            "list or mapping with one. Name the part with a selector: "
            f"layers={{{site!r}: key, index, or a list of these}}."
        )
    if found.layout != torch.strided or found.is_nested:
        kind = "nested" if found.is_nested else str(found.layout).removeprefix("torch.")
        raise CaptureError(
            f"site {site!r} holds a {kind} tensor; expected a dense one. Choose other modules "
            "with layers=."
        )
    if found.is_meta:
        raise CaptureError(
            f"site {site!r} lies on the meta device, which holds no numbers. Load the weights of "
            "the model before it is recorded."
        )
    return found


def _part(result: Any, part: int | str, asks: str) -> Any:
    if isinstance(part, int):
        if isinstance(result, tuple | list) and -len(result) <= part < len(result):
            return result[part]
        raise UnknownName(
            f"{asks} asks for an entry of a tuple or list; there is {_described(result)}."
        )
    if isinstance(result, Mapping):
        if part in result:
            return result[part]
        known = [str(key) for key in result]
    else:
        if hasattr(result, part):
            return getattr(result, part)
        known = [name for name in getattr(result, "_fields", ()) if isinstance(name, str)]
    raise UnknownName(f"{asks} is no part of {_described(result)}. {suggest(part, known)}")


def _described(result: Any) -> str:
    kind = type(result).__name__
    if isinstance(result, Tensor):
        return f"a tensor of shape {tuple(result.shape)} and dtype {result.dtype}"
    if isinstance(result, Mapping):
        return f"{kind} with keys {', '.join(map(str, result)) or '(none)'}"
    if isinstance(result, tuple | list):
        return f"{kind} of {', '.join(type(item).__name__ for item in result) or 'nothing'}"
    return kind
