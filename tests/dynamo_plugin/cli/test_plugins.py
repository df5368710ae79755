"""`dynamo-plugin plugins`, and what all commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from dynamo_plugin.cli._app import app
from dynamo_plugin.cli._exit import ExitCode
from dynamo_plugin.errors import StoreNotFound
from dynamo_plugin.registry import get_registry

pytestmark = pytest.mark.usefixtures("fresh_process")

COMMANDS = [
    *("quickstart", "inspect", "capture", "verify", "repair"),
    *("fit", "analyse", "compare", "pairwise", "report", "plugins"),
]


def test_the_table_is_aligned_and_complete() -> None:
    result = CliRunner().invoke(app, ["plugins"])
    assert (result.exit_code, result.stderr) == (ExitCode.OK, "")
    header, *lines = result.stdout.splitlines()
    assert header.split() == [
        "NAME", "KIND", "DISTRIBUTION", "VERSION", "PLUGIN", "STATE", "REASON",
    ]  # fmt: skip
    rows = [tuple(line.split()[:6]) for line in lines]
    assert ("l2", "loss", "dynamo-plugin", version("dynamo-plugin"), "builtin", "active") in rows
    assert len(rows) == len(get_registry().registrations())
    kind_at, reason_at = header.index("KIND"), header.index("REASON")
    assert all(line[kind_at - 2 : kind_at] == "  " for line in lines)
    assert {line[reason_at:] for line in lines} == {"-"}


def test_json_is_an_array_of_objects() -> None:
    result = CliRunner().invoke(app, ["plugins", "--json", "--kind", "adapter"])
    records = json.loads(result.stdout)
    assert {
        "name": "torch_recurrent",
        "kind": "adapter",
        "target": "dynamo_hooks.torch_recurrent:TorchRecurrentAdapter",
        "attributes": dict(get_registry().registration("adapter", "torch_recurrent").attributes),
        "plugin": "hooks",
        "distribution": "dynamo-plugin",
        "version": version("dynamo-plugin"),
        "state": "active",
        "reason": "",
    } in records
    assert {record["kind"] for record in records} == {"adapter"}


def test_a_disabled_plugin_is_one_line_with_its_reason(
    install: Callable[[str, str, str | None], None],
) -> None:
    install("faulty", "culprit", "raise ImportError('needs\\nrocket')")
    result = CliRunner().invoke(app, ["plugins"])
    (line,) = (line for line in result.stdout.splitlines() if "culprit" in line)
    assert line.split()[:6] == ["-", "-", "faulty", "1.2", "culprit", "disabled"]
    assert line.endswith("ImportError: needs rocket")


def test_an_unknown_kind_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["plugins", "--kind", "losses"])
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert "Did you mean 'loss'" in result.stderr


def test_the_choice_of_plugins_is_a_global_option() -> None:
    result = CliRunner().invoke(app, ["--plugins", "-hooks", "plugins", "--json"])
    states = {record["plugin"]: record["state"] for record in json.loads(result.stdout)}
    assert states["hooks"] == "excluded"
    assert states["builtin"] == "active"
    assert os.environ["DYNAMO_PLUGINS"] == "-hooks"


@pytest.mark.parametrize("by_option", [True, False])
def test_an_unknown_plugin_is_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, by_option: bool
) -> None:
    if not by_option:
        monkeypatch.setenv("DYNAMO_PLUGINS", "hoks")
    option = ["--plugins", "hoks"] if by_option else []
    result = CliRunner().invoke(app, [*option, "plugins", "--json"])
    assert (result.exit_code, result.stdout) == (ExitCode.ERROR, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Did you mean 'hooks'" in result.stderr


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (StoreNotFound("There is no store."), ExitCode.ERROR, "error: There is no store.\n"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted\n"),
        (typer.Exit(ExitCode.DAMAGED), ExitCode.DAMAGED, ""),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: ExitCode, message: str
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("dynamo_plugin.cli.plugins.get_registry", fail)
    result = CliRunner().invoke(app, ["plugins"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dynamo_plugin.cli.plugins.get_registry", fail)
    result = CliRunner().invoke(app, ["plugins"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_help_names_commands_examples_and_exit_codes() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == ExitCode.OK
    listed = result.stdout.partition("Commands:")[2].partition("Exit codes:")[0].splitlines()
    assert [line.split()[0] for line in listed if line.strip()] == COMMANDS
    assert "\n    dynamo-plugin fit population.zarr\n" in result.stdout
    assert "\n    3    verify found damage\n" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == ExitCode.OK
    assert f"Usage: dynamo-plugin {command}" in result.stdout or command in result.stdout


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout == f"dynamo-plugin {version('dynamo-plugin')}\n"
    assert result.exit_code == ExitCode.OK


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["fti"]).exit_code == ExitCode.USAGE
