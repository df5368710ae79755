"""The page about adapters says what is so, and its examples run."""

from __future__ import annotations

import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynamo_hooks
import dynamo_plugin as dp
from dynamo_plugin.recording import registering
from dynamo_plugin.registry import Registry, get_registry
from dynamo_plugin.registry.interfaces import Adapter

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


def table(page: str, heading: str) -> dict[str, str]:
    """Return first cell to whole row of the first table under a heading."""
    section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return {row.split("|")[1].strip().strip("`"): row for row in rows}


def test_every_adapter_and_every_option_is_listed(page: str) -> None:
    rows = table(page, "What there is")
    registry = get_registry()
    ours = {
        registration.name: registry.load("adapter", registration.name)
        for registration in registry.registrations("adapter")
        if registration.target.startswith("dynamo_hooks.")
    }
    assert list(rows) == list(ours)
    for name, kind in ours.items():
        options = re.findall(r"`(\w+)`", rows[name].split("|")[-2])
        assert options == list(inspect.signature(kind).parameters)


def test_the_files_exist(page: str) -> None:
    folder = Path(inspect.getfile(dynamo_hooks)).parent
    named = re.findall(r"`(_[\w*]+\.py)`", page)
    assert len(named) > 15
    for pattern in named:
        assert list(folder.glob(pattern)), pattern
    missing = {
        path.name
        for path in folder.glob("_[!_]*.py")
        if not any(path.match(pattern) for pattern in named)
    }
    assert not missing


def test_the_examples_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "_registered", {})
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {"__name__": "my_lab.reservoirs"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    assert issubclass(names["ReservoirAdapter"], Adapter)

    # As a plugin: nothing is registered for the class, and the adapter is found by what it takes.
    module = types.ModuleType("my_lab.reservoirs")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, "my_lab", types.ModuleType("my_lab"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    plugin = types.ModuleType("my_lab.dynamo")
    vars(plugin)["dynamo_register_adapters"] = names["dynamo_register_adapters"]
    registry = get_registry()
    assert isinstance(registry, Registry)
    monkeypatch.setattr(registering, "_registered", {})
    registry.register_plugin(plugin, name="my_lab")
    try:
        models = {"a": names["Reservoir"](0)}
        population = dp.capture(models, names["sequences"], {}, progress=False)
        assert population.sites("a") == ("state",)
        expected = models["a"](names["sequences"][2][None])[0]
        np.testing.assert_allclose(population.states("a", "state")[-6:], expected)
    finally:
        registry.unregister_plugin("my_lab")
