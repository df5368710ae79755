"""A fit that is interrupted, stopped, killed, or shared among processes, is the same fit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynamo_plugin.embedding import ModelEmbedding, fit, load_embedding
from dynamo_plugin.errors import DivergedFit, InvalidInput
from dynamo_plugin.store import Population, open_population
from dynamo_plugin.training import PRESETS, Callback, Trainer

SAMPLES, TIME, STEPS = 24, 5, 100
WORKER = Path(__file__).with_name("fit_in_a_process.py")
BASE: dict[str, Any] = {
    "family_options": {"units": 8, "token_dim": 4},
    "embedding_dim": 2,
    "steps": STEPS,
    "batch_size": 4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "private dimensions": {"leading_share": 0.1},
    "paper": dict(PRESETS["paper"]),
    "leading": {"embedding_dim": "auto"},
    "one by one": {"state_map": "amortised", "models_per_step": 1},
}


@pytest.fixture(scope="module")
def stored(
    write_population: Callable[..., Population], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, TIME, 2)
    states, outputs = {}, {}
    for index, name in enumerate("abc"):
        hidden = nn.GRU(2, 3 + index, batch_first=True)(inputs)[0].detach()
        states[name] = hidden.flatten(0, 1).numpy()
        outputs[name] = nn.Linear(3 + index, 3)(hidden[:, -1]).detach().numpy()
    place = tmp_path_factory.mktemp("population") / "population.zarr"
    write_population(
        states, outputs, inputs.flatten(0, 1).numpy(), [TIME] * SAMPLES, store=str(place)
    )
    return place


def _fit(stored: Path, **settings: Any) -> ModelEmbedding:
    chosen = {"device": "cpu", "progress": False, **BASE, **settings}
    return fit(open_population(stored), seeds=None, **chosen)


def _require_equal(one: ModelEmbedding, other: ModelEmbedding) -> None:
    assert torch.equal(one.thetas, other.thetas)
    for mine, its in (
        (one.meta_model, other.meta_model),
        (one.state_maps, other.state_maps),
        (one.common_maps, other.common_maps),
    ):
        assert (mine is None) == (its is None)
        if mine is not None and its is not None:
            theirs = its.state_dict()
            assert mine.state_dict().keys() == theirs.keys()
            for name, tensor in mine.state_dict().items():
                assert torch.equal(tensor, theirs[name]), name
    assert one.history.equals(other.history)


class CtrlC(Callback):
    """Presses it after a step."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.at, self.times = step, times

    def step(self, fit: Trainer) -> None:
        if fit.step == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(
    stored: Path, tmp_path: Path, variant: str
) -> None:
    settings = VARIANTS[variant]
    whole = _fit(stored, **settings)
    with pytest.warns(UserWarning, match="interrupted after 17 of 100 steps"):
        part = _fit(stored, checkpoints=tmp_path, callbacks=[CtrlC(16)], **settings)
    assert part.history["step"].max() < 17
    assert torch.isfinite(part.thetas).all()
    assert not torch.equal(part.thetas, whole.thetas)
    _require_equal(_fit(stored, checkpoints=tmp_path, resume=True, **settings), whole)


@pytest.mark.usefixtures("ctrl_c")
def test_what_an_interrupted_fit_leaves_can_be_used(stored: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="interrupted"):
        part = _fit(stored, callbacks=[CtrlC(8)])
    part.save(tmp_path / "embedding")
    loaded = load_embedding(tmp_path / "embedding")
    inputs = torch.randn(2, TIME, 2)
    assert torch.equal(loaded.render("a")(inputs), part.render("a")(inputs))


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_twice_interrupts(stored: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _fit(stored, callbacks=[CtrlC(8, times=2)])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_fit_resumes_to_what_it_was(stored: Path, tmp_path: Path) -> None:
    whole = _fit(stored, checkpoints=tmp_path)
    _require_equal(_fit(stored, checkpoints=tmp_path, resume=True), whole)


def test_killed_and_resumed_is_uninterrupted(stored: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, str(WORKER), str(stored), str(tmp_path / "c"), str(tmp_path / "e")]
    process = subprocess.Popen([*arguments, "default"])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "c").glob("step-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "e").exists()
    resumed = _fit(stored, checkpoints=tmp_path / "c", resume=True)
    _require_equal(resumed, _fit(stored))


@pytest.mark.parametrize("variant", ["default", "one by one"])
def test_two_processes_fit_what_one_fits(stored: Path, tmp_path: Path, variant: str) -> None:
    _torchrun(stored, tmp_path, variant)
    shared = load_embedding(tmp_path / "embedding")
    alone = _fit(stored, **VARIANTS[variant])
    # Sums are rounded in another order; the fit amplifies that somewhat.
    torch.testing.assert_close(shared.thetas, alone.thetas, rtol=1e-3, atol=1e-4)
    for name, tensor in alone.state_maps.state_dict().items():
        torch.testing.assert_close(
            shared.state_maps.state_dict()[name], tensor, rtol=1e-2, atol=1e-3
        )
    for column in ("loss", "held_out_loss", "held_out_hidden_r2", "theta_movement"):
        assert shared.history[column].to_numpy() == pytest.approx(
            alone.history[column].to_numpy(), rel=1e-3, abs=1e-5
        )


def test_one_process_or_two_go_on_from_two(stored: Path, tmp_path: Path) -> None:
    settings = VARIANTS["default"]
    _torchrun(stored, tmp_path, "default", stop=16)
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "copied")
    alone = _fit(stored, checkpoints=tmp_path / "copied", resume=True, **settings)
    shutil.rmtree(tmp_path / "embedding")
    _torchrun(stored, tmp_path, "default")
    expected = _fit(stored, **settings).thetas
    for resumed in (alone, load_embedding(tmp_path / "embedding")):
        torch.testing.assert_close(resumed.thetas, expected, rtol=1e-3, atol=1e-4)


