"""The flax.nnx adapter against forward passes written in NumPy."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import dynamo_plugin
from dynamo_hooks.flax_nnx import FlaxNNXAdapter
from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

pytest.importorskip("flax", reason="needs the extra dynamo-plugin[jax]")

# Nearly all the time here is compilation, of programs that run once.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
from flax import nnx


class Layered(nnx.Module):
    """Feed-forward, with what behaves otherwise in training."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.norm.mean[...] = jnp.arange(4.0)

    def __call__(self, values: Any) -> Any:
        for layer in self.layers:
            values = self.dropout(jnp.tanh(layer(values)))
        return self.head(self.norm(values))


class Reader(nnx.Module):
    """Recurrent: a GRU or LSTM over embedded ids."""

    def __init__(self, cell: str = "GRUCell", seed: int = 0, **options: Any) -> None:
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(7, 3, rngs=rngs)
        self.rnn = nnx.RNN(getattr(nnx, cell)(3, 4, rngs=rngs), **options)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        states = self.rnn(self.embed(ids))
        return self.head(states[-1] if isinstance(states, tuple) else states)


def arrays(*shape: int) -> SequenceBatch:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return SequenceBatch(values, torch.ones(shape[0], dtype=torch.int64), has_time=False)


def sequences(*shape: int) -> SequenceBatch:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return SequenceBatch(values, torch.full((shape[0],), shape[1]))


def ids_of(lengths: list[int], seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 7, (len(lengths), max(lengths)), generator=generator)
    counted = torch.tensor(lengths)
    ids[torch.arange(max(lengths))[None, :] >= counted[:, None]] = 0
    return SequenceBatch(ids, counted)


def captured(
    model: object, batch: SequenceBatch, **options: Any
) -> tuple[TrajectorySpec, Trajectory]:
    adapter = FlaxNNXAdapter(**options)
    assert adapter.supports(model)
    spec = adapter.describe(model, batch)
    return spec, adapter.record(model, batch, spec)


def linear(module: nnx.Linear, x: NDArray[Any]) -> NDArray[Any]:
    assert module.bias is not None
    result: NDArray[Any] = x @ np.asarray(module.kernel[...]) + np.asarray(module.bias[...])
    return result


def logistic(x: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = 1 / (1 + np.exp(-x))
    return result


def gru(cell: Any, sequence: NDArray[Any]) -> NDArray[Any]:
    """Step one sequence (time, feature) by hand; (time, unit)."""
    h = np.zeros(4)
    states = []
    for x in sequence:
        xr, xz, xn = np.split(linear(cell.dense_i, x), 3)
        hr, hz, hn = np.split(h @ np.asarray(cell.dense_h.kernel[...]), 3)
        r, z = logistic(xr + hr), logistic(xz + hz)
        h = (1 - z) * np.tanh(xn + r * hn) + z * h
        states.append(h)
    return np.stack(states)


def same(actual: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_depth_is_time_in_feed_forward_networks() -> None:
    model = Layered()
    batch = arrays(3, 3)
    spec, trajectory = captured(model, batch)
    assert [(site.name, site.shape, site.axis, site.dtype) for site in spec.sites] == [
        ("layers.0", (4,), "sample", "float32"),
        ("layers.1", (4,), "sample", "float32"),
        ("norm", (4,), "sample", "float32"),
        ("head", (2,), "sample", "float32"),
    ]
    assert (spec.output.shape, spec.output.axis) == ((2,), "sample")
    first = linear(model.layers[0], batch.values.numpy())
    second = linear(model.layers[1], np.tanh(first))
    normed = (np.tanh(second) - np.arange(4)) / np.sqrt(1 + 1e-5)
    expected = [first, second, normed, linear(model.head, normed)]
    for name, state in zip(trajectory.states, expected, strict=True):
        same(trajectory.states[name], state)
    same(trajectory.outputs["output2"], expected[-1])


@pytest.mark.parametrize(
    ("lengths", "time_major"),
    [([4, 2], False), pytest.param([4, 4, 4], True, marks=pytest.mark.slow)],
)
def test_recurrent_states_match_a_cell_stepped_by_hand(
    lengths: list[int], time_major: bool
) -> None:
    model = Reader()
    batch = ids_of(lengths)
    model.rnn.time_major = time_major
    spec, trajectory = captured(model, batch, layers=["rnn", "embed"])
    assert spec.options["time_first"] is time_major
    sizes = {site.name: (site.shape, site.axis) for site in spec.sites}
    assert sizes == {"embed": ((3,), "time"), "rnn": ((4,), "time")}
    assert spec.options["ragged_batches"] is True
    for row, length in enumerate(batch.lengths.tolist()):
        embedded = np.asarray(model.embed.embedding[...])[batch.values[row, :length].numpy()]
        states = gru(model.rnn.cell, embedded)
        same(trajectory.states["embed"][row, :length], embedded)
        same(trajectory.states["rnn"][row, :length], states)
        same(trajectory.outputs["output2-per-step"][row, :length], linear(model.head, states))


@pytest.mark.slow
def test_what_an_rnn_returns_beside_its_states_is_not_its_state() -> None:
    batch = ids_of([4, 4, 4])
    model = Reader(return_carry=True)
    _, trajectory = captured(model, batch)
    embedded = np.asarray(model.embed.embedding[...])[batch.values[1].numpy()]
    same(trajectory.states["rnn"][1], gru(model.rnn.cell, embedded))


@pytest.mark.slow
def test_a_recurrent_module_is_a_model_and_is_given_lengths() -> None:
    model = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), reverse=True, keep_order=True)
    values = sequences(3, 4, 3).values
    values[1:, 2:] = 0
    spec, trajectory = captured(model, SequenceBatch(values, torch.tensor([4, 2, 2])))
    assert [site.name for site in spec.sites] == ["rnn"]
    assert spec.options["ragged_batches"] is True
    expected = gru(model.cell, values[1, :2].flip(0).numpy())[::-1]
    same(trajectory.states["rnn"][1, :2], expected)
    torch.testing.assert_close(trajectory.outputs["output4-per-step"], trajectory.states["rnn"])


