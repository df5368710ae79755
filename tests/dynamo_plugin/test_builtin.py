"""What the package itself registers."""

from __future__ import annotations

import inspect

import pytest

from dynamo_plugin.registry import Registry

REGISTRY = Registry.from_entry_points(plugins="builtin,hooks")


def test_the_built_ins_are_all_there() -> None:
    assert {item.plugin.name: item.plugin.state for item in REGISTRY.registrations()} == {
        "builtin": "active",
        "hooks": "active",
    }
    assert "gru" in REGISTRY.names("meta_model")
    assert {"l2", "l1", "kl", "mse"} <= set(REGISTRY.names("loss"))
    assert {"fidelity", "components", "clusters", "average"} <= set(REGISTRY.names("analysis"))
    assert {"cka", "procrustes", "svcca", "rsa", "dsa"} <= set(REGISTRY.names("metric"))
    assert "torch_recurrent" in REGISTRY.names("adapter")


@pytest.mark.parametrize(
    ("kind", "name"), [(item.kind, item.name) for item in REGISTRY.registrations()]
)
def test_every_built_in_loads_and_keeps_its_contract(kind: str, name: str) -> None:
    from dynamo_plugin.registry.interfaces import Adapter, MetaModel, Metric

    target = REGISTRY.load(kind, name)
    assert REGISTRY.registration(kind, name).attributes["summary"]
    bases: dict[str, type] = {"adapter": Adapter, "meta_model": MetaModel, "metric": Metric}
    if kind in bases:
        assert issubclass(target, bases[kind])
        assert not inspect.isabstract(target)
    elif kind == "loss":
        assert list(inspect.signature(target).parameters) == ["prediction", "target", "mask"]


def test_every_analysis_has_a_result_that_cites_its_method() -> None:
    import dynamo_plugin.analyses as analyses
    from dynamo_plugin.analyses import TableResult

    results = {kind.name: kind for kind in TableResult.__subclasses__() if hasattr(kind, "name")}
    for name in REGISTRY.names("analysis"):
        result = results[name]
        assert result.__name__ in analyses.__all__
        assert "doi:" in result.reference or "arXiv:" in result.reference or "," in result.reference
