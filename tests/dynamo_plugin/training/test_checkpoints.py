"""Checkpoints: whole or not there, of one fit, and never in the way of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from dynamo_plugin.errors import CorruptBlock, InvalidInput, StoreExists, StoreLocked
from dynamo_plugin.training import CheckpointFolder, checkpoints
from dynamo_plugin.training.checkpoints import Checkpoint

IDENTITY = {"steps": 500, "models": ["a", "b"]}


def _checkpoint(step: int) -> Checkpoint:
    tensors = {"x": torch.full((3,), float(step)), "count": torch.tensor(step)}
    return Checkpoint(step, tensors, {"history": [{"step": step}], "stopped": None})


def _write(path: Path, *steps: int) -> None:
    folder = CheckpointFolder(path, identity=IDENTITY, resume=True)
    for step in steps:
        folder.write(_checkpoint(step))
    folder.close()


def _latest(path: Path, **identity: Any) -> Checkpoint | None:
    folder = CheckpointFolder(path, identity={**IDENTITY, **identity}, resume=True)
    folder.close()
    return folder.latest


def test_the_latest_is_read_back(tmp_path: Path) -> None:
    assert _latest(tmp_path / "fit") is None
    _write(tmp_path / "fit", 20, 1000, 40)
    latest = _latest(tmp_path / "fit")
    assert latest is not None
    assert (latest.step, latest.notes["history"]) == (1000, [{"step": 1000}])
    assert torch.equal(latest.tensors["x"], torch.full((3,), 1000.0))
    assert latest.tensors["count"].shape == ()


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    _write(tmp_path, 20, 40, 60)
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["step-000000040", "step-000000060"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    _write(tmp_path, 20, 40)
    for step in (40, 20):
        file = tmp_path / f"step-{step:09d}" / name
        content = bytearray(file.read_bytes())
        if damage == "flip":
            content[len(content) // 2 if name.startswith("t") else 0] ^= 255
        file.write_bytes(content if damage == "flip" else content[:10])
        if damage == "delete":
            file.unlink()
        if step == 40:
            with pytest.warns(UserWarning, match="step-000000040.*goes on from step 20"):
                latest = _latest(tmp_path)
            assert latest is not None
            assert latest.step == 20
        else:
            with pytest.raises(CorruptBlock, match=r"No checkpoint in .* can be read"):
                _latest(tmp_path)


def test_what_was_being_written_is_no_checkpoint(tmp_path: Path) -> None:
    _write(tmp_path, 20)
    (tmp_path / ".0a1b.partial").mkdir()
    (tmp_path / ".0a1b.partial" / "tensors.safetensors").write_bytes(b"half")
    latest = _latest(tmp_path)
    assert latest is not None
    assert latest.step == 20


def test_another_fit_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, 20)
    with pytest.raises(InvalidInput, match=r"another fit: steps \(500, now 600\)"):
        _latest(tmp_path, steps=600)
    with pytest.raises(InvalidInput, match=r"models \(.*\"b\".*, now "):
        _latest(tmp_path, models=["a", "c"])


def test_an_unfinished_fit_is_not_overwritten(tmp_path: Path) -> None:
    _write(tmp_path, 20)
    with pytest.raises(StoreExists, match=r"unfinished fit.*--resume"):
        CheckpointFolder(tmp_path, identity=IDENTITY, resume=False)


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(StoreExists, match="not touched"):
        CheckpointFolder(tmp_path, identity=IDENTITY, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreExists, match="not touched"):
        CheckpointFolder(tmp_path / "thesis.tex", identity=IDENTITY, resume=True)


def test_one_fit_at_a_time(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, identity=IDENTITY, resume=False)
    with pytest.raises(StoreLocked, match="Another process"):
        CheckpointFolder(tmp_path, identity=IDENTITY, resume=True)
    folder.close()
    CheckpointFolder(tmp_path, identity=IDENTITY, resume=True).close()


def test_an_error_lets_the_folder_go(tmp_path: Path) -> None:
    _write(tmp_path, 20)
    with pytest.raises(InvalidInput):
        _latest(tmp_path, steps=1)
    with filelock.FileLock(tmp_path / ".lock", timeout=0):
        pass


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 20)
    folder = CheckpointFolder(tmp_path, identity=IDENTITY, resume=True)
    whole = checkpoints._write

    def full(path: Path, content: bytes) -> None:
        whole(path, content[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.warns(UserWarning, match="No checkpoint could be written.*No space left"):
        folder.write(_checkpoint(40))
    folder.write(_checkpoint(60))  # once is enough
    monkeypatch.undo()
    folder.close()
    latest = _latest(tmp_path)
    assert latest is not None
    assert latest.step == 20
    assert not list(tmp_path.glob("*.partial"))


def test_a_newer_version_is_not_guessed_at(tmp_path: Path) -> None:
    _write(tmp_path, 20)
    document = tmp_path / "step-000000020" / "checkpoint.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), "version": 2}))
    with pytest.raises(CorruptBlock, match="another version"):
        _latest(tmp_path)


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "fit", identity=IDENTITY, resume=False)
    folder.write(_checkpoint(1))
    folder.remove()
    assert not (tmp_path / "fit").exists()
