"""Importing the package, listing plugins and asking for help must stay cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dynamo_plugin as dp
import dynamo_plugin.errors

HEAVY = {
    "captum",
    "numpy",
    "pandas",
    "plotly",
    "scipy",
    "sklearn",
    "torch",
    "transformer_lens",
    "zarr",
}

RUN = """
import sys
sys.argv = ["dynamo-plugin", *sys.argv[1:]]
from dynamo_plugin.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def heavy_imports(code: str, *arguments: str) -> set[str]:
    report = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + report, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return HEAVY & set(child.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module",
    [
        "dynamo_plugin",
        "dynamo_plugin.builtin",
        "dynamo_plugin.cli",
        "dynamo_plugin.errors",
        "dynamo_plugin.registry",
        "dynamo_plugin.types",
        "dynamo_hooks",
        "dynamo_hooks.plugin",
    ],
)
def test_importing_is_cheap(module: str) -> None:
    assert heavy_imports(f"import {module}") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins"],
        *(
            [command, "--help"]
            for command in (
                "quickstart",
                "inspect",
                "capture",
                "verify",
                "fit",
                "analyse",
                "compare",
                "pairwise",
                "report",
            )
        ),
    ],
    ids=" ".join,
)
def test_the_command_line_is_cheap_until_it_works(arguments: list[str]) -> None:
    assert heavy_imports(RUN, *arguments) == set()


def test_the_check_can_fail() -> None:
    assert "numpy" in heavy_imports("import numpy")


def test_public_names_resolve_where_they_are_defined() -> None:
    assert [name for name in dp.__all__ if not hasattr(dp, name)] == []
    assert dp.capture.__module__.startswith("dynamo_plugin.recording")
    assert dp.open_population.__module__.startswith("dynamo_plugin.store")
    assert dp.fit.__module__.startswith("dynamo_plugin.embedding")
    assert dp.analyse.__module__.startswith("dynamo_plugin.analyses")
    assert dp.pairwise.__module__.startswith("dynamo_plugin.metrics")
    assert dp.write_report.__module__.startswith("dynamo_plugin.report")
    assert dp.errors is dynamo_plugin.errors


def test_what_is_public_is_listed() -> None:
    assert set(dp.__all__) <= set(dir(dp))


def test_an_unknown_name_suggests() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'captur'. Did you mean 'capture'"):
        getattr(dp, "captur")  # noqa: B009 - mypy knows that the attribute does not exist
    assert not hasattr(dp, "__wrapped__")
