"""Batches of targets against slices of the stored rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dynamo_plugin.errors import CorruptBlock, InvalidInput, UnknownName
from dynamo_plugin.recording import capture
from dynamo_plugin.store import Population
from dynamo_plugin.training import Targets
from dynamo_plugin.training import targets as module

CPU = torch.device("cpu")


@pytest.fixture(params=["memory", "store"])
def targets(
    request: pytest.FixtureRequest, ragged: Population, monkeypatch: pytest.MonkeyPatch
) -> Targets:
    if request.param == "store":
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    return Targets(ragged, sites=None, device=CPU)


@pytest.mark.parametrize("models", [[0, 1, 2], [2, 0], [1]])
def test_batches_are_the_stored_rows(
    targets: Targets, ragged: Population, models: list[int]
) -> None:
    samples = [6, 1, 3, 1]
    batch = targets.batch(torch.tensor(models), torch.tensor(samples))
    assert batch.lengths.tolist() == [6, 1, 3, 1]
    assert batch.states["hidden"].shape == (len(models), 4, 6, 4)
    for position, model in enumerate(models):
        rows = ragged.states(ragged.ids[model])
        for place, sample in enumerate(samples):
            start, stop = ragged.offsets[sample : sample + 2]
            padded = np.zeros((6, 4), np.float32)
            padded[: stop - start, : rows.shape[1]] = rows[start:stop]
            assert np.array_equal(batch.states["hidden"][position, place].numpy(), padded)


def test_outputs_come_by_group(targets: Targets, ragged: Population) -> None:
    batch = targets.batch(torch.tensor([2, 1, 0]), torch.tensor([5, 0]))
    positions, values = batch.outputs["class"]
    assert positions.tolist() == [0, 2]
    assert values.shape == (2, 2, 1, 3)
    assert np.array_equal(values[1, 0, 0].numpy(), ragged.outputs("a")[5])
    positions, values = batch.outputs["value"]
    assert positions.tolist() == [1]
    start = ragged.offsets[5]
    assert np.array_equal(values[0, 0, :2].numpy(), ragged.outputs("b")[start : start + 2])
    assert not values[0, 0, 2:].any()


def test_a_group_without_models_in_the_batch_is_absent(targets: Targets) -> None:
    assert set(targets.batch(torch.tensor([1]), torch.tensor([0])).outputs) == {"value"}


def test_statistics_match_numpy(
    targets: Targets, ragged: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLES_PER_READ", 3)
    samples = [0, 2, 3, 6, 7, 8, 9]
    mean, scale = targets.state_statistics(torch.tensor(samples), "hidden")
    for model, name in enumerate(ragged.ids):
        rows = ragged.states(name, samples=samples).astype(np.float64)
        units = rows.shape[1]
        assert np.allclose(mean[model, :units], rows.mean(0), rtol=1e-6)
        assert not mean[model, units:].any()
        assert scale[model].item() == pytest.approx(np.sqrt(rows.var(0).mean()), rel=1e-6)


@pytest.mark.parametrize("samples", [[1, 4, 9], [1, 4, 4, 9]])
def test_output_variance_matches_numpy(
    targets: Targets, ragged: Population, samples: list[int]
) -> None:
    rows = ragged.outputs("b", samples=samples).astype(np.float64)
    assert targets.output_variance("value", torch.tensor(samples)) == pytest.approx(
        rows.var(0).mean(), rel=1e-6
    )
    both = np.concatenate([ragged.outputs(name, samples=samples) for name in "ac"])
    assert targets.output_variance("class", torch.tensor(samples)) == pytest.approx(
        both.astype(np.float64).var(0).mean(), rel=1e-6
    )


def test_states_that_never_vary_are_refused(
    write_population: Callable[..., Population],
) -> None:
    rng = np.random.default_rng(0)
    states = {"live": rng.normal(size=(6, 2)), "dead": np.full((6, 3), 0.7)}
    outputs = {name: rng.normal(size=(3, 2)) for name in states}
    population = write_population(states, outputs, rng.normal(size=(6, 1)), [2, 2, 2])
    with pytest.raises(InvalidInput, match=r"'dead'.*states that vary"):
        Targets(population, sites=None, device=CPU).state_statistics(torch.arange(3), "hidden")


def test_an_unknown_site_suggests(ragged: Population) -> None:
    with pytest.raises(UnknownName, match=r"no site 'rn'. Did you mean 'rnn'"):
        Targets(ragged, sites=["rn"], device=CPU)


@pytest.mark.parametrize("limit", [0, 2**30])
@pytest.mark.parametrize("models", [[0, 1, 2], [2, 0], [1]])
def test_batches_say_which_steps_were_stored(
    ragged: Population,
    strided: Population,
    models: list[int],
    limit: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", limit)
    samples = torch.tensor([6, 1, 3, 4])
    whole = Targets(ragged, sites=None, device=CPU).batch(torch.tensor(models), samples)
    batch = Targets(strided, sites=None, device=CPU).batch(torch.tensor(models), samples)
    real = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    assert torch.equal(whole.masks["hidden"], real[None])
    if models == [1]:
        assert torch.equal(batch.masks["hidden"], real[None])
        assert torch.equal(batch.states["hidden"], whole.states["hidden"])
        return
    for position, model in enumerate(models):
        for place, length in enumerate([6, 1, 3, 5]):
            for time in range(6):
                stored = time < length and time % [2, 1, 3][model] == 0
                assert batch.masks["hidden"][position, place, time] == stored
                state = batch.states["hidden"][position, place, time]
                assert torch.equal(state, whole.states["hidden"][position, place, time] * stored)


def test_statistics_are_those_of_the_stored_steps(strided: Population) -> None:
    samples = [0, 2, 9]
    mean, scale = Targets(strided, sites=None, device=CPU).state_statistics(
        torch.tensor(samples), "hidden"
    )
    rows = strided.states("c", samples=samples).astype(np.float64)
    assert len(rows) == 2 + 2 + 2
    assert np.allclose(mean[2, :3], rows.mean(0), rtol=1e-6)
    assert scale[2].item() == pytest.approx(np.sqrt(rows.var(0).mean()), rel=1e-6)


def test_sites_stored_at_different_steps_are_not_joined() -> None:
    inputs, models = torch.randn(4, 5, 2), {"a": torch.nn.GRU(2, 3, num_layers=2, batch_first=True)}
    population = capture(
        models, inputs, {}, reduce={"*layer1": {"every": 2}, "*": {}}, progress=False
    )
    with pytest.raises(InvalidInput, match=r"'gru.layer0' every 1, 'gru.layer1' every 2.*sites="):
        Targets(population, sites=None, device=CPU)
    (stage,) = Targets(population, sites=["gru.layer1"], device=CPU).stages
    assert stage.every == (2,)


@pytest.fixture
def unread(ragged: Population, monkeypatch: pytest.MonkeyPatch) -> Targets:
    """Targets that read every batch from the store."""
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    return Targets(ragged, sites=None, device=CPU)


def test_a_batch_that_was_read_ahead_is_not_read_again(
    unread: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, samples = torch.tensor([2, 0]), torch.tensor([6, 1, 3])
    expected = unread.batch(models, samples)
    unread.prefetch(models, samples)
    other = unread.batch(models, samples[:2])  # something else may be asked for in between
    assert torch.equal(other.states["hidden"], expected.states["hidden"][:, :2])
    unread.prefetch(models[:0], samples)  # as where a process has no model in a pass
    unread._ahead[models.numpy().tobytes(), samples.numpy().tobytes()].result()
    monkeypatch.setattr(module._StageReader, "read", None)
    batch = unread.batch(models, samples)
    assert torch.equal(batch.states["hidden"], expected.states["hidden"])
    assert torch.equal(batch.masks["hidden"], expected.masks["hidden"])
    with pytest.raises(TypeError, match="not callable"):  # read ahead once, had once
        unread.batch(models, samples)


def test_what_goes_wrong_ahead_is_raised_when_the_batch_is_asked_for(
    unread: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise CorruptBlock("flipped")

    monkeypatch.setattr(module._StageReader, "read", read)
    unread.prefetch(torch.tensor([1]), torch.tensor([6]))
    with pytest.raises(CorruptBlock, match="flipped"):
        unread.batch(torch.tensor([1]), torch.tensor([6]))
