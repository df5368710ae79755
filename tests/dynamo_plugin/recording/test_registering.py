"""`register_adapter`: one line for models of a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.recording import capture, register_adapter, registering
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.store import Population
from dynamo_plugin.types import OutputSpec, SequenceBatch, SiteSpec, Trajectory, TrajectorySpec


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "_registered", {})


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.outer(self.inner(values).tanh())
        return logits


class Derived(Network):
    pass


VALUES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def run(model: Any, store: Any = None, **options: Any) -> Population:
    store = {} if store is None else store
    return capture({"a": model}, VALUES, store, progress=False, **options)


def test_layers_of_a_class() -> None:
    register_adapter(Network, layers=["inner"])
    model = Derived()
    population = run(model)
    assert population.sites("a") == ("inner",)
    expected = model.inner(torch.from_numpy(VALUES)).detach().numpy()
    np.testing.assert_allclose(population.states("a"), expected, rtol=1e-6)
    assert run(nn.DataParallel(model)).sites("a") == ("inner",)
    assert run(torch.compile(model, backend="eager")).sites("a") == ("inner",)


def test_what_a_capture_says_comes_first() -> None:
    register_adapter(Network, layers=["inner"])
    assert run(Network(), layers=["outer"]).sites("a") == ("outer",)
    register_adapter(Derived, layers=["inner", "outer"])
    assert run(Network()).sites("a") == ("inner",)
    assert run(Derived()).sites("a") == ("inner", "outer")
    register_adapter(Network, layers=["outer"])  # the last one counts
    assert run(Derived()).sites("a") == ("outer",)


def test_a_resumed_capture_must_read_models_alike() -> None:
    store: dict[str, Any] = {}
    model = Network()
    register_adapter(Network, layers=["inner"], forward=lambda model, values, _: model(values))
    run(model, store)
    assert run(model, store, resume=True).sites("a") == ("inner",)
    register_adapter(Network, layers=["inner"], forward=lambda model, values, _: model(-values))
    with pytest.raises(InvalidInput, match="another specification"):
        run(model, store, resume=True)


class Negative(Adapter):
    """Records the inputs with the other sign."""

    def __init__(self, *, factor: float = -1.0) -> None:
        self.factor = factor

    def supports(self, model: object) -> bool:
        return isinstance(model, Network)

    def describe(self, model: Any, inputs: SequenceBatch) -> TrajectorySpec:
        site, output = SiteSpec("x", (3,), "float32", "sample"), (2,)
        return TrajectorySpec(
            "negative", (site,), OutputSpec("out", output, "float32", "sample"), {}
        )

    def record(self, model: Any, inputs: SequenceBatch, spec: TrajectorySpec) -> Trajectory:
        outputs = model(inputs.values).detach()
        return Trajectory({"x": inputs.values * self.factor}, {"out": outputs}, inputs.lengths)


def test_an_adapter_of_ones_own() -> None:
    register_adapter(Network, adapter=Negative, factor=-2.0)
    np.testing.assert_array_equal(run(Network()).states("a"), -2 * VALUES)


def test_what_is_refused() -> None:
    with pytest.raises(InvalidInput, match="takes the class"):
        register_adapter(Network(), layers=["inner"])  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="says nothing"):
        register_adapter(Network)
    with pytest.raises(InvalidInput, match="derived from"):
        register_adapter(Network, adapter=Network)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="torch_layers"):
        register_adapter(Network, adapter="torch_layer")
    register_adapter(Network, layers=["iner"])
    with pytest.raises(UnknownName, match="Did you mean 'inner'"):
        run(Network())