class Stepping(nnx.Module):
    """Steps its cell by hand, from either end."""

    def __init__(self, *, backwards: bool = False) -> None:
        self.cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.backwards = backwards

    def __call__(self, values: Any) -> Any:
        carry = self.cell.initialize_carry(values[:, 0].shape, nnx.Rngs(0))
        for step in list(values.swapaxes(0, 1))[:: -1 if self.backwards else 1]:
            carry, _ = self.cell(carry, step)
        return self.head(carry)


@pytest.mark.parametrize("backwards", [False, True])
def test_cells_stepped_in_a_loop_give_one_state_per_step(backwards: bool) -> None:
    model = Stepping(backwards=backwards)
    batch = sequences(2, 4, 3)
    spec, trajectory = captured(model, batch)
    assert [(site.name, site.shape, site.axis) for site in spec.sites] == [
        ("cell", (4,), "time"),
        ("head", (2,), "sample"),
    ]
    assert spec.options["reversed_cells"] == (["cell"] if backwards else [])
    assert spec.options["ragged_batches"] is False  # the last state is that of the padding
    order = -1 if backwards else 1
    for row in range(2):
        states = gru(model.cell, batch.values[row].numpy()[::order])
        same(trajectory.states["cell"][row], states[::order])
        same(trajectory.outputs["output2"][row], linear(model.head, states[-1]))


@pytest.mark.slow
def test_cells_whose_direction_does_not_show() -> None:
    class Leading(Stepping):
        """Every step sees the last one too, and runs forwards."""

        def __call__(self, values: Any) -> Any:
            return super().__call__(values + values[:, -1:])

    batch = sequences(2, 4, 3)
    with pytest.raises(CaptureError, match=r"cell 'cell' .* does not show .*reversed_cells="):
        captured(Leading(), batch)
    spec = FlaxNNXAdapter(reversed_cells=["c*"]).describe(Leading(), batch)
    assert spec.options["reversed_cells"] == ["cell"]
    with pytest.raises(UnknownName, match=r"reversed_cells: 'head' matches no cell"):
        captured(Stepping(), batch, reversed_cells=["head"])


@pytest.mark.slow
def test_cells_that_are_not_called_once_per_step() -> None:
    class Decoding(Stepping):
        """Calls its cell twice, whatever the number of steps."""

        def __call__(self, values: Any) -> Any:
            step = next(iter(values.swapaxes(0, 1)))
            carry = jnp.zeros((len(values), 4))
            for _ in range(2):
                carry, _ = self.cell(carry, step)
            return self.head(carry)

    spec, _ = captured(Decoding(), sequences(2, 4, 3))
    assert (spec.sites[0].shape, spec.sites[0].axis) == ((2, 4), "sample")
    # On as many steps as there are calls these look like the steps.
    with pytest.raises(CaptureError, match=r"'cell' \(GRUCell\) was called 2 times on inputs of 1"):
        captured(Decoding(), sequences(2, 2, 3))


