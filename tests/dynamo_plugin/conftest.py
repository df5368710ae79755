"""Fixtures that the tests of several rooms share."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dynamo_plugin.registry import _process


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str, str | None], None]]:
    """Return `install(distribution, plugin, source)`.

    It lays a distribution with one plugin on the path, as an installer would: metadata, an
    entry point and a module. A source of None announces a module that is not there.
    """
    monkeypatch.delenv("DYNAMO_PLUGINS", raising=False)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    modules: list[str] = []

    def install(distribution: str, plugin: str, source: str | None) -> None:
        module = f"plugin_module_of_{distribution.replace('-', '_')}_{plugin}"
        modules.append(module)
        if source is not None:
            header = "from dynamo_plugin.registry import hookimpl\n"
            (site / f"{module}.py").write_text(header + textwrap.dedent(source))
        metadata = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        points = metadata / "entry_points.txt"
        earlier = points.read_text() if points.exists() else "[dynamo_plugin]\n"
        points.write_text(f"{earlier}{plugin} = {module}\n")
        importlib.invalidate_caches()

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the registry of this process for one test, and restore it after."""
    monkeypatch.setattr(_process, "_current", None)
    # Set first, so that what the test leaves in the variable is undone too.
    monkeypatch.setenv("DYNAMO_PLUGINS", "")