def _torchrun(stored: Path, folder: Path, variant: str, stop: int = 0) -> None:
    places = [str(stored), str(folder / "checkpoints"), str(folder / "embedding")]
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(WORKER), *places, variant, str(stop)),
        ],
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
    )


def test_a_fit_that_has_settled_stops_for_good(stored: Path, tmp_path: Path) -> None:
    settings = {"patience": 2, "min_improvement": 0.99, "min_theta_movement": 0.99, "steps": 400}
    found = _fit(stored, checkpoints=tmp_path, **settings)
    # Leading dimensions are learned for 0.4 of the 25 looks; then three more are needed.
    assert len(found.history) == 10 + 3
    _require_equal(_fit(stored, checkpoints=tmp_path, resume=True, **settings), found)
    together = {"leading_dim": None, "theta_init": "random", "theta_std": 1.0, "warmup": 0}
    assert len(_fit(stored, **together, **settings).history) == 3


def test_callbacks_are_told_and_may_stop(stored: Path) -> None:
    told: list[tuple[str, int]] = []

    class Recorder(Callback):
        def begin(self, fit: Trainer) -> None:
            told.append(("begin", fit.step))

        def step(self, fit: Trainer) -> None:
            if fit.step == 4:
                fit.stop("enough")

        def look(self, fit: Trainer, row: Mapping[str, float]) -> None:
            assert row is fit.history[-1]
            assert fit.thetas.shape == (3, 2)
            told.append(("look", fit.step))

        def end(self, fit: Trainer) -> None:
            told.append(("end", fit.step))

    _fit(stored, steps=50, callbacks=[Recorder()])
    assert told == [("begin", 0), ("look", 2), ("look", 4), ("end", 4)]


def test_what_a_callback_raises_comes_out(stored: Path, tmp_path: Path) -> None:
    class Broken(Callback):
        def step(self, fit: Trainer) -> None:
            if fit.step == 12:
                raise RuntimeError("the logger is down")

    with pytest.raises(RuntimeError, match="the logger is down"):
        _fit(stored, checkpoints=tmp_path, callbacks=[Broken()])
    _require_equal(_fit(stored, checkpoints=tmp_path, resume=True), _fit(stored))


@pytest.mark.parametrize("variant", ["paper", "default"])
def test_divergence_leaves_the_checkpoints_before_it(
    stored: Path, tmp_path: Path, variant: str
) -> None:
    settings = {**VARIANTS[variant], "output_weight": 0.0}

    class Poison(Callback):
        def step(self, fit: Trainer) -> None:
            if fit.step == 21:
                fit._objective.thetas.data[1] = torch.nan

    with pytest.raises(DivergedFit, match=r"at step 22 \(models b;"):
        _fit(stored, checkpoints=tmp_path, callbacks=[Poison()], **settings)
    resumed = _fit(stored, checkpoints=tmp_path, resume=True, **settings)
    _require_equal(resumed, _fit(stored, **settings))


def test_resuming_needs_a_place(stored: Path) -> None:
    with pytest.raises(InvalidInput, match="say where"):
        _fit(stored, resume=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_accelerator_stops_and_resumes(stored: Path, tmp_path: Path, variant: str) -> None:
    accelerator = torch.accelerator.current_accelerator()
    here = _fit(stored, **VARIANTS[variant])
    with pytest.warns(UserWarning, match="interrupted after 16 of 100 steps"):
        there = _fit(
            stored,
            device=accelerator,
            checkpoints=tmp_path,
            callbacks=[Stop(16)],
            **VARIANTS[variant],
        )
    assert there.stopped == "interrupted"
    there = _fit(stored, device=accelerator, checkpoints=tmp_path, resume=True, **VARIANTS[variant])
    assert there.thetas.device.type == "cpu"
    assert there.history["loss"].iloc[-1] == pytest.approx(here.history["loss"].iloc[-1], rel=0.05)
    assert (there.history["step"] == here.history["step"]).all()


class Stop(Callback):
    """Ends a fit after a step as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, fit: Trainer) -> None:
        if fit.step == self.at:
            fit.stop("interrupted")
