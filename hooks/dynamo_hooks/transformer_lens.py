"""Adapter for models with TransformerLens hook points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dynamo_plugin.errors import InvalidInput, UnsupportedModel
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

from ._calling import Forward
from ._describing import describe_reading
from ._evaluation import reading_mode
from ._lens_hooks import chosen_hooks, hook_points, patterns, residual_stream
from ._lens_reading import LensReading, shown, takes_mask
from ._patterns import checked_patterns
from ._recording import record_reading, still_there
from ._wrappers import require_hookable, unwrapped

__all__ = ["TransformerLensAdapter"]


class TransformerLensAdapter(Adapter):
    """Record what passes through the hook points of a `TransformerBridge` or `HookedRootModule`.

    By default the residual stream: before the first block (`blocks.0.hook_resid_pre`), after
    every block (`blocks.*.hook_resid_post`), and behind the final norm (`ln_final.hook_out`, or
    `ln_final.hook_normalized` where there is no other). Sites are called as the hooks are, by
    the names of TransformerLens where a bridge has several. A state is what `run_with_cache`
    returns, with the model's own hooks, interventions too, in effect.

    A hook per head, such as `blocks.0.attn.hook_q`, is one row (head, d_head) per step. Attention
    patterns are refused: two of their axes follow time, so that their rows have no fixed size.

    Models without a residual stream are read where `layers` names hooks; their layout, (sample,
    time, ...) or (time, sample, ...), is found by probing. Those with one take samples first.

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
    >>> import torch
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
        self.layers = checked_patterns(layers, example="blocks.*.hook_resid_post")
        self.forward = forward
        self.output = output

    def supports(self, model: object) -> bool:
        """Return whether the model has hook points by name, and it is known which to read.

        Hook points are a mapping `hook_dict` and a method `hooks` or `run_with_hooks`; known is
        the residual stream, or what `layers` names. A model that `torch.compile` or
        `DataParallel` wraps is read through the module inside.
        """
        points = hook_points(unwrapped(model)) if isinstance(model, nn.Module) else {}
        return bool(points) and (self.layers is not None or bool(residual_stream(points)))

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
        names = self._chosen(model, points)

        def read(time_first: bool, probe: SequenceBatch) -> tuple[LensReading, Any]:  # noqa: FBT001
            reading = self._reading(model, names, time_first=time_first)
            return reading, reading.watch(probe)

        with reading_mode(model, *_inside(model)):
            return describe_reading(
                read,
                inputs,
                adapter=self.name,
                takes_lengths=inputs.has_time and (self.forward is not None or takes_mask(model)),
                # Those of TransformerLens take samples first; others are somebody's own.
                layouts=[False] if residual_stream(points) else [False, True],
            )

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
        names = [site.name for site in spec.sites]
        reading = self._reading(model, names, time_first=bool(spec.options["time_first"]))
        with reading_mode(model, *_inside(model)):
            return record_reading(reading, inputs, spec)

    def _reading(self, model: nn.Module, names: Sequence[str], *, time_first: bool) -> LensReading:
        points = hook_points(model)
        return LensReading(
            model,
            still_there(points, names, kind="hook"),
            points,
            self.forward,
            self.output,
            time_first=time_first,
        )

    def _checked(self, given: object) -> nn.Module:
        if not isinstance(given, nn.Module) or not hook_points(unwrapped(given)):
            raise UnsupportedModel(
                "expected a TransformerBridge or a HookedRootModule whose __init__ ends with "
                f"self.setup(); got {type(given).__name__}, which has no hook points by name."
            )
        model = unwrapped(given)
        require_hookable(model)
        return model

    def _chosen(self, model: nn.Module, points: Mapping[str, Any]) -> list[str]:
        if self.layers is not None:
            return chosen_hooks(points, self.layers)
        names = residual_stream(points)
        if not names:
            raise InvalidInput(
                f"{type(model).__name__} has no residual stream (no hook "
                "'blocks.0.hook_resid_post'), so that nothing is recorded by default. Choose "
                f"hooks with layers=, among: {shown(patterns(points))}; or read its modules "
                "instead, with another adapter=."
            )
        return names


def _inside(model: nn.Module) -> list[nn.Module]:
    """Return what a bridge wraps without owning it."""
    wrapped = getattr(model, "original_model", None)
    return [wrapped] if isinstance(wrapped, nn.Module) else []
