"""The named hook points of TransformerLens models, recognised by what they can do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dynamo_plugin.errors import CaptureError, UnknownName, suggest

from ._firings import Firing
from ._patterns import matches

__all__ = ["chosen_hooks", "hook_points", "patterns", "residual_stream", "watched"]

_RESIDUAL = re.compile(r"(\w*blocks)\.(\d+)\.hook_resid_(pre|post)")
_FINAL_NORM = re.compile(r"((?:\w+_)?ln_final)\.(?:hook_out|hook_normalized)")


def hook_points(model: object) -> dict[str, Any]:
    """Return hook name to hook point, also under aliases; nothing if the model has none.

    A model with hook points is an `nn.Module` with a mapping `hook_dict` and a method `hooks` or
    `run_with_hooks`: a `HookedRootModule` that was set up, a `TransformerBridge`, and what
    earlier releases call `HookedTransformer`.
    """
    if not isinstance(model, nn.Module):
        return {}
    points = getattr(model, "hook_dict", None)
    runs = getattr(model, "hooks", None), getattr(model, "run_with_hooks", None)
    if not isinstance(points, Mapping) or not any(map(callable, runs)):
        return {}
    usable = all(
        callable(getattr(point, "add_hook", None)) and hasattr(point, "fwd_hooks")
        for point in points.values()
    )
    return {str(name): point for name, point in points.items()} if usable else {}


def residual_stream(points: Mapping[str, Any]) -> list[str]:
    """Return the names of the residual stream: before the first block, after each, normalised.

    Empty where no block has a hook `hook_resid_post`. Where a final norm has both, its
    `hook_out` is what the unembedding sees; `hook_normalized` lacks the gain and the bias.

    >>> names = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post",
    ...          "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "ln_final.hook_normalized"]
    >>> residual_stream(dict.fromkeys(names))
    ['blocks.0.hook_resid_pre', 'blocks.0.hook_resid_post', 'blocks.1.hook_resid_post',
    'ln_final.hook_normalized']
    """
    names = []
    for name in points:
        found = _RESIDUAL.fullmatch(name)
        if found and (found[3] == "post" or int(found[2]) == 0):
            names.append(name)
    if not any(name.endswith("post") for name in names):
        return []
    norms: dict[str, str] = {}
    for name in points:
        found = _FINAL_NORM.fullmatch(name)
        if found and (found[1] not in norms or name.endswith("hook_out")):
            norms[found[1]] = name
    return [*names, *norms.values()]


def chosen_hooks(points: Mapping[str, Any], layers: Sequence[str]) -> list[str]:
    """Return the hook names that patterns choose.

    A name given in full is taken as it is. Where a pattern matches several names of one hook
    point, the alias is taken (`blocks.0.hook_resid_post` rather than `blocks.0.hook_out`).

    Raises
    ------
    UnknownName
        A pattern matches nothing.
    """
    for pattern in layers:
        if not any(matches(name, pattern) for name in points):
            raise UnknownName(
                f"layers: {pattern!r} matches no hook. {suggest(pattern, patterns(points))}"
                if any(character in pattern for character in "*?[")
                else f"layers: there is no hook {pattern!r}. {suggest(pattern, points)}"
            )
    chosen = [name for name in points if name in layers]
    taken = {id(points[name]) for name in chosen}
    names: dict[int, str] = {}
    for name, point in points.items():
        if id(point) in taken or not any(matches(name, pattern) for pattern in layers):
            continue
        if id(point) not in names or name != getattr(point, "name", name):
            names[id(point)] = name
    return [*chosen, *names.values()]


def patterns(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return names with a star for each block number, each once, as `layers=` takes them.

    >>> patterns(["blocks.0.attn.hook_q", "blocks.1.attn.hook_q", "hook_embed"])
    ['blocks.*.attn.hook_q', 'hook_embed']
    """
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))


@contextmanager
def watched(
    points: Mapping[str, Any], reader: Callable[[Tensor], Any]
) -> Iterator[dict[str, Firing]]:
    """Watch hook points; yield what fired, in order of the first firing of each.

    The hooks are added behind those that are there, so that what they read is what the network
    computes with: the user's interventions are in effect. `hook_conversion` is applied by
    `add_hook`, as for any hook of the user's. Hooks are removed one by one rather than by
    `hooks(...)` or `reset_hooks()`, which take away hooks of the user's that stand at the same
    context level.
    """
    fired: dict[str, Firing] = {}
    added: list[tuple[Any, Any]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(value: Any, *_: Any, **__: Any) -> None:
            firing = fired.setdefault(name, Firing())
            firing.count += 1
            if firing.count == 1:
                firing.calls.append(reader(_tensor(value, name)))

        return hook

    try:
        for name, point in points.items():
            before = list(map(id, point.fwd_hooks))
            point.add_hook(watch(name), dir="fwd")
            added.extend((point, each) for each in point.fwd_hooks if id(each) not in before)
        yield fired
    finally:
        for point, handle in added:
            getattr(handle, "hook", handle).remove()
            point.fwd_hooks[:] = [each for each in point.fwd_hooks if each is not handle]


def _tensor(value: Any, name: str) -> Tensor:
    """Return what `run_with_cache` would keep: of a tuple its first entry."""
    if isinstance(value, tuple) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise CaptureError(
            f"hook {name!r} carries {type(value).__name__}; expected a tensor. Choose other hooks "
            "with layers=."
        )
    return value
