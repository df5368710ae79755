"""One flax.nnx network, the modules that are read, and the way it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamo_plugin.errors import CaptureError, DynamoError
from dynamo_plugin.types import SequenceBatch

from ._calling import Forward, call_failed, lengths_parameter
from ._nnx_arrays import is_abstract, is_array, to_jax, to_torch
from ._nnx_calls import Calls, callable_modules, watched_calls
from ._probe_batches import full_probe
from ._results import select_output
from ._site_runs import SiteRun

__all__ = ["NNXReading", "outermost_modules", "site_name"]


def site_name(path: str, module: Any) -> str:
    """Return the path of a module; the network itself is called after its class."""
    return path or type(module).__name__.lower()


@dataclass(frozen=True, slots=True)
class NNXReading:
    """Runs a network and reads modules of it."""

    model: Any
    """A copy of the network, in evaluation mode."""
    chosen: Mapping[str, Any]
    """Site name to module of the copy."""
    originals: Mapping[str, Any]
    """Path to module of the network itself; these must not run."""
    forward: Forward | None
    """The user's own way of calling it."""
    output: str | int | None
    """Which part of its result is the output."""

    def __call__(self, batch: SequenceBatch) -> SiteRun:
        """Run the network once.

        Raises
        ------
        CaptureError
            A module ran never, several times or inside a transformation, or the network raised.
        """

        def read(name: str, result: Any) -> Tensor:
            return to_torch(_result_array(name, self.chosen[name], result), f"site {name!r}")

        with watched_calls(self.chosen, read, forbidden=self.originals) as called:
            result = self.run(batch)
        silent = [name for name in self.chosen if name not in called]
        if silent:
            raise CaptureError(
                f"module {', '.join(map(repr, silent))} was not called in the forward pass. "
                f"{_UNSEEN} Choose modules that are called with layers=, or give forward= that "
                "calls them."
            )
        states = {
            name: self._state(name, calls, has_time=batch.has_time)
            for name, calls in called.items()
        }
        return SiteRun(states, self._selected(result))

    def run(self, batch: SequenceBatch) -> Any:
        """Call the network and return what it returns.

        Raises
        ------
        CaptureError
            The network raised; says how it was called.
        """
        values = to_jax(batch.values, "the inputs")
        lengths = to_jax(batch.lengths, "the lengths")
        name = lengths_parameter(type(self.model).__call__)
        try:
            if self.forward is not None:
                return self.forward(self.model, values, lengths)
            return self.model(values, **({} if name is None else {name: lengths}))
        except DynamoError:
            raise
        except Exception as error:
            if self.forward is not None:
                way = "forward(model, values, lengths)"
            else:
                way = "model(values)" if name is None else f"model(values, {name}=lengths)"
            way = f"as {way} with values of shape {values.shape} and dtype {values.dtype}"
            raise call_failed(self.model, error, way) from error

    def _state(self, name: str, calls: Calls, *, has_time: bool) -> Tensor:
        if has_time and _is_a("RNNCellBase", self.chosen[name]):
            steps: list[Tensor] = calls.results
            if any(step.shape != steps[0].shape for step in steps):
                raise CaptureError(
                    f"cell {name!r} returned arrays of different shapes from call to call, so "
                    "that its calls are not the steps of one recurrence. Choose other modules "
                    "with layers=."
                )
            return torch.stack(steps)
        if calls.count > 1:
            raise CaptureError(
                f"module {name!r} was called {calls.count} times in one forward pass; expected "
                "once. Choose other modules with layers=, or give forward= that calls it once."
            )
        state: Tensor = calls.results[0]
        return state

    def _selected(self, result: Any) -> Tensor:
        import jax

        def converted(leaf: Any) -> Any:
            try:
                return to_torch(leaf, "the output") if is_array(leaf) else leaf
            except CaptureError:  # an error only where this part is the output
                return leaf

        output = select_output(jax.tree.map(converted, result), self.output)
        assert isinstance(output, Tensor)  # JAX knows no packed sequences
        return output


_UNSEEN = (
    "What runs inside nnx.jit, nnx.scan, nnx.vmap or nnx.remat runs on copies of the modules, and "
    "what is called other than as module(...) is not seen either."
)


def outermost_modules(reading: NNXReading, inputs: SequenceBatch) -> dict[str, Any]:
    """Return the modules that a network itself calls, seen through `nnx.Sequential`.

    `nnx.Dropout` is left out: in evaluation mode it returns what it is given. A network that is
    itself an `nnx.RNN` or `nnx.Bidirectional` stands for itself.

    Raises
    ------
    CaptureError
        No module is called, or one is called inside a transformation of JAX.
    """
    import jax

    modules = callable_modules(reading.model)
    time = int(inputs.lengths.max()) if inputs.has_time else 0

    def abstract(_: str, result: Any) -> bool:
        return any(map(is_abstract, jax.tree.leaves(result)))

    with watched_calls(modules, abstract, forbidden=reading.originals) as called:
        reading.run(full_probe(inputs, samples=2, time=time))
    transparent = {path for path, each in modules.items() if _is_a("Sequential", each)} | {""}
    chosen = {
        path: modules[path]
        for path, calls in called.items()
        if path not in transparent
        and not _is_a("Dropout", modules[path])
        and any(transparent.issuperset(callers) for callers in calls.callers)
    }
    for path in chosen:
        if any(called[path].results):
            raise _inside_transformation(path)
    root = reading.model
    if not chosen and "" in called and (_is_a("RNN", root) or _is_a("Bidirectional", root)):
        return {site_name("", root): root}
    if not chosen:
        raise CaptureError(
            f"no module inside {type(root).__name__} was called in the forward pass. {_UNSEEN} "
            "Call what nnx.jit wraps with forward=, for example "
            "forward=lambda model, values, lengths: type(model).__call__.__wrapped__(model, "
            "values), and give states that no module returns a module of their own."
        )
    return chosen


def _result_array(name: str, module: Any, result: Any) -> Any:
    """Return the array that is the state of a module, of tuples one entry.

    Recurrent modules return (carry, output), or only the output.
    """
    import jax

    if isinstance(result, tuple | list) and result:
        recurrent = any(_is_a(kind, module) for kind in ("RNNCellBase", "RNN", "Bidirectional"))
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


def _is_a(kind: str, module: Any) -> bool:
    from flax import nnx

    return isinstance(module, getattr(nnx, kind))