@pytest.mark.slow
def test_layout_is_found() -> None:
    class TimeFirst(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

        def __call__(self, values: Any) -> Any:
            return self.inner(values).cumsum(0)

    model = TimeFirst()
    batch = sequences(4, 4, 3)
    spec, trajectory = captured(model, batch)
    assert spec.options["time_first"] is True
    inner = linear(model.inner, batch.values.numpy())
    same(trajectory.states["inner"], inner)
    same(trajectory.outputs["output4-per-step"], inner.cumsum(1))


def test_sequential_networks_are_seen_through() -> None:
    rngs = nnx.Rngs(0)
    block = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), jnp.tanh, nnx.Linear(4, 2, rngs=rngs))
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), block)
    spec, trajectory = captured(model, arrays(3, 3))
    names = ["layers.0", "layers.1.layers.0", "layers.1.layers.2"]
    assert [site.name for site in spec.sites] == names
    torch.testing.assert_close(trajectory.states[names[-1]], trajectory.outputs["output2"])
    spec, _ = captured(model, arrays(3, 3), layers=["layers.1"])
    assert [site.name for site in spec.sites] == ["layers.1"]


@pytest.mark.slow
def test_feature_maps_keep_their_axes() -> None:
    class Convolved(nnx.Module):
        def __init__(self) -> None:
            self.stem = nnx.Linear(3, 5, rngs=nnx.Rngs(0))  # a convolution of one pixel

        def __call__(self, images: Any) -> Any:
            return self.stem(images).mean((1, 2))

    spec, trajectory = captured(Convolved(), arrays(3, 4, 6, 3))
    assert (spec.sites[0].shape, spec.sites[0].axis) == ((4, 6, 5), "sample")
    same(trajectory.outputs["output5"], trajectory.states["stem"].mean((1, 2)).numpy())


class Parent(nnx.Module):
    def __init__(self, features: int = 3) -> None:
        self.linear = nnx.Linear(3, features, rngs=nnx.Rngs(0))

    def __call__(self, values: Any) -> Any:
        return self.linear(values)


class Child(Parent):
    """Calls the method of its parent: one call, not two."""

    def __call__(self, values: Any) -> Any:
        return 2 * super().__call__(values)


class Heir(Parent):
    """Inherits the method: the class has none of its own to put back."""


def test_subclasses_are_told_from_their_parents() -> None:
    class Family(nnx.Module):
        def __init__(self) -> None:
            self.parent, self.child, self.heir = Parent(), Child(), Heir()

        def __call__(self, values: Any) -> Any:
            return self.heir(self.child(self.parent(values)))

    before = [vars(kind).get("__call__") for kind in (Parent, Child, Heir, nnx.Linear)]
    _, trajectory = captured(Family(), arrays(3, 3))
    assert list(trajectory.states) == ["parent", "child", "heir"]
    weights = Parent().linear
    expected = 2 * linear(weights, trajectory.states["parent"].numpy())
    same(trajectory.states["child"], expected)
    same(trajectory.states["heir"], linear(weights, expected))
    assert [vars(kind).get("__call__") for kind in (Parent, Child, Heir, nnx.Linear)] == before


def test_modules_that_run_never_or_twice_are_named() -> None:
    class Twice(Layered):
        def __call__(self, values: Any) -> Any:
            return self.layers[0](values) + self.layers[0](values)

    batch = arrays(3, 3)
    with pytest.raises(CaptureError, match=r"'layers.0' was called 2 times"):
        captured(Twice(), batch)
    with pytest.raises(CaptureError, match=r"'head' was not called .*nnx\.jit"):
        captured(Twice(), batch, layers=["head"])
    with pytest.raises(UnknownName, match=r"Did you mean 'layers\.0'"):
        captured(Layered(), batch, layers=["layer.0"])
    with pytest.raises(InvalidInput, match="sequence of at least one pattern"):
        FlaxNNXAdapter(layers="head")


