"""However a capture is spread over workers, and whatever happens to them: the same bytes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynamo_plugin.errors import (
    CaptureError,
    IncompleteCapture,
    InvalidInput,
    NonFiniteStates,
    StoreLocked,
)
from dynamo_plugin.recording import capture, ledgers, pump
from dynamo_plugin.recording.executors import connected
from dynamo_plugin.recording.factories import ConfiguredModel
from dynamo_plugin.store import Population, PopulationWriter, open_population, verify_population

FOLDER = Path(__file__).parent
LENGTHS = [3, 1, 6, 6, 2, 4, 1, 5, 6, 3] * 4


def factory(name: str = "make_gru", **arguments: Any) -> ConfiguredModel:
    return ConfiguredModel(f"networks_for_workers:{name}", FOLDER, arguments)


MODELS = {f"gru-{seed}": factory(seed=seed, units=4 + seed) for seed in range(5)}


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 3, generator=generator) for length in LENGTHS]


def run(store: Path, models: Any = None, **options: Any) -> Population:
    options = {"progress": False, "batch_size": 8, "threads": 1} | options
    return capture(MODELS if models is None else models, inputs(), store, **options)


def tree(store: Path) -> dict[str, bytes]:
    files = (path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("serial") / "population.zarr"
    run(store)
    assert verify_population(store).ok
    return tree(store)


def test_two_processes_give_the_same_bytes(tmp_path: Path, serial: dict[str, bytes]) -> None:
    assert run(tmp_path / "p", workers=2).ids == tuple(MODELS)
    assert tree(tmp_path / "p") == serial


def test_threads_give_the_same_bytes(tmp_path: Path, serial: dict[str, bytes]) -> None:
    with ThreadPoolExecutor(2) as pool:
        run(tmp_path / "p", executor=pool)
    assert tree(tmp_path / "p") == serial


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    import dask

    dask.config.set({"distributed.admin.tick.limit": "1h"})
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("ignore")  # Dask's own
def test_a_dask_cluster_gives_the_same_bytes(
    tmp_path: Path, serial: dict[str, bytes], cluster: str
) -> None:
    with connected(cluster.replace("tcp://", "dask://")) as executor:
        run(tmp_path / "p", executor=executor)
        assert tree(tmp_path / "p") == serial
        models = dict(MODELS)
        models["gru-3"] = factory(
            "make_gru_and_die_once", seed=3, units=7, marker=str(tmp_path / "died")
        )
        run(tmp_path / "q", models, executor=executor)
    assert (tmp_path / "died").exists()
    assert tree(tmp_path / "q") == serial


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, serial: dict[str, bytes]) -> None:
    models = dict(MODELS)
    models["gru-3"] = factory(
        "make_gru_and_die_once", seed=3, units=7, marker=str(tmp_path / "died")
    )
    run(tmp_path / "p", models, workers=2)
    assert (tmp_path / "died").exists()
    assert tree(tmp_path / "p") == serial


@pytest.mark.slow
def test_workers_that_keep_dying_are_given_up(tmp_path: Path, serial: dict[str, bytes]) -> None:
    models = dict(MODELS) | {"gru-3": factory("die", seed=3)}
    with pytest.raises(CaptureError, match=r"died 3 times in a row .*'gru-3'.*--resume"):
        run(tmp_path / "p", models, workers=2)
    with pytest.raises(IncompleteCapture, match="'gru-3'"):
        open_population(tmp_path / "p")
    run(tmp_path / "p", resume=True)
    assert tree(tmp_path / "p") == serial


class Breaking(Executor):
    """Runs so many tasks, then breaks as a process pool does."""

    def __init__(self, healthy: int) -> None:
        self.healthy = healthy

    def submit(self, function: Callable[..., Any], /, *a: Any, **k: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.healthy -= 1
        if self.healthy < 0:
            future.set_exception(BrokenExecutor("a process was terminated"))
        else:
            future.set_result(function(*a, **k))
        return future


def test_an_executor_that_breaks_loses_nothing(tmp_path: Path, serial: dict[str, bytes]) -> None:
    with pytest.raises(CaptureError, match=r"a worker died .*'gru-2'.*resume=True"):
        run(tmp_path / "p", executor=Breaking(2))
    assert open_population(tmp_path / "p", allow_incomplete=True).ids == ("gru-0", "gru-1")
    run(tmp_path / "p", executor=Breaking(5), resume=True)
    assert tree(tmp_path / "p") == serial


def test_workers_report_in_spans(
    tmp_path: Path, serial: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes long is committed piece by piece."""
    for name in ("LEAST_WAITING_BYTES", "MOST_WAITING_BYTES"):
        # computing is not far ahead of what was written, however slow the disk
        monkeypatch.setattr(f"dynamo_plugin.recording.pump.{name}", 0)
    monkeypatch.setattr(ledgers, "SPAN_BYTES", 1)
    monkeypatch.setattr("dynamo_plugin.recording.batching.WINDOW_BYTES", 1)
    reports = []
    real = ledgers.CoordinatorLedger.take

    def take(ledger: Any, recorded: Any) -> None:
        reports.append(len(recorded.records))
        real(ledger, recorded)

    monkeypatch.setattr(ledgers.CoordinatorLedger, "take", take)
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 400)
    # Written at once, whatever else the machine does: a thread that lags writes one long span.
    monkeypatch.setattr(pump.Pump, "put", lambda self, *block: self._work(*block))
    with ThreadPoolExecutor(1) as pool:
        population = run(tmp_path / "p", executor=pool)
    assert len(reports) > len(MODELS)
    assert verify_population(tmp_path / "p").ok
    for model_id in population.ids:
        whole = run(tmp_path / f"alone {model_id}", {model_id: MODELS[model_id]})
        np.testing.assert_array_equal(
            population.states(model_id, "gru.layer1"), whole.states(model_id, "gru.layer1")
        )


