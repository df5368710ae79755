"""The registry of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from dynamo_plugin.errors import UnknownName
from dynamo_plugin.registry import PluginListing, get_registry, plugins, select_plugins

pytestmark = pytest.mark.usefixtures("fresh_process")


def test_it_is_loaded_once() -> None:
    assert get_registry() is get_registry()


def test_selecting_loads_it_anew_and_tells_child_processes() -> None:
    before = get_registry()
    registry = select_plugins(["builtin"])
    assert registry is get_registry() is not before
    assert registry.names("adapter") == ()
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import dynamo_plugin.registry as r; print(len(r.get_registry().names('adapter')))",
        ],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout == "0\n"


def test_a_bad_selection_changes_nothing() -> None:
    before = get_registry()
    with pytest.raises(UnknownName):
        select_plugins("nobody")
    assert get_registry() is before
    assert os.environ["DYNAMO_PLUGINS"] == ""


def test_a_plugin_that_asks_for_the_registry_while_loading_is_disabled(
    install: Callable[[str, str, str | None], None],
) -> None:
    install("aardvark", "eager", "from dynamo_plugin.registry import get_registry\nget_registry()")
    (record,) = (record for record in get_registry().plugins() if record.name == "eager")
    assert record.state == "disabled"
    assert "while plugins were being loaded" in record.reason
    assert "l2" in get_registry().names("loss")


def test_the_listing_has_one_record_per_registration() -> None:
    select_plugins("-hooks")
    records = plugins()
    losses = [record for record in records if record.kind == "loss"]
    assert [(record.name, record.attributes["role"]) for record in losses] == [
        ("l2", "hidden"),
        ("l1", "hidden"),
        ("kl", "output"),
        ("mse", "output"),
    ]
    (hooks,) = (record for record in records if record.plugin == "hooks")
    assert hooks == PluginListing(
        name=None,
        kind=None,
        target=None,
        attributes={},
        plugin="hooks",
        distribution="dynamo-plugin",
        version=losses[0].version,
        state="excluded",
        reason="The choice of plugins leaves it out.",
    )
