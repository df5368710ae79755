from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import dynamo_plugin as dp
from dynamo_plugin.errors import InvalidInput, PluginError, UnknownName
from dynamo_plugin.registry import Register, get_registry, hookimpl


def test_runs_by_name_with_options(embedding: dp.ModelEmbedding) -> None:
    for name in ("fidelity", "components", "clusters", "average"):
        result = dp.analyse(name, embedding)
        assert result.name == name == result.summary()["analysis"]
        assert isinstance(result.to_dataframe(), pd.DataFrame)
        assert result.plot().data
    labelled = dp.analyse("clusters", embedding, labels="architecture", permutations=9)
    assert labelled.summary()["labels"] == "architecture"


def test_results_are_frozen(embedding: dp.ModelEmbedding) -> None:
    result: Any = dp.analyse("components", embedding)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.table = None


def test_unknown_names_suggest(embedding: dp.ModelEmbedding) -> None:
    with pytest.raises(UnknownName, match="'clusters'"):
        dp.analyse("cluster", embedding)
    with pytest.raises(InvalidInput, match=r"no option 'label'.*'labels'"):
        dp.analyse("clusters", embedding, label="architecture")


def test_the_embedding_is_checked() -> None:
    nothing: Any = "embedding/"
    with pytest.raises(InvalidInput, match="load_embedding"):
        dp.analyse("components", nothing)


@pytest.fixture
def odd_analyses(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("odd_analyses")
    module.nothing = lambda embedding: None
    module.needy = lambda embedding, *, depth: None
    module.open = lambda embedding, **options: options
    monkeypatch.setitem(sys.modules, "odd_analyses", module)

    class Plugin:
        @hookimpl
        def dynamo_register_analyses(self, register: Register) -> None:
            for name in ("nothing", "needy", "open"):
                register(name, f"odd_analyses:{name}")

    get_registry().register_plugin(Plugin(), name="odd")
    yield
    get_registry().unregister_plugin("odd")


@pytest.mark.usefixtures("odd_analyses")
def test_faults_of_plugins_are_named(embedding: dp.ModelEmbedding) -> None:
    with pytest.raises(PluginError, match="NoneType, which has no method to_dataframe"):
        dp.analyse("nothing", embedding)
    with pytest.raises(InvalidInput, match="needs the option 'depth'"):
        dp.analyse("needy", embedding)
    with pytest.raises(PluginError, match="dict"):
        dp.analyse("open", embedding, anything=1)