def test_what_runs_inside_transformations_is_refused() -> None:
    class Jitted(Layered):
        @nnx.jit
        def __call__(self, values: Any) -> Any:
            return self.head(self.layers[0](values))

    batch = arrays(3, 3)
    with pytest.raises(CaptureError, match=r"no module inside Jitted was called.*nnx\.jit"):
        captured(Jitted(), batch)

    def plain(model: Any, values: Any, lengths: Any) -> Any:
        return type(model).__call__.__wrapped__(model, values)  # type: ignore[attr-defined]

    _, trajectory = captured(Jitted(), batch, forward=plain)
    assert list(trajectory.states) == ["layers.0", "head"]

    class Scanned(Stepping):
        def __call__(self, values: Any) -> Any:
            carry = jnp.zeros((len(values), 4))
            carry, _ = jax.lax.scan(lambda c, x: self.cell(c, x), carry, values.swapaxes(0, 1))
            return self.head(carry)

    for options in ({}, {"layers": ["cell"]}):
        with pytest.raises(CaptureError, match=r"'cell' runs inside a transformation.*nnx\.RNN"):
            captured(Scanned(), sequences(3, 4, 3), **options)


def test_layers_that_are_jitted_themselves_are_read() -> None:
    class Fast(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

        @nnx.jit
        def __call__(self, values: Any) -> Any:
            return jnp.tanh(self.inner(values))

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.fast = Fast()

        def __call__(self, values: Any) -> Any:
            return self.fast(values)

    model = Net()
    batch = arrays(3, 3)
    model(jnp.asarray(batch.values.numpy()))  # compiled before it is watched
    _, trajectory = captured(model, batch)
    same(trajectory.states["fast"], np.tanh(linear(model.fast.inner, batch.values.numpy())))


def leaves(model: nnx.Module) -> list[Any]:
    """Every array of a model, random streams included, and every flag."""

    def plain(leaf: Any) -> Any:
        keys = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if keys else leaf).tolist()

    state = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    arrays = [(jax.tree_util.keystr(path), plain(leaf)) for path, leaf in state]
    names = ("deterministic", "use_running_average")
    flags = [
        (path, {name: getattr(module, name) for name in names if hasattr(module, name)}, id(module))
        for path, module in nnx.iter_modules(model)
    ]
    kinds = {type(module) for _, module in nnx.iter_modules(model)}
    calls = sorted((kind.__qualname__, id(vars(kind).get("__call__"))) for kind in kinds)
    return [arrays, flags, calls, sorted(vars(model))]


def trained() -> Layered:
    model = Layered()
    model.train()  # type: ignore[no-untyped-call]
    model(jnp.ones((3, 3)))  # advances the random stream and the batch statistics
    model.dropout.deterministic = True
    return model


def test_model_is_left_as_it_was_found() -> None:
    model = trained()
    before = leaves(model)
    captured(model, arrays(3, 3))
    assert leaves(model) == before
    assert model.norm.use_running_average is False


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_model_is_left_as_it_was_found_after_exceptions(error: BaseException) -> None:
    class Fused(Layered):
        blown = False

        def __call__(self, values: Any) -> Any:
            result = super().__call__(values)
            if Fused.blown:
                raise error
            return result

    model = Fused()
    model.train()  # type: ignore[no-untyped-call]
    batch = arrays(3, 3)
    before = leaves(model)
    adapter = FlaxNNXAdapter()
    spec = adapter.describe(model, batch)
    Fused.blown = True
    expected = CaptureError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected):
        adapter.record(model, batch, spec)
    with pytest.raises(expected):
        adapter.describe(model, batch)
    assert leaves(model) == before


def test_networks_that_reach_around_the_copy_are_refused() -> None:
    class Holding(Layered):
        def __init__(self) -> None:
            super().__init__()
            layer: Any = self.layers[0]
            self.held: Callable[[Any], Any] = lambda values: layer(values)

        def __call__(self, values: Any) -> Any:
            return self.head(self.held(values))

    batch = arrays(3, 3)
    with pytest.raises(CaptureError, match=r"'layers\.0' of the network itself was called"):
        captured(Holding(), batch)
    network = Layered()
    with pytest.raises(CaptureError, match=r"Use the model that forward= is given"):
        captured(network, batch, forward=lambda model, values, lengths: network(values))


