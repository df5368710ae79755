"""The initial token embedding against a plain loop and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from dynamo_plugin.store import Population
from dynamo_plugin.training import FitConfig, Targets, Trainer, token_responses
from dynamo_plugin.training.token_responses import embed_token_responses

LENGTHS = [4, 1, 6, 3, 5, 2, 6, 6]
VOCABULARY = 9  # id 7 never occurs
WIDTHS = (3, 5)


@pytest.fixture(scope="module")
def population(write_population: Callable[..., Population]) -> Population:
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    ids = rng.choice([0, 1, 2, 3, 4, 5, 6, 8], rows)
    ids[0] = 8
    return write_population(
        {f"m{w}": rng.normal(size=(rows, w)).astype(np.float32) for w in WIDTHS},
        {f"m{w}": rng.normal(size=(len(LENGTHS), 2)).astype(np.float32) for w in WIDTHS},
        ids,
        LENGTHS,
    )


def _embed(
    population: Population, samples: list[int], token_dim: int, *, layered: bool = False
) -> torch.Tensor:
    return embed_token_responses(
        Targets(population, sites=None, device=torch.device("cpu"), layered=layered),
        torch.tensor(samples),
        torch.tensor([2.0, 0.5]),
        vocabulary=VOCABULARY,
        token_dim=token_dim,
        generator=torch.Generator().manual_seed(0),
    )


def _plain(
    population: Population, samples: list[int], *, layered: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Coefficients of each token for the change of both models' scaled states, and its count.

    Least squares on one column per token and one per unit of the state before. Of layered models,
    whose steps do not follow from each other, the mean state.
    """
    parts = []
    for name, scale in (("m3", 2.0), ("m5", 0.5)):
        tokens, befores, changes = [], [], []
        for sample in samples:
            start, stop = population.offsets[sample : sample + 2]
            before = np.zeros(int(name[1]))
            for row in range(start, stop):
                now = population.states(name)[row] / scale
                tokens.append(population.inputs.values[row])
                befores.append(before)
                changes.append(now if layered else now - before)
                before = before if layered else now
        parts.append(_coefficients(np.array(tokens), np.array(befores), np.array(changes)))
    counts = np.bincount(tokens, minlength=VOCABULARY)
    return np.concatenate(parts, axis=1), counts


def _coefficients(
    tokens: NDArray[np.int64], befores: NDArray[np.float64], changes: NDArray[np.float64]
) -> NDArray[np.float64]:
    columns = np.concatenate([np.eye(VOCABULARY)[tokens], befores], axis=1)
    solution: NDArray[np.float64] = np.linalg.lstsq(columns, changes)[0][:VOCABULARY]
    return solution


@pytest.mark.parametrize("layered", [False, True])
def test_is_the_count_weighted_pca_of_mean_responses(
    population: Population,
    layered: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_responses, "SAMPLES_PER_READ", 3)
    monkeypatch.setattr(token_responses, "MODELS_PER_READ", 1)
    samples = [0, 2, 3, 5, 6, 7]
    embedded = _embed(population, samples, 4, layered=layered).double().numpy()
    responses, counts = _plain(population, samples, layered=layered)
    # Weighting a token by its count is showing it to the PCA as often.
    repeated = np.repeat(responses, counts, axis=0)
    expected = PCA(n_components=4, svd_solver="full").fit(repeated).transform(responses)
    expected *= (counts > 0)[:, None]
    expected *= 0.3 / np.sqrt((expected**2 * counts[:, None]).sum() / counts.sum() / 4)
    signs = np.sign((embedded * expected).sum(0))
    np.testing.assert_allclose(embedded, expected * signs, rtol=1e-3, atol=1e-4)
    assert not embedded[7].any()


def test_components_beyond_the_rank_are_zero(population: Population) -> None:
    embedded = _embed(population, list(range(8)), token_dim=20)
    assert embedded.shape == (VOCABULARY, 20)
    assert not embedded[:, 8:].any()
    assert bool(embedded[:, :7].any(0).all())


def test_wide_populations_are_projected(
    population: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _embed(population, list(range(8)), token_dim=4)
    monkeypatch.setattr(token_responses, "RESPONSE_DIMS", 6)
    projected = _embed(population, list(range(8)), token_dim=4)
    assert bool(torch.isfinite(projected).all())
    assert not torch.allclose(projected, whole)


@pytest.mark.parametrize("token_init", ["responses", "random"])
def test_a_fit_starts_from_it_if_asked(population: Population, token_init: str) -> None:
    config = FitConfig.from_options(
        {
            "token_init": token_init,
            "steps": 1,
            "learning_rate": 1e-12,
            "family_options": {"units": 4, "token_dim": 3},
        }
    )
    fitted = Trainer(population, config, device=torch.device("cpu")).run()
    table = fitted.meta_model.token_embedding
    assert table is not None
    assert bool(table.weight[7].any()) == (token_init == "random")


def test_changes_between_stored_states_are_shared(
    population: Population, write_population: Callable[..., Population]
) -> None:
    """Against a loop over the tokens; one model has all its states, the other every third."""
    strided = write_population(
        {name: population.states(name) for name in population.ids},
        {name: population.outputs(name) for name in population.ids},
        population.inputs.values,
        LENGTHS,
        every={"m5": 3},
    )
    samples = list(range(8))
    embedded = _embed(strided, samples, token_dim=4).double().numpy()
    halves, counts = [], np.zeros(VOCABULARY, np.int64)
    for name, scale, every in (("m3", 2.0, 1), ("m5", 0.5, 3)):
        steps: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
        for start, length in zip(population.offsets, LENGTHS, strict=False):
            states = population.states(name)[start : start + length] / scale
            tokens = population.inputs.values[start : start + length]
            read: list[int] = []
            before = np.zeros(states.shape[1])
            for time in range(length):
                read.append(tokens[time])
                if time % every == 0:
                    for token in read:
                        steps.append((token, before, (states[time] - before) / len(read)))
                    before, read = states[time], []
        tokens, befores, changes = (np.array(column) for column in zip(*steps, strict=True))
        halves.append(_coefficients(tokens, befores, changes))
        counts += np.bincount(tokens, minlength=VOCABULARY)
    responses = np.concatenate(halves, axis=1)
    expected = PCA(n_components=4, svd_solver="full").fit(np.repeat(responses, counts, axis=0))
    scores = expected.transform(responses) * (counts > 0)[:, None]
    scores *= 0.3 / np.sqrt((scores**2 * counts[:, None]).sum() / counts.sum() / 4)
    signs = np.sign((embedded * scores).sum(0))
    np.testing.assert_allclose(embedded, scores * signs, rtol=1e-3, atol=1e-4)
