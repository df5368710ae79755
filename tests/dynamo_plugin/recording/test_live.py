"""Networks that are run when their states are needed, beside the same ones captured."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.errors import CaptureError, InvalidInput, NonFiniteStates, UnknownName
from dynamo_plugin.store import computed
from dynamo_plugin.training import targets


class Tagger(nn.Module):
    """Two recurrent layers over ids; a prediction for every step, or for the last one."""

    def __init__(self, units: int, *, per_step: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.rnn = nn.GRU(5, units, num_layers=2, batch_first=True)
        self.read = nn.Linear(units, 3)
        self.per_step = per_step

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        states = self.rnn(self.embed(ids))[0]
        if self.per_step:
            return torch.as_tensor(self.read(states))
        return torch.as_tensor(self.read(states[torch.arange(len(ids)), lengths - 1]))


def _taggers() -> dict[str, nn.Module | Callable[[], nn.Module]]:
    torch.manual_seed(0)
    made = Tagger(4)
    return {"a": Tagger(6), "b": Tagger(5, per_step=True), "c": lambda: made}


def _sentences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 7, (length,), generator=generator)
        for length in (3, 1, 5, 4, 5, 2, 3, 1, 4, 2, 5, 3)
    ]


def _images() -> dict[str, nn.Module | Callable[[], nn.Module]]:
    torch.manual_seed(0)
    return {
        name: nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 2)
        )
        for name, width in (("narrow", 2), ("wide", 3))
    }


@pytest.mark.parametrize(
    ("models", "inputs", "options"),
    [
        (_taggers, _sentences, {"output_groups": {"a": "last", "b": "steps", "c": "last"}}),
        (_images, lambda: torch.randn(9, 1, 4, 4), {"layers": ["0", "1"]}),
    ],
    ids=["sequences", "images"],
)
@pytest.mark.parametrize("kept", [2**20, 0])
def test_states_and_outputs_are_those_of_a_capture(
    models: Callable[[], Any],
    inputs: Callable[[], Any],
    options: dict[str, Any],
    kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(computed, "KEPT_BYTES", kept)
    nets, shown = models(), inputs()
    options = {**options, "batch_size": 4, "metadata": {name: {"size": len(name)} for name in nets}}
    captured = dp.capture(nets, shown, {}, progress=False, **options)
    live = dp.live_population(nets, shown, **options)
    assert live.ids == captured.ids
    assert live.sample_ids == captured.sample_ids
    assert live.population_spec == captured.population_spec
    assert live.inputs.hash == captured.inputs.hash
    assert live.metadata.equals(captured.metadata)
    for name in live.ids:
        assert live.spec(name) == captured.spec(name)
        assert live.model_hash(name) == captured.model_hash(name)
        assert live.nbytes(name) == captured.nbytes(name)
        for samples in (None, [4, 0, 2, 2], []):
            for site in live.sites(name):
                found = live.states(name, site, samples=samples)
                expected = captured.states(name, site, samples=samples)
                assert found.dtype == expected.dtype
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                live.outputs(name, samples=samples),
                captured.outputs(name, samples=samples),
                rtol=1e-5,
                atol=1e-6,
            )


def test_what_is_returned_is_the_callers_own() -> None:
    live = dp.live_population(_taggers(), _sentences())
    site = live.sites("a")[0]
    live.states("a", site)[:] = 7
    live.outputs("a")[:] = 7
    assert not (live.states("a", site) == 7).any()
    assert not (live.outputs("a") == 7).any()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_fit_is_that_of_a_capture(in_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_memory:  # networks run in every step
        monkeypatch.setattr(targets, "IN_MEMORY_BYTES", 0)
    models, shown = _taggers(), _sentences()
    settings: dict[str, Any] = {
        "steps": 4, "batch_size": 3, "embedding_dim": 2, "sites": ["rnn.layer1"],
        "family_options": {"units": 8}, "progress": False,
    }  # fmt: skip
    captured = dp.capture(models, shown, {}, progress=False)
    live = dp.live_population(models, shown)
    expected, found = (dp.fit(population, **settings) for population in (captured, live))
    torch.testing.assert_close(found.thetas, expected.thetas, rtol=1e-3, atol=1e-4)
    r2 = [
        dp.analyse("fidelity", embedding).to_dataframe()["hidden_r2"].to_numpy()
        for embedding in (expected, found)
    ]
    np.testing.assert_allclose(r2[0], r2[1], rtol=1e-2, atol=1e-3)


def test_an_embedding_asks_for_the_networks_when_it_is_loaded(tmp_path: Any) -> None:
    live = dp.live_population(_taggers(), _sentences())
    dp.fit(live, steps=2, embedding_dim=1, progress=False).save(tmp_path / "e")
    with pytest.raises(dp.DynamoError, match="population="):
        _ = dp.load_embedding(tmp_path / "e").population
    assert dp.load_embedding(tmp_path / "e", population=live).population is live


def test_networks_are_left_as_they_were() -> None:
    models = _taggers()
    first = models["a"]
    assert isinstance(first, nn.Module)
    first.train()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    dp.live_population(models, _sentences()).states("a", "rnn.layer0")
    assert first.training
    assert not any(module._forward_hooks for module in first.modules())
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


class Diverging(nn.Module):
    """Says NaN where an input is large."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 2, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.rnn(values.where(values < 9, torch.nan))[0])


