"""A room imports only the rooms above it; adapters see only the contracts."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import dynamo_plugin

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_hold() -> None:
    check = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_room_has_its_place_in_the_contracts() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers, adapters, core = settings["contracts"]
    rooms = {
        f"dynamo_plugin.{module.name}"
        for module in pkgutil.iter_modules(dynamo_plugin.__path__)
        if module.name != "__main__"
    }
    assert set(layers["layers"]) == rooms
    contracts = {f"dynamo_plugin.{name}" for name in ("errors", "types", "registry")}
    assert set(adapters["forbidden_modules"]) == rooms - contracts
    assert core["source_modules"] == ["dynamo_plugin"]
    assert core["forbidden_modules"] == ["dynamo_hooks"]
