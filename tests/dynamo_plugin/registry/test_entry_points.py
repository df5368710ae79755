"""Installed plugins: what loads, what does not, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.registry import PluginRecord, Registry

Install = Callable[[str, str, str | None], None]

GOOD = """
    @hookimpl
    def dynamo_register_losses(register):
        register("{name}", "math:dist", role="hidden")
    """

FAULTS = {
    "missing": (None, "ModuleNotFoundError"),
    "syntax": ("def broken(:\n    pass", "SyntaxError"),
    "exits": ("import sys\nsys.exit(4)", "SystemExit: 4"),
    "signature": (
        "@hookimpl\ndef dynamo_register_losses(reg):\n    pass",
        "dynamo_register_losses has the signature (reg); "
        "expected `def dynamo_register_losses(register)`",
    ),
    "no_argument": (
        "@hookimpl\ndef dynamo_register_losses():\n    pass",
        "has the signature (); expected `def dynamo_register_losses(register)`",
    ),
    "two_arguments": (
        "@hookimpl\ndef dynamo_register_losses(register, extra):\n    pass",
        "has the signature (register, extra)",
    ),
    "misspelled": (
        "@hookimpl\ndef dynamo_register_loses(register):\n    pass",
        "there is no hook 'dynamo_register_loses'. Did you mean 'dynamo_register_losses'",
    ),
    "unmarked": (
        "def dynamo_register_losses(register):\n    pass",
        "dynamo_register_losses is not marked as a hook. Decorate it with @hookimpl",
    ),
    "wrapper": (
        "@hookimpl(wrapper=True)\ndef dynamo_register_losses(register):\n    return (yield)",
        "is marked as a wrapper",
    ),
    "generator": (
        "@hookimpl\ndef dynamo_register_losses(register):\n    yield",
        "whose body would never run",
    ),
    "coroutine": (
        "@hookimpl\nasync def dynamo_register_losses(register):\n    pass",
        "whose body would never run",
    ),
    "raises": (
        "@hookimpl\ndef dynamo_register_losses(register):\n    1 / 0",
        "dynamo_register_losses raised ZeroDivisionError",
    ),
    "late": (
        """
        @hookimpl
        def dynamo_register_losses(register):
            global keep
            keep = register

        @hookimpl
        def dynamo_register_metrics(register):
            keep("late", "math:dist", role="hidden")
        """,
        "register was called for 'late' after the hook had returned",
    ),
}


def record_of(registry: Registry, name: str) -> PluginRecord:
    (record,) = (record for record in registry.plugins() if record.name == name)
    return record


def test_our_own_plugins_come_first_and_by_entry_point(install: Install) -> None:
    install("aardvark", "alpha", GOOD.format(name="alpha"))
    records = Registry.from_entry_points().plugins()
    assert [(record.name, record.distribution) for record in records[:2]] == [
        ("builtin", "dynamo-plugin"),
        ("hooks", "dynamo-plugin"),
    ]
    assert records[0].version == version("dynamo-plugin")
    assert ("alpha", "aardvark", "1.2", "active", "") in [
        (record.name, record.distribution, record.version, record.state, record.reason)
        for record in records
    ]


def test_third_parties_load_in_order_of_distribution_then_name(install: Install) -> None:
    for distribution, plugin in [("Zebra", "a"), ("lion", "d"), ("lion", "b")]:
        install(distribution, plugin, GOOD.format(name=f"{distribution}.{plugin}"))
    names = [record.name for record in Registry.from_entry_points().plugins()]
    assert [name for name in names if name in "abd"] == ["b", "d", "a"]


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_faulty_plugin_is_disabled_with_its_reason_and_the_rest_loads(
    install: Install, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, reason = FAULTS[fault]
    install("before", "first", GOOD.format(name="first"))
    install("faulty", "culprit", source)
    install("later", "last", GOOD.format(name="last"))
    with caplog.at_level(logging.WARNING, logger="dynamo_plugin"):
        registry = Registry.from_entry_points()
    culprit = record_of(registry, "culprit")
    assert culprit.state == "disabled"
    assert reason in culprit.reason
    assert "\n" not in culprit.reason
    assert record_of(registry, "first").state == record_of(registry, "last").state == "active"
    assert {"l2", "first", "last"} <= set(registry.names("loss"))
    assert [record.getMessage() for record in caplog.records] == [
        f"plugin 'culprit' (faulty 1.2) is disabled: {culprit.reason}"
    ]


def test_a_plugin_that_fails_halfway_leaves_nothing_behind(install: Install) -> None:
    install(
        "faulty",
        "halfway",
        """
        @hookimpl
        def dynamo_register_losses(register):
            register("orphan", "math:dist", role="hidden")

        @hookimpl
        def dynamo_register_metrics(register):
            raise ValueError("no")
        """,
    )
    install("later", "last", GOOD.format(name="orphan"))
    registry = Registry.from_entry_points()
    assert record_of(registry, "halfway").state == "disabled"
    assert registry.registration("loss", "orphan").plugin.name == "last"


def test_a_name_that_is_taken_disables_the_second_plugin_only(install: Install) -> None:
    install("aardvark", "first", GOOD.format(name="same"))
    install(
        "badger",
        "second",
        """
        @hookimpl
        def dynamo_register_losses(register):
            register("unique", "math:dist", role="hidden")
            register("same", "math:hypot", role="hidden")
        """,
    )
    registry = Registry.from_entry_points()
    second = record_of(registry, "second")
    assert second.state == "disabled"
    assert "'same'" in second.reason
    assert "plugin 'first' (aardvark 1.2)" in second.reason
    assert registry.registration("loss", "same").target == "math:dist"
    assert "unique" not in registry.names("loss")


def test_the_same_name_is_free_in_another_kind(install: Install) -> None:
    install(
        "aardvark",
        "both",
        """
        @hookimpl
        def dynamo_register_metrics(register):
            register("l2", "math:dist")
        """,
    )
    registry = Registry.from_entry_points()
    assert "l2" in registry.names("metric")
    assert "l2" in registry.names("loss")


def test_two_distributions_may_name_their_plugins_alike(install: Install) -> None:
    install("aardvark", "twin", GOOD.format(name="left"))
    install("badger", "twin", GOOD.format(name="right"))
    registry = Registry.from_entry_points()
    twins = [record for record in registry.plugins() if record.name == "twin"]
    assert [(twin.distribution, twin.state) for twin in twins] == [
        ("aardvark", "active"),
        ("badger", "active"),
    ]
    assert registry.registration("loss", "left").plugin == twins[0]
    assert registry.registration("loss", "right").plugin == twins[1]
    listed = {item.name: item.distribution for item in registry.listing() if item.plugin == "twin"}
    assert listed == {"left": "aardvark", "right": "badger"}


def test_one_module_announced_twice_is_loaded_once(install: Install, tmp_path: Path) -> None:
    install("aardvark", "first", GOOD.format(name="once"))
    points = tmp_path / "site" / "aardvark-1.2.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "second = plugin_module_of_aardvark_first\n")
    registry = Registry.from_entry_points()
    assert record_of(registry, "first").state == "active"
    second = record_of(registry, "second")
    assert second.state == "disabled"
    assert "is the same object as the plugin 'aardvark:first'" in second.reason
    assert "once" in registry.names("loss")


def test_a_distribution_without_readable_metadata_stops_nothing(
    install: Install, tmp_path: Path
) -> None:
    install("damaged", "lonely", GOOD.format(name="lonely"))
    (tmp_path / "site" / "damaged-1.2.dist-info" / "METADATA").unlink()
    registry = Registry.from_entry_points()
    assert record_of(registry, "lonely").distribution == "unknown distribution"
    assert {"l2", "lonely"} <= set(registry.names("loss"))


@pytest.mark.parametrize("by_argument", [True, False])
@pytest.mark.parametrize(
    ("choice", "active"),
    [
        ("extra", {"extra"}),
        (" extra , hooks ", {"extra", "hooks"}),
        ("-hooks", {"builtin", "extra"}),
    ],
)
def test_the_choice_of_plugins(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    by_argument: bool,
    choice: str,
    active: set[str],
) -> None:
    install("aardvark", "extra", GOOD.format(name="extra"))
    if by_argument:
        monkeypatch.setenv("DYNAMO_PLUGINS", "not-installed")  # the argument wins
        registry = Registry.from_entry_points(plugins=choice)
    else:
        monkeypatch.setenv("DYNAMO_PLUGINS", choice)
        registry = Registry.from_entry_points()
    states = {record.name: record.state for record in registry.plugins()}
    assert states == {
        name: "active" if name in active else "excluded" for name in ("builtin", "hooks", "extra")
    }
    assert all(record.reason for record in registry.plugins() if record.state == "excluded")
    assert {item.plugin.name for item in registry.registrations()} == active


def test_an_excluded_plugin_is_not_imported(install: Install) -> None:
    install("aardvark", "loud", "raise RuntimeError('imported')")
    assert record_of(Registry.from_entry_points(plugins="-loud"), "loud").state == "excluded"


@pytest.mark.parametrize("choice", ["hoks", "-hoks", ["builtin", "hoks"]])
def test_an_unknown_plugin_is_named_and_corrected(choice: str | list[str]) -> None:
    with pytest.raises(UnknownName, match=r"'hoks', which is not installed. Did you mean 'hooks'"):
        Registry.from_entry_points(plugins=choice)


def test_an_unknown_plugin_in_the_variable_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DYNAMO_PLUGINS", "hoks")
    with pytest.raises(UnknownName, match="DYNAMO_PLUGINS"):
        Registry.from_entry_points()


@pytest.mark.parametrize("choice", ["", [], "builtin,,hooks", "-", "builtin,-hooks"])
def test_a_malformed_choice_is_refused(choice: str | list[str]) -> None:
    with pytest.raises(InvalidInput):
        Registry.from_entry_points(plugins=choice)


def test_an_unknown_name_mentions_the_plugins_that_did_not_load(install: Install) -> None:
    install("faulty", "culprit", "raise ImportError('needs rocket')")
    registry = Registry.from_entry_points(plugins="-hooks")
    with pytest.raises(UnknownName) as caught:
        registry.registration("loss", "l3")
    message = str(caught.value)
    assert "There is no loss named 'l3'. Did you mean 'l" in message
    assert "Plugin 'culprit' (faulty 1.2) is disabled" in message
    assert "needs rocket" in message
    assert "Plugin 'hooks'" in message
    assert "is excluded" in message
