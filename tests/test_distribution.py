"""The wheel holds everything, and works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(root))
        for root, package in ((ROOT, "dynamo_plugin"), (ROOT / "hooks", "dynamo_hooks"))
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == expected
    assert "dynamo_plugin/py.typed" in found


def test_quickstart_runs_from_the_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True)

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, check=True, cwd=elsewhere, env=environment, text=True, stdout=subprocess.PIPE
        ).stdout

    where = run("-c", "import dynamo_plugin; print(dynamo_plugin.__file__)")
    assert where.startswith(str(target))
    table = run("-m", "dynamo_plugin", "quickstart", "--networks", "2", "--steps", "20")
    assert "gru" in table
    assert (elsewhere / "quickstart" / "report.html").is_file()
