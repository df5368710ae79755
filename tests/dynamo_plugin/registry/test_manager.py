"""Plugins registered in the process, and what the registry gives back."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynamo_plugin.errors import DuplicateName, PluginError, UnknownName
from dynamo_plugin.registry import KINDS, Kind, Register, Registration, Registry, hookimpl
from dynamo_plugin.registry._hookspecs import HOOKS


def plugin_with(name: str, target: str, **attributes: str | int) -> object:
    @hookimpl
    def dynamo_register_losses(register: Register) -> None:
        register(name, target, **{"role": "hidden", **attributes})

    return module_of(dynamo_register_losses=dynamo_register_losses)


def module_of(**functions: object) -> types.ModuleType:
    module = types.ModuleType("plugin_made_by_a_test")
    vars(module).update(functions)
    return module


def test_every_kind_has_its_hook() -> None:
    names: dict[str, Kind] = {}

    def implementation(hook: str) -> object:
        def function(register: Register) -> None:
            register(hook, "math:dist", role="output")

        function.__name__ = hook
        return hookimpl(function)

    registry = Registry()
    registry.register_plugin(
        module_of(**{hook: implementation(hook) for hook in HOOKS}), name="all"
    )
    for registration in registry.registrations():
        names[registration.name] = registration.kind
    assert names == HOOKS
    assert tuple(HOOKS.values()) == KINDS
    for hook, kind in HOOKS.items():
        assert registry.names(kind) == (hook,)
        assert registry.registrations(kind) == (registry.registration(kind, hook),)


def test_a_registration_says_what_was_given() -> None:
    registry = Registry()
    record = registry.register_plugin(
        plugin_with("dist", "math:dist", summary="one line", order=2), name="mine"
    )
    assert registry.registration("loss", "dist") == Registration(
        kind="loss",
        name="dist",
        target="math:dist",
        plugin=record,
        attributes={"role": "hidden", "summary": "one line", "order": 2},
    )
    assert registry.plugins() == (record,)
    assert (record.state, record.distribution, record.version) == ("active", None, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.state = "disabled"  # type: ignore[misc]


def test_names_keep_the_order_of_registration() -> None:
    class Plugin:
        @hookimpl
        def dynamo_register_metrics(self, register: Register) -> None:
            for name in ("zeta", "alpha", "mu"):
                register(name, "math:dist")

    registry = Registry()
    registry.register_plugin(Plugin(), name="mine")
    assert registry.names("metric") == ("zeta", "alpha", "mu")


def test_an_instance_that_cannot_be_hashed_is_a_plugin_too() -> None:
    @hookimpl
    def dynamo_register_metrics(register: Register) -> None:
        register("dist", "math:dist")

    registry = Registry()
    registry.register_plugin(
        SimpleNamespace(dynamo_register_metrics=dynamo_register_metrics), name="mine"
    )
    assert registry.names("metric") == ("dist",)


def test_load_imports_the_target_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazily_imported_by_a_test.py").write_text("class Outer:\n    class Inner: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    registry.register_plugin(
        plugin_with("inner", "lazily_imported_by_a_test:Outer.Inner"), name="mine"
    )
    assert registry.listing()[0].target == "lazily_imported_by_a_test:Outer.Inner"
    assert "lazily_imported_by_a_test" not in sys.modules
    loaded = registry.load("loss", "inner")
    assert loaded is sys.modules.pop("lazily_imported_by_a_test").Outer.Inner


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("no_such_package.module:thing", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("math:distance", "AttributeError: module 'math' has no attribute 'distance'"),
        ("math:pi", "must be a class or a function"),
    ],
)
def test_a_target_that_does_not_load_names_everything(target: str, cause: str) -> None:
    registry = Registry()
    registry.register_plugin(plugin_with("thing", target), name="mine")
    with pytest.raises(PluginError) as caught:
        registry.load("loss", "thing")
    message = str(caught.value)
    assert "loss 'thing' of plugin 'mine'" in message
    assert repr(target) in message
    assert cause in message


def test_faults_of_a_plugin_of_this_process_raise() -> None:
    @hookimpl
    def dynamo_register_losses(reg: Register) -> None: ...

    with pytest.raises(PluginError, match=r"plugin 'mine' .*dynamo_register_losses.*\(reg"):
        Registry().register_plugin(
            module_of(dynamo_register_losses=dynamo_register_losses), name="mine"
        )


def test_a_class_in_place_of_an_instance_is_explained() -> None:
    class Plugin:
        @hookimpl
        def dynamo_register_metrics(self, register: Register) -> None: ...

    with pytest.raises(PluginError, match=r"signature \(self, register"):
        Registry().register_plugin(Plugin, name="mine")


def test_what_a_callback_raises_is_the_cause() -> None:
    @hookimpl
    def dynamo_register_losses(register: Register) -> None:
        math.sqrt(-1)

    registry = Registry()
    with pytest.raises(PluginError, match="dynamo_register_losses raised ValueError") as caught:
        registry.register_plugin(
            module_of(dynamo_register_losses=dynamo_register_losses), name="mine"
        )
    assert isinstance(caught.value.__cause__, ValueError)
    assert registry.plugins() == ()


def test_a_taken_name_raises_and_changes_nothing() -> None:
    registry = Registry()
    registry.register_plugin(plugin_with("dist", "math:dist"), name="first")
    before = registry.registrations()
    with pytest.raises(DuplicateName, match=r"'dist' .*'math:dist' of plugin 'first'"):
        registry.register_plugin(plugin_with("dist", "math:hypot"), name="second")
    assert registry.registrations() == before
    assert [record.name for record in registry.plugins()] == ["first"]
    registry.register_plugin(plugin_with("hypot", "math:hypot"), name="second")
    assert registry.names("loss") == ("dist", "hypot")


def test_a_name_taken_twice_by_one_plugin_raises() -> None:
    class Plugin:
        @hookimpl
        def dynamo_register_metrics(self, register: Register) -> None:
            register("dist", "math:dist")
            register("dist", "math:hypot")

    with pytest.raises(DuplicateName):
        Registry().register_plugin(Plugin(), name="mine")


def test_a_plugin_name_is_taken_once() -> None:
    registry = Registry()
    registry.register_plugin(plugin_with("dist", "math:dist"), name="mine")
    with pytest.raises(DuplicateName, match=r"unregister_plugin\('mine'\)"):
        registry.register_plugin(plugin_with("hypot", "math:hypot"), name="mine")


def test_a_plugin_of_this_process_does_not_take_the_name_of_an_installed_one() -> None:
    with pytest.raises(
        DuplicateName, match=r"plugin 'builtin' \(dynamo-plugin .*leave that one out"
    ):
        Registry.from_entry_points(plugins="builtin").register_plugin(
            plugin_with("dist", "math:dist"), name="builtin"
        )


def test_a_plugin_can_be_replaced() -> None:
    registry = Registry()
    registry.register_plugin(plugin_with("kept", "math:dist"), name="other")
    registry.register_plugin(plugin_with("dist", "math:dist"), name="mine")
    registry.unregister_plugin("mine")
    assert registry.names("loss") == ("kept",)
    registry.register_plugin(plugin_with("dist", "math:hypot"), name="mine")
    assert registry.load("loss", "dist") is math.hypot


def test_only_plugins_of_this_process_are_unregistered() -> None:
    registry = Registry.from_entry_points(plugins=["builtin"])
    registry.register_plugin(plugin_with("dist", "math:dist"), name="mine")
    with pytest.raises(UnknownName, match=r"'builtin'.*Known: mine"):
        registry.unregister_plugin("builtin")


def test_an_unknown_kind_suggests() -> None:
    registry = Registry()
    for call in (registry.names, registry.registrations):
        with pytest.raises(UnknownName, match="Did you mean 'loss'"):
            call("losses")
    with pytest.raises(UnknownName, match="Did you mean 'loss'"):
        registry.load("losses", "l2")


@pytest.mark.parametrize("name", ["", "two words", "comma,", "-dash", "new\nline", 3])
def test_a_malformed_name_is_refused(name: object) -> None:
    with pytest.raises(PluginError, match="must be a string of letters, digits"):
        Registry().register_plugin(plugin_with(name, "math:dist"), name="mine")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target", ["", "math", "math.dist", "math:", ":dist", "my-pkg:x", math.dist]
)
def test_a_malformed_target_is_refused(target: object) -> None:
    with pytest.raises(PluginError, match="must be an import string such as"):
        Registry().register_plugin(plugin_with("dist", target), name="mine")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"role": "both"}, "role='hidden' or role='output'; role is 'both'"),
        ({"summary": "two\nlines"}, "one line of text"),
        ({"summary": 3}, "one line of text"),
        ({"shape": [1, 2]}, "'shape' of loss 'dist' must be a string, a number or a boolean"),
    ],
)
def test_a_malformed_attribute_is_refused(attributes: dict[str, str], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Registry().register_plugin(plugin_with("dist", "math:dist", **attributes), name="mine")


def test_a_loss_must_say_its_role() -> None:
    @hookimpl
    def dynamo_register_losses(register: Register) -> None:
        register("dist", "math:dist")

    with pytest.raises(PluginError, match="role is None"):
        Registry().register_plugin(
            module_of(dynamo_register_losses=dynamo_register_losses), name="mine"
        )


def test_a_hook_of_a_later_release_may_be_marked_optional() -> None:
    @hookimpl(optionalhook=True)
    def dynamo_register_wonders(register: Register) -> None:
        register("wonder", "math:dist")

    registry = Registry()
    registry.register_plugin(
        module_of(dynamo_register_wonders=dynamo_register_wonders), name="mine"
    )
    assert registry.registrations() == ()
    (listed,) = registry.listing()
    assert (listed.plugin, listed.name, listed.kind, listed.state) == ("mine", None, None, "active")


def test_a_function_may_say_which_hook_it_implements() -> None:
    class Plugin:
        @hookimpl(specname="dynamo_register_metrics")
        def first(self, register: Register) -> None:
            register("one", "math:dist")

        @hookimpl(specname="dynamo_register_metrics")
        def second(self, register: Register) -> None:
            register("two", "math:dist")

    registry = Registry()
    registry.register_plugin(Plugin(), name="mine")
    assert registry.names("metric") == ("one", "two")