def test_a_network_that_diverges_is_named_with_sample_and_step() -> None:
    shown = torch.zeros(4, 5, 1)
    shown[2, 3] = 10
    live = dp.live_population({"good": nn.RNN(1, 2, batch_first=True), "bad": Diverging()}, shown)
    assert np.isfinite(live.states("bad", samples=[0, 1, 3])).all()
    with pytest.raises(NonFiniteStates, match=r"'rnn' of model 'bad'.*'sample-2', step 3"):
        live.states("bad", samples=[1, 2])


class Failing(nn.Module):
    """Fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 2, batch_first=True)
        self.fails = False

    def forward(self, values: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("out of luck")
        return torch.as_tensor(self.rnn(values)[0])


def test_a_network_that_fails_is_named() -> None:
    failing = Failing()
    live = dp.live_population({"bad": failing}, torch.zeros(4, 5, 1))
    failing.fails = True
    with pytest.raises(CaptureError, match=r"model 'bad': .*RuntimeError: out of luck"):
        live.states("bad", samples=[2])


def test_what_is_not_there_is_an_error() -> None:
    live = dp.live_population(_taggers(), _sentences())
    with pytest.raises(UnknownName, match="no site 'rnn'"):
        live.states("a", "rnn")
    with pytest.raises(UnknownName, match="holds no model 'z'"):
        live.outputs("z")
    with pytest.raises(InvalidInput, match="Expected the name of one of the sites"):
        live.states("a")
    with pytest.raises(InvalidInput, match="not projected"):
        live.projection("a", "rnn.layer0")
    with pytest.raises(InvalidInput, match="from 0 to 11"):
        live.states("a", "rnn.layer0", samples=[12])


def test_it_joins_a_captured_population() -> None:
    models, shown = _taggers(), _sentences()
    captured = dp.capture({"a": models["a"]}, shown, {}, progress=False)
    joined = dp.join_populations(captured, dp.live_population({"b": models["b"]}, shown))
    assert joined.ids == ("a", "b")
    assert joined.states("b", "rnn.layer0").shape == (38, 5)
    assert joined.nbytes("b") == 38 * (5 + 5 + 3) * 4


def test_it_serves_threads_and_refuses_processes() -> None:
    live = dp.live_population(_taggers(), _sentences())
    expected = {name: live.states(name, "rnn.layer1") for name in live.ids}
    asked = [(name, "rnn.layer1", [sample]) for sample in range(12) for name in live.ids]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: live.states(one[0], one[1], samples=one[2]), asked))
    for (name, _, (sample,)), rows in zip(asked, found, strict=True):
        start, stop = live.offsets[sample : sample + 2]
        np.testing.assert_allclose(rows, expected[name][start:stop], rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidInput, match="capture the population"):
        pickle.dumps(live)