@pytest.mark.slow
def test_other_threads_may_call_the_network_meanwhile() -> None:
    network = Layered()
    seen: list[Any] = []

    def elsewhere(model: Any, values: Any, lengths: Any) -> Any:
        thread = threading.Thread(target=lambda: seen.append(network(values)))
        thread.start()
        thread.join()
        return model(values)

    _, trajectory = captured(network, arrays(3, 3), forward=elsewhere)
    assert len(seen) > 1
    same(trajectory.states["layers.0"], linear(network.layers[0], arrays(3, 3).values.numpy()))


def test_networks_of_one_class_are_read_in_several_threads() -> None:
    networks = [Layered(seed) for seed in range(3)]
    batch = arrays(3, 3)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda network: captured(network, batch)[1], networks))
    for network, trajectory in zip(networks, results, strict=True):
        same(trajectory.states["layers.0"], linear(network.layers[0], batch.values.numpy()))


def test_random_numbers_in_evaluation_mode_are_refused() -> None:
    class Noisy(Layered):
        def __call__(self, values: Any) -> Any:
            noise = jax.random.normal(self.dropout.rngs(), values.shape)
            return self.layers[0](values) + noise[:, :1]

    with pytest.raises(CaptureError, match="the output differs between two runs"):
        captured(Noisy(), arrays(3, 3))


def test_attention_patterns_are_refused() -> None:
    class Pattern(nnx.Module):
        def __call__(self, values: Any) -> Any:
            return values @ values.swapaxes(1, 2)

    class Attending(nnx.Module):
        def __init__(self) -> None:
            self.pattern = Pattern()

        def __call__(self, values: Any) -> Any:
            return self.pattern(values) @ values

    with pytest.raises(CaptureError, match=r"'pattern' .* two axes follow time"):
        captured(Attending(), sequences(3, 4, 3))


@contextmanager
def sixty_four_bits() -> Iterator[None]:
    before = bool(jax.config.read("jax_enable_x64"))
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def test_inputs_reach_the_network_in_a_documented_dtype() -> None:
    seen: list[str] = []

    def watched(model: Any, values: Any, lengths: Any) -> Any:
        seen.append(f"{values.dtype} {lengths.dtype}")
        return model(values)

    wide = SequenceBatch(
        arrays(3, 3).values.double(), torch.ones(3, dtype=torch.int64), has_time=False
    )
    captured(Layered(), wide, forward=watched)
    assert set(seen) == {"float32 int32"}
    ids = SequenceBatch(torch.tensor([[1, 2**31]]), torch.tensor([2]))
    with pytest.raises(InvalidInput, match=r"from 1 to 2147483648.*jax_enable_x64"):
        captured(Reader(), ids)


@pytest.mark.slow
def test_inputs_of_64_bits_reach_the_network_where_jax_has_them() -> None:
    seen: list[str] = []

    def watched(model: Any, values: Any, lengths: Any) -> Any:
        seen.append(f"{values.dtype} {lengths.dtype}")
        return model(values)

    batch = arrays(3, 3)
    wide = SequenceBatch(batch.values.double(), batch.lengths, has_time=False)
    model = Layered()
    with sixty_four_bits():
        spec, trajectory = captured(model, wide, forward=watched)
        assert set(seen) == {"float64 int64"}
        assert spec.sites[0].dtype == "float64"
        assert trajectory.states["layers.0"].dtype == torch.float64


@pytest.mark.parametrize(
    ("dtype", "stored", "source"),
    [
        (jnp.bfloat16, "float32", "bfloat16"),
        (jnp.float16, "float16", None),
        (jnp.float8_e5m2, "float32", "float8_e5m2"),
        (jnp.int8, "float32", "int8"),
    ],
)
def test_states_keep_every_value(dtype: Any, stored: str, source: str | None) -> None:
    class Cast(nnx.Module):
        def __call__(self, values: Any) -> Any:
            return (4 * values).astype(dtype)

    class Casting(nnx.Module):
        def __init__(self) -> None:
            self.cast = Cast()

        def __call__(self, values: Any) -> Any:
            return self.cast(values).astype(jnp.float32)

    batch = arrays(3, 3)
    spec, trajectory = captured(Casting(), batch)
    assert (spec.sites[0].dtype, spec.sites[0].source_dtype) == (stored, source)
    exact = np.asarray((4 * jnp.asarray(batch.values.numpy())).astype(dtype).astype(jnp.float32))
    np.testing.assert_array_equal(trajectory.states["cast"].float().numpy(), exact)


