"""Adapter for models with TransformerLens hook points."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError, InvalidInput, UnsupportedModel
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

from ._axes import axis_roles
from ._calling import Call, Forward
from ._evaluation import evaluation_mode
from ._hook_points import chosen_hooks, hook_points, patterns, residual_stream, watched
from ._probe_batches import full_probe, probe_sizes
from ._results import select_output
from ._site_runs import SiteRun, described, recorded
from ._tensors import copied
from ._wrappers import require_hookable, unwrapped

__all__ = ["TransformerLensAdapter"]

_SHOWN = 40


class TransformerLensAdapter(Adapter):
    """Record what passes through the hook points of a `TransformerBridge` or `HookedRootModule`.

    By default the residual stream: before the first block (`blocks.0.hook_resid_pre`), after
    every block (`blocks.*.hook_resid_post`), and behind the final norm (`ln_final.hook_out`, or
    `ln_final.hook_normalized` where there is no other). Sites are called as the hooks are, by
    the names of TransformerLens where a bridge has several. A state is what `run_with_cache`
    returns, with the model's own hooks, interventions too, in effect.

    A hook per head, such as `blocks.0.attn.hook_q`, is one row (head, d_head) per step. Attention
    patterns are refused: two of their axes follow time, so that their rows have no fixed size.

    Sequences of different lengths share a batch only where padding changes nothing, as in causal
    models. A model whose `forward` takes `attention_mask` is given one where there is padding.

    Parameters
    ----------
    layers
        Patterns over hook names, aliases included: `*` stays within one component, `**` crosses
        dots (`**.hook_resid_post`).
    forward
        `forward(model, values, lengths)` calls the model in its own way.
    output
        Key, attribute or index of the output in what the model returns; the logits of every step
        by default.

    Examples
    --------
    >>> from transformer_lens import HookedRootModule
    >>> from transformer_lens.hook_points import HookPoint
    >>> class Network(HookedRootModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)
    ...         self.hook_inner = HookPoint()
    ...         self.setup()
    ...     def forward(self, values):
    ...         return self.outer(self.hook_inner(self.inner(values).tanh()))
    >>> adapter = TransformerLensAdapter(layers=["hook_*"])
    >>> batch = SequenceBatch(torch.zeros(5, 3), torch.ones(5, dtype=torch.int64), has_time=False)
    >>> spec = adapter.describe(Network(), batch)
    >>> [(site.name, site.shape, site.axis) for site in spec.sites]
    [('hook_inner', (4,), 'sample')]
    """

    name = "transformer_lens"

    def __init__(
        self,
        *,
        layers: Sequence[str] | None = None,
        forward: Forward | None = None,
        output: str | int | None = None,
    ) -> None:
        if isinstance(layers, str) or (layers is not None and not layers):
            raise InvalidInput(
                "layers must be a sequence of at least one pattern, for example "
                f"['blocks.*.hook_resid_post']; got {layers!r}."
            )
        self.layers = None if layers is None else tuple(layers)
        self.forward = forward
        self.output = output

    def supports(self, model: object) -> bool:
        """Return whether the model is a module with hook points by name.

        These are a mapping `hook_dict` and a method `hooks` or `run_with_hooks`; a model that
        `torch.compile` or `DataParallel` wraps is read through the module inside.
        """
        return isinstance(model, nn.Module) and bool(hook_points(unwrapped(model)))

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        """Run the model on a few samples and find out which axes its hooks have.

        Parameters
        ----------
        model
            An `nn.Module` with hook points.
        inputs
            At least one sample, of the kind that will be recorded.

        Raises
        ------
        UnsupportedModel
            The model has no hook points, or is scripted, compiled or sharded inside.
        UnknownName
            A pattern of `layers` matches no hook, or `output` names nothing.
        InvalidInput
            The model has no residual stream, and `layers` was not given.
        CaptureError
            A hook never fires, fires more than once per forward pass, or has axes that cannot be
            stored; the model raises, or is not a function of each of its samples.
        """
        model = self._checked(model)
        points = hook_points(model)
        reading = _Reading(model, self._chosen(model, points), self.forward, self.output)

        def mend() -> str:
            try:
                storable = patterns(reading.storable(points, inputs))
            except CaptureError:  # the model takes one number of steps only
                return "Choose other hooks with layers=."
            return (
                "Choose other hooks with layers=. Those that can be stored: "
                f"{', '.join(storable[:_SHOWN])}{', ...' if len(storable) > _SHOWN else ''}."
            )

        with _reading_mode(model):
            return described(reading, inputs, adapter=self.name, mend=mend)

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        """Run the model once and return copies of what passed its hooks, and its output.

        Parameters
        ----------
        model
            The model that `spec` describes.
        inputs
            Sequences by decreasing length, of equal lengths unless the options of `spec` say
            `ragged_batches`; or single arrays.
        spec
            What `describe` returned; the name of the output group may have been changed.

        Raises
        ------
        CaptureError
            The model does not behave as it did when it was described.
        """
        model = self._checked(model)
        points = hook_points(model)
        missing = [site.name for site in spec.sites if site.name not in points]
        if missing:
            raise CaptureError(
                f"hook {missing[0]!r} was there when the model was described, and is gone. The "
                "model changed in between."
            )
        chosen = {site.name: points[site.name] for site in spec.sites}
        reading = _Reading(model, chosen, self.forward, self.output)
        with _reading_mode(model):
            return recorded(reading, inputs, spec, model=type(model).__name__)

    def _checked(self, given: object) -> nn.Module:
        if not isinstance(given, nn.Module) or not hook_points(unwrapped(given)):
            raise UnsupportedModel(
                "expected a TransformerBridge or a HookedRootModule whose __init__ ends with "
                f"self.setup(); got {type(given).__name__}, which has no hook points by name."
            )
        model = unwrapped(given)
        require_hookable(model)
        return model

    def _chosen(self, model: nn.Module, points: Mapping[str, Any]) -> dict[str, Any]:
        if self.layers is not None:
            names = chosen_hooks(points, self.layers)
        elif not (names := residual_stream(points)):
            shown = patterns(points)
            more = f", ... ({len(shown)} in all)" if len(shown) > _SHOWN else ""
            raise InvalidInput(
                f"{type(model).__name__} has no residual stream (no hook "
                "'blocks.0.hook_resid_post'), so that nothing is recorded by default. Choose "
                f"hooks with layers=, among: {', '.join(shown[:_SHOWN])}{more}; or read its "
                "modules instead, with another adapter=."
            )
        return {name: points[name] for name in names}


@dataclass(frozen=True, slots=True)
class _Reading:
    """One model, the hooks that are read, and the way it is called."""

    model: nn.Module
    points: Mapping[str, Any]
    forward: Forward | None
    output: str | int | None

    def __call__(self, batch: SequenceBatch) -> SiteRun:
        """Run the model once.

        Raises
        ------
        CaptureError
            A hook fired never or several times, or the model raised.
        """
        with watched(self.points, copied) as fired:
            result = self._run(batch)
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
        output = select_output(result, self.output)
        if not isinstance(output, Tensor):
            raise CaptureError(
                f"the output is a {type(output).__name__}; expected a tensor. Return one from "
                "forward=."
            )
        return SiteRun({name: firing.calls[0] for name, firing in fired.items()}, copied(output))

    def storable(self, points: Mapping[str, Any], inputs: SequenceBatch) -> list[str]:
        """Return the hooks that fire once per pass and have axes that a store can hold."""
        longest = int(inputs.lengths.max()) if inputs.has_time else 0
        other = longest - 1 if longest > 1 else longest + (1 if inputs.has_time else 0)
        sizes = list(zip(probe_sizes([longest, other]), (longest, other), strict=True))
        one_name_each = {name: points[name] for name in chosen_hooks(points, ["**"])}
        shapes = []
        for samples, time in sizes:
            with watched(one_name_each, lambda tensor: tensor.to("meta")) as fired:
                self._run(full_probe(inputs, samples=samples, time=time))
            shapes.append({n: f.calls[0] for n, f in fired.items() if f.count == 1})
        names = []
        for name, first in shapes[0].items():
            with suppress(CaptureError, KeyError):
                axis_roles(first, shapes[1][name], sizes)
                names.append(name)
        return names

    def _run(self, batch: SequenceBatch) -> Any:
        accepted = inspect.signature(self.model.forward).parameters
        keywords: dict[str, Any] = {}
        if "return_type" in accepted:
            keywords["return_type"] = "logits"
        steps = batch.values.shape[1] if batch.has_time else 1
        if "attention_mask" in accepted and bool((batch.lengths < steps).any()):
            device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            mask = torch.arange(steps)[None, :] < batch.lengths[:, None]
            keywords["attention_mask"] = mask.to(device=device, dtype=torch.int64)
        return Call(self.forward, time_first=False, keywords=keywords)(self.model, batch)


@contextmanager
def _reading_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, also what a bridge wraps without owning it."""
    wrapped = getattr(model, "original_model", None)
    inner = wrapped if isinstance(wrapped, nn.Module) else model
    with evaluation_mode(model), evaluation_mode(inner):
        yield
