"""Which modules of a flax.nnx network have states, and what these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_plugin.errors import CaptureError, UnknownName, suggest

from ._nnx_arrays import is_abstract, is_array
from ._nnx_calls import Calls, callable_modules
from ._patterns import matches

__all__ = [
    "UNSEEN",
    "is_a",
    "matching_modules",
    "named_modules",
    "outermost_modules",
    "state_array",
    "stepped_cells",
]

UNSEEN = (
    "What runs inside nnx.jit, nnx.scan, nnx.vmap or nnx.remat runs on copies of the modules, and "
    "what is called other than as module(...) is not seen either."
)


def named_modules(model: Any) -> dict[str, Any]:
    """Return site name to module; the network itself is named after its class."""
    return {
        path or type(module).__name__.lower(): module
        for path, module in callable_modules(model).items()
    }


def matching_modules(model: Any, patterns: Sequence[str]) -> dict[str, Any]:
    """Return site name to module for those that patterns choose.

    Raises
    ------
    UnknownName
        A pattern matches no module.
    """
    modules = named_modules(model)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in modules):
            raise UnknownName(f"layers: {pattern!r} matches no module. {suggest(pattern, modules)}")
    return {
        name: module
        for name, module in modules.items()
        if any(matches(name, pattern) for pattern in patterns)
    }


def outermost_modules(model: Any, called: Mapping[str, Calls]) -> dict[str, Any]:
    """Return the modules that a network itself calls, seen through `nnx.Sequential`.

    `nnx.Dropout` is left out: in evaluation mode it returns what it is given. A network that is
    itself an `nnx.RNN` or `nnx.Bidirectional` stands for itself.

    Parameters
    ----------
    model
        The network.
    called
        Path to calls; their results say whether they ran inside a transformation of JAX.

    Raises
    ------
    CaptureError
        No module is called, or one is called inside a transformation of JAX.
    """
    modules = callable_modules(model)
    transparent = {path for path, each in modules.items() if is_a("Sequential", each)} | {""}
    chosen = {
        path: modules[path]
        for path, calls in called.items()
        if path not in transparent
        and not is_a("Dropout", modules[path])
        and any(transparent.issuperset(callers) for callers in calls.callers)
    }
    for path in chosen:
        if any(called[path].results):
            raise _inside_transformation(path)
    if not chosen and "" in called and (is_a("RNN", model) or is_a("Bidirectional", model)):
        return {name: module for name, module in named_modules(model).items() if module is model}
    if not chosen:
        raise CaptureError(
            f"no module inside {type(model).__name__} was called in the forward pass. {UNSEEN} "
            "Call what nnx.jit wraps with forward=, for example "
            "forward=lambda model, values, lengths: type(model).__call__.__wrapped__(model, "
            "values), and give states that no module returns a module of their own."
        )
    return chosen


def stepped_cells(
    model: Any, chosen: Mapping[str, Any], called: Mapping[str, Calls], steps: int
) -> frozenset[str]:
    """Return the sites that are recurrent cells and were called once per step."""
    paths = {name: "" if module is model else name for name, module in chosen.items()}
    return frozenset(
        name
        for name, module in chosen.items()
        if is_a("RNNCellBase", module)
        and paths[name] in called
        and called[paths[name]].count == steps
    )


def state_array(name: str, module: Any, result: Any) -> Any:
    """Return the array that is the state of a module, of tuples one entry.

    Recurrent modules return (carry, output), or only the output.
    """
    import jax

    if isinstance(result, tuple | list) and result:
        recurrent = any(is_a(kind, module) for kind in ("RNNCellBase", "RNN", "Bidirectional"))
        floating = [
            each
            for each in result
            if is_array(each) and jax.numpy.issubdtype(each.dtype, jax.numpy.floating)
        ]
        result = result[-1] if recurrent else (floating or list(result))[0]
    if not is_array(result):
        raise CaptureError(
            f"module {name!r} ({type(module).__name__}) returned {type(result).__name__}; expected "
            "an array, or a tuple with one. Choose other modules with layers=."
        )
    if is_abstract(result):
        raise _inside_transformation(name)
    return result


def _inside_transformation(name: str) -> CaptureError:
    return CaptureError(
        f"module {name!r} runs inside a transformation of JAX (jit, scan, vmap, grad), where "
        "arrays have no values to record. Choose other modules with layers=, put a cell into an "
        "nnx.RNN, which is read as a whole, or give forward= that calls the module outside."
    )


def is_a(kind: str, module: Any) -> bool:
    """Return whether a module is of one of the classes of flax.nnx."""
    from flax import nnx

    return isinstance(module, getattr(nnx, kind))