def test_output_selection() -> None:
    def returning(result: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Any]:
        return lambda model, values, lengths: result(model(values))

    batch = arrays(3, 3)
    key = jax.random.key(0)
    spec, _ = captured(Layered(), batch, forward=returning(lambda y: {"logits": y, "key": key}))
    assert spec.output.shape == (2,)
    spec, _ = captured(
        Layered(), batch, output="first", forward=returning(lambda y: {"first": y[:, :1], "y": y})
    )
    assert spec.output.shape == (1,)
    with pytest.raises(UnknownName, match="Did you mean 'first'"):
        captured(Layered(), batch, output="frst", forward=returning(lambda y: {"first": y}))
    with pytest.raises(CaptureError, match="no output was found"):
        captured(Layered(), batch, forward=returning(lambda y: {"key": key}))


def test_wrong_calls_say_how_the_network_was_called() -> None:
    with pytest.raises(CaptureError, match=r"Layered raised .*model\(values\).*forward="):
        captured(Layered(), arrays(3, 5))


def test_fingerprints_follow_the_weights_and_not_the_random_streams() -> None:
    adapter = FlaxNNXAdapter()
    model = Layered()
    first = adapter.fingerprint(model)
    assert first == adapter.fingerprint(Layered())
    assert first == adapter.fingerprint(nnx.clone(model))
    model.dropout.deterministic = False
    model.dropout(jnp.ones(3))
    assert adapter.fingerprint(model) == first
    model.norm.mean[...] += 1
    second = adapter.fingerprint(model)
    assert second != first
    model.head.kernel[...] *= 2
    assert len({first, second, adapter.fingerprint(model), adapter.fingerprint(Reader())}) == 4


def test_unsupported_models() -> None:
    adapter = FlaxNNXAdapter()
    batch = arrays(3, 3)
    for model in (torch.nn.Linear(3, 2), "nnx", None, Layered):
        assert not adapter.supports(model)
    with pytest.raises(UnsupportedModel, match=r"expected a flax\.nnx\.Module; got Linear"):
        adapter.describe(torch.nn.Linear(3, 2), batch)
    with pytest.raises(UnsupportedModel, match="got str"):
        adapter.fingerprint("nnx")


def test_a_model_that_changed_since_it_was_described_is_refused() -> None:
    adapter = FlaxNNXAdapter()
    batch = arrays(3, 3)
    model = Layered()
    spec = adapter.describe(model, batch)
    model.head = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    with pytest.raises(CaptureError, match="expected float32 of shape"):
        adapter.record(model, batch, spec)
    del model.head
    with pytest.raises(CaptureError, match="'head' was there"):
        adapter.record(model, batch, spec)


def test_populations_of_nnx_models() -> None:
    models = {"a": Layered(0), "b": Layered(1)}
    before = [leaves(model) for model in models.values()]
    values = arrays(3, 3).values.numpy()
    factories = {name: (lambda model=model: model) for name, model in models.items()}
    population = dynamo_plugin.capture(factories, values, {}, progress=False)
    assert [leaves(model) for model in models.values()] == before
    assert population.sites("b") == ("layers.0", "layers.1", "norm", "head")
    expected = linear(models["b"].layers[0], values)
    np.testing.assert_allclose(population.states("b", "layers.0")[:], expected, rtol=1e-4)


@pytest.mark.slow
def test_populations_of_recurrent_nnx_models() -> None:
    models = {"gru": Reader(), "lstm": Reader("LSTMCell", 1)}
    before = [leaves(model) for model in models.values()]
    batch = ids_of([4, 2, 1])
    ids = [row[:length].numpy() for row, length in zip(batch.values, batch.lengths, strict=True)]
    factories = {name: (lambda model=model: model) for name, model in models.items()}
    population = dynamo_plugin.capture(factories, ids, {}, progress=False)
    assert [leaves(model) for model in models.values()] == before
    assert population.sites("lstm") == ("embed", "rnn", "head")
    embedded = np.asarray(models["gru"].embed.embedding[...])
    expected = np.concatenate([gru(models["gru"].rnn.cell, embedded[row]) for row in ids])
    np.testing.assert_allclose(population.states("gru", "rnn")[:], expected, rtol=1e-4, atol=1e-5)
