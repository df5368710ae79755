"""How a foreign model wants to be called."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError, DynamoError
from dynamo_plugin.types import SequenceBatch

__all__ = [
    "Call",
    "Caller",
    "Forward",
    "attention_mask",
    "call_failed",
    "lengths_parameter",
    "moved",
]

Caller = Callable[[nn.Module, SequenceBatch], Any]
"""Runs a model on a batch; `Call`, or an adapter's own."""

Forward = Callable[[Any, Tensor, Tensor], Any]
"""Calls a model: takes the model, the values and the lengths; returns what the model returns."""

# Dtypes of inputs; weights may be stored in others, such as float8.
_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LENGTHS_NAMES = (
    "lengths",
    "length",
    "seq_lens",
    "seq_lengths",
    "sequence_lengths",
    "input_lengths",
)


def lengths_parameter(call: Callable[..., Any]) -> str | None:
    """Return the name under which a model's forward takes the lengths, if it does.

    >>> def forward(values, seq_lens): ...
    >>> lengths_parameter(forward)
    'seq_lens'
    """
    function = getattr(call, "__func__", call)
    try:
        return _found[function]
    except KeyError:
        found = _found[function] = _lengths_parameter(call)
        return found
    except TypeError:  # no weak reference to it, or no hash of it, can be had
        return _lengths_parameter(call)


_found: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()
"""What was found out about a function: models are called once for every batch."""


def _lengths_parameter(call: Callable[..., Any]) -> str | None:
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):  # some builtins have none
        return None
    return next((name for name in _LENGTHS_NAMES if name in parameters), None)


def attention_mask(batch: SequenceBatch, device: torch.device) -> Tensor:
    """Return (sample, time) int64, one at real steps.

    >>> attention_mask(SequenceBatch(torch.zeros(2, 2), torch.tensor([2, 1])), torch.device("cpu"))
    tensor([[1, 1],
            [1, 0]])
    """
    time = torch.arange(batch.values.shape[1])
    return (time < batch.lengths[:, None]).to(device=device, dtype=torch.int64)


def call_failed(model: object, error: Exception, way: str) -> CaptureError:
    """Return the error of a model that raised; `way` says how it was called."""
    return CaptureError(
        f"{type(model).__name__} raised {type(error).__name__}: {error}. It was called {way}. "
        "Where it wants to be called differently, pass forward=lambda model, values, lengths: ..."
    )


@dataclass(frozen=True, slots=True)
class Call:
    """One way of calling a model."""

    forward: Forward | None
    """The user's own way, which takes the place of the plain call."""
    time_first: bool
    """Whether the model wants (time, sample, ...) values."""
    keywords: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the plain call."""

    def __call__(self, model: nn.Module, batch: SequenceBatch) -> Any:
        """Run the model on a batch.

        Ids go to the device of the model, the first that holds numbers where it has several;
        numbers also to the dtype of its parameters. Lengths stay on the CPU, where
        `pack_padded_sequence` wants them; inputs without time have none.

        Raises
        ------
        CaptureError
            The model raised; says how it was called.
        """
        values = moved(batch.values, model)
        if self.time_first:
            values = values.transpose(0, 1).contiguous()
        name = lengths_parameter(model.forward) if batch.has_time else None
        keywords = dict(self.keywords) if name is None else {**self.keywords, name: batch.lengths}
        try:
            if self.forward is not None:
                return self.forward(model, values, batch.lengths)
            return model(values, **keywords)
        except DynamoError:
            raise
        except Exception as error:
            if self.forward is not None:
                way = "forward(model, values, lengths)"
            else:
                named = {name: "lengths"} if name else {}
                shown = [
                    f"{key}={named.get(key, key if isinstance(value, Tensor) else repr(value))}"
                    for key, value in keywords.items()
                ]
                way = f"model({', '.join(['values', *shown])})"
            dtype = str(values.dtype).removeprefix("torch.")
            way = f"as {way} with values of shape {tuple(values.shape)} and dtype {dtype}"
            raise call_failed(model, error, way) from error


def moved(values: Tensor, model: nn.Module) -> Tensor:
    """Return the values where, and in the dtype in which, a model takes them.

    >>> moved(torch.zeros(2, dtype=torch.float64), nn.Linear(2, 3)).dtype
    torch.float32
    """
    held = itertools.chain(model.parameters(), model.buffers())
    place = next((tensor.device for tensor in held if not tensor.is_meta), torch.device("cpu"))
    if not values.is_floating_point():
        return values.to(place)
    dtype = next((p.dtype for p in model.parameters() if p.dtype in _COMPUTED), values.dtype)
    return values.to(device=place, dtype=dtype)