def test_shares_give_the_same_bytes(tmp_path: Path, serial: dict[str, bytes]) -> None:
    store = tmp_path / "p"
    first = run(store, share=(1, 2))
    assert first.ids == ("gru-1", "gru-3")
    with pytest.raises(IncompleteCapture, match="3 of 5 are not: 'gru-0', 'gru-2', 'gru-4'"):
        open_population(store)
    assert run(store, share=(1, 2)).ids == first.ids  # run twice, nothing happens
    assert len(run(store, share=(0, 2))) == 5
    assert tree(store) == serial


def test_shares_at_the_same_time(tmp_path: Path, serial: dict[str, bytes]) -> None:
    store = tmp_path / "p"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda index: run(store, share=(index, 3)), range(3)))
    assert tree(store) == serial


def test_shares_that_overlap_are_refused(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make() -> Any:
        begun.set()
        go_on.wait(30)
        return torch.nn.GRU(3, 2)

    models = {"a": make, "b": torch.nn.GRU(3, 2)}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(run, tmp_path / "p", models, share=(0, 2))
        assert begun.wait(30)
        try:
            for share in ((0, 2), (1, 3)):
                with pytest.raises(StoreLocked, match="share 0 of 2"):
                    run(tmp_path / "p", models, share=share)
            with pytest.raises(StoreLocked, match="at work"):
                run(tmp_path / "p", models, resume=True)
            assert run(tmp_path / "p", models, share=(1, 2)).ids == ("b",)
        finally:
            go_on.set()
        slow.result()
    assert open_population(tmp_path / "p").ids == ("a", "b")


def test_the_threads_of_a_capture_are_kept(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    population = run(tmp_path / "p", threads=2)
    assert population.config["threads"] == 2
    assert torch.get_num_threads() == before
    assert run(tmp_path / "p", threads=None, resume=True).config["threads"] == 2
    with pytest.raises(InvalidInput, match=r"'threads': 2.*'threads': 1"):
        run(tmp_path / "p", threads=1, resume=True)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_model_that_fails_need_not_stop_the_others(tmp_path: Path, workers: int) -> None:
    models = {"bad": factory("make_nan", seed=0), **MODELS, "missing": factory("nothing", seed=0)}
    with pytest.raises(CaptureError) as caught:
        run(tmp_path / "p", models, on_error="continue", workers=workers)
    message = str(caught.value)
    assert "2 of 7 models could not be recorded" in message
    assert "model 'bad': site 'gru.layer0' is not finite" in message
    assert "model 'missing'" in message
    assert open_population(tmp_path / "p", allow_incomplete=True).ids == tuple(MODELS)
    with pytest.raises(NonFiniteStates):
        run(tmp_path / "q", models, workers=workers)


def test_what_does_not_go_together() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"workers": 0}, "workers must be a positive integer"),
        ({"workers": 2, "executor": Breaking(0)}, "both say where"),
        ({"share": (2, 2)}, "share of the models"),
        ({"share": (0, 2), "overwrite": True}, "neither overwrite nor repair"),
        ({"resume": True, "overwrite": True}, "give one of them"),
        ({"threads": 0}, "threads must be a positive integer"),
    ]
    for options, message in wrong:
        with pytest.raises(InvalidInput, match=message):
            capture(MODELS, inputs(), {}, progress=False, **options)
    for address, message in (
        ("dask:x", "of the form dask://host:port"),
        ("ray://host:1", "of the form dask://host:port"),
    ):
        with pytest.raises(InvalidInput, match=message), connected(address):
            pass
    with torch.autocast("cpu"), pytest.raises(InvalidInput, match=r"inside torch\.autocast"):
        capture(MODELS, inputs(), {}, progress=False)


SCRIPT = """
import resource, sys
import numpy as np, torch
from dynamo_plugin.recording import capture
from dynamo_plugin.recording.registering import register_adapter

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(8, 128, batch_first=True)
        self.readout = torch.nn.Linear(128, 2)
    def forward(self, values):
        return self.readout(self.rnn(values)[0][:, -1])

torch.manual_seed(0)
store, samples, models = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
values = np.lib.format.open_memmap(store + ".npy", "w+", np.float32, (samples, 50, 8))
values[:] = 0.5
values.flush()
values = np.load(store + ".npy", mmap_mode="r")
capture({"warm up": Wide}, values[:64], {}, progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
capture({f"m{i}": Wide for i in range(models)}, values, store, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_samples_or_models(tmp_path: Path) -> None:
    """The states are 410 MB. `capture` says how much of them may wait, and a batch has 1.6 MB."""
    arguments = [str(tmp_path / "p"), "4000", "4"]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) / 1024 < 64 + 36


def test_a_writer_can_be_used_again_after_close(tmp_path: Path) -> None:
    population = run(tmp_path / "p")
    writer = PopulationWriter.resume(tmp_path / "p", population.inputs, config=population.config)
    with pytest.raises(StoreLocked, match="process"):
        PopulationWriter.resume(tmp_path / "p", population.inputs, config=population.config)
    writer.close()
    PopulationWriter.resume(tmp_path / "p", population.inputs, config=population.config).close()
    assert not (tmp_path / "p" / "leases").exists()
