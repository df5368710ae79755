"""`capture` end to end: models in, a population out."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr.storage
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from zarr.storage import MemoryStore

import dynamo_plugin.recording.batching
from dynamo_plugin.errors import (
    CaptureError,
    IncompleteCapture,
    InvalidInput,
    NonFiniteStates,
    StoreExists,
    UnknownName,
    UnsupportedModel,
)
from dynamo_plugin.recording import capture
from dynamo_plugin.registry import get_registry, hookimpl
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.store import Population, open_population
from dynamo_plugin.types import (
    OutputSpec,
    SequenceBatch,
    SiteSpec,
    Trajectory,
    TrajectorySpec,
)

LENGTHS = [3, 1, 6, 6, 2, 4, 1, 5, 6, 3]


class Reader(nn.Module):
    """A text classifier; packs its sequences if it is handed the lengths."""

    def __init__(self, units: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(9, 3)
            self.rnn = nn.GRU(3, units, batch_first=True)
            self.readout = nn.Linear(units, 2)

    def forward(self, ids: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(
            self.embedding(ids), lengths, batch_first=True, enforce_sorted=False
        )
        states = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]
        return self.readout(states[torch.arange(len(states)), lengths - 1])


class BlindReader(Reader):
    """The same, without the lengths."""

    def forward(self, ids: Tensor) -> Any:  # type: ignore[override]
        return self.readout(self.rnn(self.embedding(ids))[0][:, -1])


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(9, (length,), generator=generator) for length in LENGTHS]


def run(models: Any, inputs: Any = None, store: Any = None, **options: Any) -> Population:
    inputs = sequences() if inputs is None else inputs
    return capture(models, inputs, {} if store is None else store, progress=False, **options)


def assert_recorded(population: Population, model_id: str, model: Reader) -> None:
    """Compare with each sequence run alone, without any padding."""
    offsets = population.offsets
    states, outputs = population.states(model_id, "rnn"), population.outputs(model_id)
    assert len(states) == sum(LENGTHS)
    for sample, ids in enumerate(sequences()):
        with torch.no_grad():
            alone = model.rnn(model.embedding(ids[None]))[0][0]
            logits = model.readout(alone[-1])
        recorded = states[offsets[sample] : offsets[sample + 1]]
        np.testing.assert_allclose(recorded, alone.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs[sample], logits.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window_bytes", [1, 200, 2**20])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_states_are_those_of_each_sequence_alone(
    monkeypatch: pytest.MonkeyPatch, window_bytes: int, batch_size: int
) -> None:
    monkeypatch.setattr(dynamo_plugin.recording.batching, "WINDOW_BYTES", window_bytes)
    models = {"packed": Reader(4), "blind": BlindReader(6, seed=2)}
    population = run(models, batch_size=batch_size)
    assert population.ids == ("packed", "blind")
    for model_id, model in models.items():
        assert_recorded(population, model_id, model)


def test_padded_array_with_lengths_gives_the_same_as_a_list() -> None:
    padded = torch.nn.utils.rnn.pad_sequence(sequences(), batch_first=True, padding_value=8)
    model = BlindReader()
    population = run({"a": model}, padded, lengths=LENGTHS)
    assert_recorded(population, "a", model)
    assert population.inputs.hash == run({"a": model}, vocabulary_size=9).inputs.hash


def test_one_sample_of_one_step() -> None:
    population = run({"a": nn.GRU(2, 3)}, np.ones((1, 1, 2)))
    assert population.states("a").shape == (1, 3)
    assert population.outputs("a").shape == (1, 3)


def test_metadata_targets_and_groups_are_kept() -> None:
    table = pd.DataFrame({"model": ["b", "a"], "units": [5, 4], "note": ["x", None]})
    models = {"a": Reader(4), "b": Reader(5)}
    targets = np.arange(len(LENGTHS)) % 2
    population = run(models, metadata=table, targets=targets, sample_ids=list("abcdefghij"))
    assert population.metadata["units"].tolist() == [4, 5]
    assert population.metadata.index.tolist() == ["a", "b"]
    assert population.sample_ids == tuple("abcdefghij")
    assert population.inputs.targets is not None
    np.testing.assert_array_equal(population.inputs.targets, targets)
    assert population.output_group("a") == population.output_group("b") == "output2"
    population = run(models, output_groups={"b": "other"})
    assert (population.output_group("a"), population.output_group("b")) == ("output2", "other")
    assert run(models, output_groups="one").output_group("b") == "one"


def test_factories_are_called_one_at_a_time_and_released() -> None:
    alive: weakref.WeakSet[Reader] = weakref.WeakSet()

    def make(seed: int) -> Reader:
        assert not alive
        model = Reader(seed=seed)
        alive.add(model)
        return model

    population = run({f"m{seed}": partial(make, seed) for seed in range(3)})
    assert_recorded(population, "m2", Reader(seed=2))


def test_models_are_left_as_they_were() -> None:
    model = Reader().train()
    model.embedding.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run({"a": model})
    assert model.training
    assert not model.embedding.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "models are empty"),
        ([nn.GRU(2, 2)], "must be a mapping"),
        ({1: nn.GRU(2, 2)}, "ids must be texts"),
        ({"": nn.GRU(2, 2)}, "ids must be texts"),
        ({"a": "gru"}, "'a' must be a torch.nn.Module or a factory"),
        ({"a": lambda: None}, "model 'a': expected a factory that returns a model"),
        ({"a": nn.GRU}, "model 'a'"),
    ],
)
def test_bad_models_are_refused(models: Any, message: str) -> None:
    expected = CaptureError if models == {"a": nn.GRU} else InvalidInput
    with pytest.raises(expected, match=message):
        run(models)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, InvalidInput, "batch_size must be a positive integer"),
        ({"on_error": "ignore"}, InvalidInput, "on_error must be 'raise' or 'continue'"),
        ({"share": (1, 2, 3)}, InvalidInput, "share must be .index, count., two integers"),
        ({"share": ("0", "2")}, InvalidInput, "share must be"),
        ({"share": 2}, InvalidInput, "share must be"),
        ({"resume": True, "overwrite": True}, InvalidInput, "give one of them"),
        ({"metadata": {"b": {}}}, InvalidInput, "lacks 'a' and has rows for no model: 'b'"),
        ({"output_groups": {"b": "x"}}, InvalidInput, "Did you mean|Known: a"),
        ({"output_groups": {"a": ""}}, InvalidInput, "must be a text"),
        ({"adapter": "torch_recurent"}, UnknownName, "Did you mean 'torch_recurrent'"),
        ({"adapter": 3}, InvalidInput, "registered name or an Adapter"),
        ({"layers": "rnn"}, InvalidInput, "sequence of at least one pattern"),
        ({"layers": ["run"]}, UnknownName, "model 'a': layers: 'run' matches no"),
        ({"output": "logits"}, UnknownName, "model 'a': output='logits'"),
        ({"sample_ids": ["x"]}, InvalidInput, "sample id"),
    ],
)
def test_bad_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run({"a": Reader()}, **options)


def test_a_model_without_an_adapter_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"modules of type Linear\).*Tried: .*torch_recurr"):
        run({"a": nn.Linear(2, 3)})
    with pytest.raises(UnsupportedModel, match="'torch_recurrent' does not take Linear"):
        run({"a": nn.Linear(2, 3)}, adapter="torch_recurrent")


@pytest.mark.parametrize("where", ["states", "output"])
def test_non_finite_numbers_are_located(where: str) -> None:
    class Broken(Reader):
        def forward(self, ids: Tensor, lengths: Tensor) -> Any:
            logits = super().forward(ids, lengths)
            if where == "output":
                logits[lengths == 5] = torch.inf
            return logits

    model = Broken()
    inputs = [ids.clone().clamp(max=7) for ids in sequences()]
    if where == "states":
        with torch.no_grad():
            model.embedding.weight[8] = torch.nan
        inputs[4][1] = 8
    place = "site 'rnn' .*'sample-4', step 1" if where == "states" else "'output2' .*'sample-7'"
    store: dict[str, Any] = {}
    with pytest.raises(NonFiniteStates, match=f"model 'bad': .*{place}"):
        run({"good": Reader(), "bad": model}, inputs, store, vocabulary_size=9)
    kept = open_population(store, allow_incomplete=True)
    assert kept.ids == ("good",)


def test_errors_of_a_model_name_it_and_its_hooks_are_gone() -> None:
    class Failing(Reader):
        def forward(self, ids: Tensor, lengths: Tensor) -> Any:
            raise ZeroDivisionError("no")

    model = Failing()
    with pytest.raises(CaptureError, match="model 'x': Failing raised ZeroDivisionError: no"):
        run({"x": model})
    assert not model.rnn._forward_hooks


def test_something_at_the_store_is_not_overwritten_by_chance(tmp_path: Path) -> None:
    store = tmp_path / "population.zarr"
    run({"a": Reader()}, store=store)
    with pytest.raises(StoreExists, match="resume"):
        run({"a": Reader()}, store=store)
    assert run({"b": Reader()}, store=store, overwrite=True).ids == ("b",)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear reader")
    with pytest.raises(StoreExists):
        run({"a": Reader()}, store=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_resume_keeps_complete_models_and_records_the_others(tmp_path: Path) -> None:
    store = tmp_path / "population.zarr"
    calls: list[str] = []

    def make(name: str, seed: int) -> Reader:
        calls.append(name)
        if name == "b" and calls.count("b") == 1:
            raise MemoryError("too large")
        return Reader(seed=seed)

    models = {name: partial(make, name, seed) for seed, name in enumerate("abc")}
    with pytest.raises(CaptureError, match="model 'b': MemoryError: too large"):
        run(models, store=store)
    written = {
        path: path.stat().st_mtime_ns
        for path in (store / "models" / "a").rglob("*")
        if path.is_file()
    }
    assert written
    population = run(models, store=store, resume=True)
    assert population.ids == ("a", "b", "c")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for seed, name in enumerate("abc"):
        assert_recorded(population, name, Reader(seed=seed))
    longer = {**models, "d": Reader(seed=7)}
    assert run(longer, store=store, resume=True).ids == ("a", "b", "c", "d")


def test_resume_where_nothing_is_begins() -> None:
    assert run({"a": Reader()}, resume=True).ids == ("a",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"a": Reader(seed=5), "b": Reader(5)}}, "model 'a': .*another model hash"),
        ({"models": {"b": Reader(5), "a": Reader(4)}}, "place in the order"),
        ({"models": {"a": Reader(4)}}, "holds models that were not given: 'b'"),
        ({"metadata": {"a": {"x": 1}, "b": {}}}, "another metadata"),
        ({"layers": ["rn*"]}, "layers"),
        ({"output_groups": "other"}, "another specification"),
        ({"inputs": sequences()[:-1]}, "inputs"),
    ],
)
def test_resume_refuses_what_changed(change: dict[str, Any], message: str) -> None:
    store: dict[str, Any] = {}
    models = {"a": Reader(4), "b": Reader(5)}
    run(models, store=store)
    with pytest.raises(InvalidInput, match=message):
        run(**{"models": models, "store": store, "resume": True, **change})


def compared(
    tmp_path: Path, models: dict[str, Any], executor: Executor, inputs: Any = None
) -> None:
    """Capture with an executor and compare every file with a serial capture."""
    with executor:
        run(models, inputs, tmp_path / "parallel", executor=executor)
    run(models, inputs, tmp_path / "serial")
    files = sorted(p.relative_to(tmp_path / "serial") for p in (tmp_path / "serial").rglob("*"))
    assert len(files) > 20
    for name in files:
        serial, parallel = tmp_path / "serial" / name, tmp_path / "parallel" / name
        assert serial.is_dir() or serial.read_bytes() == parallel.read_bytes()


def test_threads_write_what_a_serial_capture_writes(tmp_path: Path) -> None:
    models = {f"m{seed}": Reader(3 + seed, seed=seed) for seed in range(5)}
    compared(tmp_path, models, ThreadPoolExecutor(3))


@pytest.mark.slow
def test_processes_write_what_a_serial_capture_writes(tmp_path: Path) -> None:
    models = {
        f"m{units}": partial(pickle.loads, pickle.dumps(nn.GRU(9, units, num_layers=2)))
        for units in (3, 4)
    }
    inputs = torch.eye(9)[torch.randint(9, (5, 7), generator=torch.Generator().manual_seed(0))]
    compared(tmp_path, models, ProcessPoolExecutor(2, mp_context=get_context("spawn")), inputs)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        with pytest.raises(InvalidInput, match="memory of this process"):
            run(models, inputs, zarr.storage.MemoryStore(), executor=executor)
        with pytest.raises(CaptureError, match="model 'bad': GRU raised RuntimeError"):
            run({"bad": partial(nn.GRU, 7, 7)}, inputs, tmp_path / "bad", executor=executor)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"a": nn.GRU(2, 2)}, {}, "'a' is a built GRU; processes need a factory"),
        ({"a": lambda: nn.GRU(2, 2)}, {}, "factory of model 'a' cannot be pickled"),
        ({"a": partial(nn.GRU, 2, 2)}, {"forward": lambda m, v, n: m(v)}, "forward=, cannot be"),
    ],
)
def test_what_cannot_reach_a_process_is_refused(
    models: Any, options: dict[str, Any], message: str
) -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor,
        pytest.raises(InvalidInput, match=message),
    ):
        run(models, np.zeros((2, 3, 2)), executor=executor, **options)


def test_models_that_share_a_module_cannot_run_at_once() -> None:
    first, second = Reader(), Reader()
    second.embedding = first.embedding
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(InvalidInput, match="'a' and 'b' share a Embedding"):
            run({"a": first, "b": second}, executor=executor)
        assert_recorded(run({"a": first, "b": second}), "b", second)


def test_a_failure_in_an_executor_starts_nothing_more() -> None:
    made: list[int] = []
    failed = threading.Event()

    def make(index: int) -> nn.Module:
        made.append(index)
        if index == 0:
            failed.set()
            raise OSError("disk")
        return Reader()

    class Inline(Executor):
        def submit(self, function: Callable[..., Any], /, *a: Any, **k: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(function(*a, **k))
            except Exception as error:
                future.set_exception(error)
            return future

    with pytest.raises(CaptureError, match="model 'm0': OSError: disk"):
        run({f"m{i}": partial(make, i) for i in range(3)}, executor=Inline())
    made.clear()
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(CaptureError, match="model 'm0': OSError: disk"),
    ):
        run({f"m{i}": partial(make, i) for i in range(50)}, executor=executor)
    assert len(made) < 50


class Constant(Adapter):
    """Says that the state of anything is its input; for tests of precedence."""

    def supports(self, model: object) -> bool:
        return True

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        return TrajectorySpec(
            "constant",
            (SiteSpec("all", (2,), "float32"), SiteSpec("last", (2,), "float32", "sample")),
            OutputSpec("sum", (2,), "float32", "sample"),
        )

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        assert (
            inputs.lengths.min() == inputs.lengths.max()
        )  # lengths are mixed only where a spec says so
        values = inputs.values.float()
        last = values[:, -1]
        return Trajectory({"all": values, "last": last}, {"sum": values.sum(1)}, inputs.lengths)


class Liar(Constant):
    """Records something else than it described."""

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        honest = super().record(model, inputs, spec)
        return Trajectory({"all": honest.states["all"]}, honest.outputs, honest.lengths)


class ConstantPlugin:
    @hookimpl
    def dynamo_register_adapters(self, register: Callable[..., None]) -> None:
        register("constant", f"{__name__}:Constant")


def test_adapters_of_third_parties_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = get_registry()
    inputs = [torch.randn(length, 2) for length in LENGTHS]
    models: dict[str, Any] = {"a": nn.GRU(2, 3)}
    assert run(models, inputs).sites("a") == ("gru",)
    original = registry.load

    def load(kind: str, name: str) -> Any:
        return Constant if name == "constant" else original(kind, name)

    monkeypatch.setattr(
        type(registry), "load", lambda self, kind, name: load(kind, name)
    )  # this file is not importable by name
    registry.register_plugin(ConstantPlugin(), name="constant")
    try:
        population = run(models, inputs)
        assert population.sites("a") == ("all", "last")
        np.testing.assert_array_equal(population.states("a", "all"), torch.cat(inputs).numpy())
        np.testing.assert_array_equal(
            population.states("a", "last"), torch.stack([x[-1] for x in inputs]).numpy()
        )
        np.testing.assert_allclose(
            population.outputs("a"), torch.stack([x.sum(0) for x in inputs]).numpy(), rtol=1e-5
        )
        assert run(models, inputs, adapter="torch_recurrent").sites("a") == ("gru",)
        with pytest.raises(InvalidInput, match="'constant' cannot be built with layers"):
            run(models, inputs, layers=["gru"])
    finally:
        registry.unregister_plugin("constant")


def test_adapter_instances() -> None:
    inputs = torch.randn(3, 4, 2)
    assert run({"a": nn.GRU(2, 3)}, inputs, adapter=Constant()).sites("a") == ("all", "last")
    with pytest.raises(InvalidInput, match="give them to its constructor"):
        run({"a": nn.GRU(2, 3)}, inputs, adapter=Constant(), layers=["x"])
    with pytest.raises(CaptureError, match="model 'a': site 'last': the adapter described"):
        run({"a": nn.GRU(2, 3)}, inputs, adapter=Liar())


def test_device_is_restored() -> None:
    model = Reader()
    assert_recorded(run({"a": model}, device="cpu"), "a", model)
    assert model.readout.weight.device.type == "cpu"


@pytest.mark.gpu
def test_capture_on_an_accelerator() -> None:
    model = Reader()
    on_cpu = run({"a": model})
    on_gpu = run({"a": model}, device="cuda")
    assert model.readout.weight.device.type == "cpu"
    np.testing.assert_allclose(on_gpu.states("a"), on_cpu.states("a"), atol=5e-3)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    capture({"a": Reader()}, sequences(), {})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{len(LENGTHS)}/{len(LENGTHS)}" in printed.err
    run({"a": Reader()})
    assert capsys.readouterr().err == ""


def test_a_site_that_is_zero_throughout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of zeros are stored like any other; a whole site of them is a dead layer."""
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 64)
    dead, store = Reader(4), MemoryStore()
    with torch.no_grad():
        for parameter in dead.rnn.parameters():
            parameter.zero_()
    with pytest.raises(CaptureError, match=r"site 'rnn' is zero at every .*allow_zero"):
        run({"dead": dead}, store=store)
    with pytest.raises(IncompleteCapture, match="'dead'"):
        open_population(store)
    calls: list[int] = []
    dead.register_forward_hook(lambda *_: calls.append(1))
    population = run({"dead": dead}, store=store, resume=True, allow_zero=True)
    described = len(calls)
    assert not population.states("dead").any()
    run({"dead": dead}, store=store, resume=True, allow_zero=True)
    assert len(calls) == 2 * described  # described again, and nothing was recorded anew

    class Late(nn.Module):
        """Zero on most samples, which is none of our business."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(1, 2, nonlinearity="relu", bias=False, batch_first=True)
            nn.init.ones_(self.rnn.get_parameter("weight_ih_l0"))

        def forward(self, values: Tensor) -> Any:
            return self.rnn(values)[0][:, -1] + values[:, -1]

    values = -torch.ones(40, 5, 1)
    values[-1, -1] = 3.0
    assert run({"late": Late()}, values).states("late").max() == 3.0
