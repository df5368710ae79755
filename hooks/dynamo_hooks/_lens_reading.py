"""Reading what passes through hook points."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError
from dynamo_plugin.registry.copying import copied
from dynamo_plugin.types import SequenceBatch

from ._axes import axis_roles
from ._calling import Call, Forward, attention_mask
from ._firings import Firing
from ._lens_hooks import chosen_hooks, patterns, watched
from ._probe_batches import full_probe, probe_sizes
from ._reading import Reading, Run
from ._results import select_output

__all__ = ["LensReading", "shown", "takes_mask"]

_SHOWN = 40


def takes_mask(model: nn.Module) -> bool:
    """Return whether the model is told the lengths, by an attention mask."""
    return "attention_mask" in inspect.signature(model.forward).parameters


def shown(names: list[str]) -> str:
    """Return names for a message, not too many of them."""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


@dataclass(frozen=True, slots=True)
class LensReading(Reading):
    """The hook points that are read in a model, and how it is called."""

    model: nn.Module
    points: Mapping[str, Any]
    """Site name, which is a hook name, to hook point."""
    others: Mapping[str, Any]
    """Hook name to hook point of all that the model has, for advice."""
    forward: Forward | None
    """The user's own way of calling the model."""
    output: str | int | None
    """Which part of its result is the output."""
    time_first: bool
    """Whether the model wants (time, sample, ...) values."""

    def watch(self, batch: SequenceBatch) -> tuple[dict[str, Firing], Any]:
        """Call the model once; return what passed its hooks, and its result."""
        with watched(self.points, copied) as fired:
            result = self._call(batch)
        return fired, result

    def interpret(self, seen: tuple[dict[str, Firing], Any], batch: SequenceBatch) -> Run:
        """Return states and output of a call.

        Raises
        ------
        CaptureError
            A hook fired never or several times.
        """
        fired, result = seen
        silent = [name for name in self.points if name not in fired]
        if silent:
            raise CaptureError(
                f"hook {', '.join(map(repr, silent))} did not fire in the forward pass. "
                "TransformerLens switches some hooks on by a setting, such as "
                "set_use_attn_result(True) for attn.hook_result; other parts of a model run only "
                "on other inputs. Choose hooks that fire with layers=."
            )
        for name, firing in fired.items():
            if firing.count > 1:
                raise CaptureError(
                    f"hook {name!r} fired {firing.count} times in one forward pass; expected "
                    "once. Choose other hooks with layers=, or give forward= that runs it once."
                )
        states: dict[str, Tensor] = {name: firing.calls[0] for name, firing in fired.items()}
        return Run.of(states, select_output(result, self.output))

    def mend(self, inputs: SequenceBatch) -> str:
        """Say which hooks can be stored, where that can be found out."""
        try:
            names = patterns(self._storable(inputs))
        except CaptureError:  # the model takes one number of steps only
            return "Choose other hooks with layers=."
        return f"Choose other hooks with layers=. Those that can be stored: {shown(names)}."

    def _storable(self, inputs: SequenceBatch) -> list[str]:
        """Return the hooks that fire once per pass and have axes that a store can hold."""
        longest = int(inputs.lengths.max()) if inputs.has_time else 0
        other = longest - 1 if longest > 1 else longest + (1 if inputs.has_time else 0)
        sizes = list(zip(probe_sizes([longest, other]), (longest, other), strict=True))
        one_name_each = {name: self.others[name] for name in chosen_hooks(self.others, ["**"])}
        shapes = []
        for samples, time in sizes:
            with watched(one_name_each, lambda tensor: tensor.to("meta")) as fired:
                self._call(full_probe(inputs, samples=samples, time=time))
            shapes.append({n: f.calls[0] for n, f in fired.items() if f.count == 1})
        names = []
        for name, first in shapes[0].items():
            with suppress(CaptureError, KeyError):
                axis_roles(first, shapes[1][name], sizes)
                names.append(name)
        return names

    def _call(self, batch: SequenceBatch) -> Any:
        keywords: dict[str, Any] = {}
        if "return_type" in inspect.signature(self.model.forward).parameters:
            keywords["return_type"] = "logits"
        steps = batch.values.shape[1] if batch.has_time else 1
        if takes_mask(self.model) and bool((batch.lengths < steps).any()):
            device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            keywords["attention_mask"] = attention_mask(batch, device)
        call = Call(self.forward, time_first=self.time_first, keywords=keywords)
        return call(self.model, batch)
