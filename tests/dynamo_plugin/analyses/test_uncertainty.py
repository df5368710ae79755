"""Uncertainty over fits against numpy, and against fits that are made apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import ortho_group

import dynamo_plugin as dp
from dynamo_plugin.analyses import UncertaintyResult, uncertainty
from dynamo_plugin.analyses import _fits as _fits_module
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, StoreNotFound

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "permutations": 19}


def _fits(embedding: ModelEmbedding, thetas: Sequence[NDArray[np.float64]]) -> list[ModelEmbedding]:
    """Return fits of the same networks at these thetas, with other seeds."""
    return [
        dataclasses.replace(
            embedding,
            thetas=torch.as_tensor(each, dtype=torch.float32),
            config=dataclasses.replace(embedding.config, seed=number),
        )
        for number, each in enumerate(thetas, start=1)
    ]


def _noisy(embedding: ModelEmbedding, count: int, noise: float) -> list[ModelEmbedding]:
    own = embedding.thetas.double().numpy()
    rng = np.random.default_rng(0)
    return _fits(embedding, [own + noise * rng.normal(size=own.shape) for _ in range(count)])


def _shorter(embedding: ModelEmbedding) -> ModelEmbedding:
    """Return an embedding whose refits take three steps."""
    return dataclasses.replace(embedding, config=dataclasses.replace(embedding.config, steps=3))


@pytest.fixture(scope="session")
def made(embedding: ModelEmbedding) -> UncertaintyResult:
    """Two fits with other seeds and three on bootstrap samples."""
    return uncertainty(embedding, refits=2, bootstrap=3, **QUIET)


def test_fits_that_differ_by_a_motion_are_one_place(embedding: ModelEmbedding) -> None:
    own = embedding.thetas.double().numpy()
    rng = np.random.default_rng(0)
    moved = [
        size * own @ ortho_group.rvs(own.shape[1], random_state=rng) + rng.normal(size=own.shape[1])
        for size in (1.0, 0.5, 3.0)
    ]
    result = uncertainty(embedding, fits=_fits(embedding, moved), **QUIET)
    assert result.converged
    assert result.fits["scale"].to_numpy() == pytest.approx([1, 1, 2, 1 / 3], rel=1e-4)
    assert result.table["relative_spread"].max() < 1e-5
    assert (result.table["neighbour_overlap"] == 1).all()
    assert result.table["nearest_stable"].all()
    (row,) = result.sources.to_dict(orient="records")
    assert row["reliability"] == pytest.approx(1)
    assert row["rank_correlation_min"] == pytest.approx(1)
    assert row["reliability_chance"] < 0.9
    sized = uncertainty(embedding, fits=_fits(embedding, moved), scale=False, **QUIET)
    assert sized.table["relative_spread"].min() > 0.1


def test_identical_fits_have_no_spread(embedding: ModelEmbedding) -> None:
    same = _fits(embedding, [embedding.thetas.numpy()] * 2)
    table = uncertainty(embedding, fits=same, **QUIET).table
    assert table["spread"].max() < 1e-9
    assert table["major"].max() < 1e-9
    assert (table["neighbour_overlap"] == 1).all()
    assert (table["nearest_share"] == 1).all()


def test_the_table_is_what_numpy_makes_of_the_positions(embedding: ModelEmbedding) -> None:
    result = uncertainty(embedding, fits=_noisy(embedding, 4, 0.05), neighbours=3, **QUIET)
    positions = result.positions
    own = embedding.thetas.double().numpy()
    np.testing.assert_allclose(positions[0], own - own.mean(0), atol=1e-12)
    assert positions.shape == (5, 6, 4)
    means = positions.mean(0)
    between = np.sqrt(np.square(means - means.mean(0)).sum() / 5)
    _, _, directions = np.linalg.svd(means - means.mean(0))
    plane = directions[:2]
    assert np.abs(np.sum(plane * result.axes, axis=1)) == pytest.approx(1)
    chi = stats.chi2.ppf(0.95, 2)
    for model, row in enumerate(result.table.to_dict(orient="records")):
        flat = positions[:, model] @ result.axes.T
        np.testing.assert_allclose([row["pc_1"], row["pc_2"]], flat.mean(0), atol=1e-12)
        values = np.linalg.eigvalsh(np.cov(flat.T))
        np.testing.assert_allclose([row["minor"], row["major"]], np.sqrt(chi * values))
        spread = np.sqrt(np.cov(positions[:, model].T).trace())
        assert row["spread"] == pytest.approx(spread)
        assert row["relative_spread"] == pytest.approx(spread / between)
        first = []
        for fit in (embedding, *list(result.embeddings.values())[1:]):
            apart = torch.linalg.norm(fit.thetas - fit.thetas[model], dim=1)
            apart[model] = torch.inf
            first.append(embedding.ids[int(apart.argmin())])
        assert row["nearest_share"] == max(first.count(each) for each in first) / 5
        assert first.count(row["nearest"]) == 5 * row["nearest_share"]
        assert row["nearest_stable"] == (len(set(first)) == 1)


def test_predictions_are_wider(embedding: ModelEmbedding) -> None:
    fits = _noisy(embedding, 4, 0.05)
    normal = uncertainty(embedding, fits=fits, **QUIET).table
    wide = uncertainty(embedding, fits=fits, ellipse="prediction", **QUIET).table
    factor = (2 * 4 * 6 / (5 * 3)) * stats.f.ppf(0.95, 2, 3) / stats.chi2.ppf(0.95, 2)
    np.testing.assert_allclose(wide["major"], normal["major"] * np.sqrt(factor))


def test_fits_are_those_of_fit(made: UncertaintyResult, embedding: ModelEmbedding) -> None:
    fresh = dp.fit(
        embedding.population, device="cpu", embedding_dim=4, steps=30, held_out=0.4, theta_std=1.0,
        family_options={"units": 8}, progress=False, seed=2,
    )  # fmt: skip
    assert list(made.embeddings) == [
        "embedding", "seed-1", "seed-2", "bootstrap-1", "bootstrap-2", "bootstrap-3",
    ]  # fmt: skip
    assert made.embeddings["embedding"] is embedding
    assert torch.equal(made.embeddings["seed-2"].thetas, fresh.thetas)
    assert made.fits["source"].tolist() == ["seeds"] * 3 + ["bootstrap"] * 3
    assert made.fits["seed"].tolist() == [0, 1, 2, 0, 0, 0]
    assert made.table.groupby("source")["fits"].first().to_dict() == {"seeds": 3, "bootstrap": 3}
    assert len(made.pairs) == 3 + 3
    for pair in made.pairs.itertuples():
        first, second = (
            made.embeddings[str(name)].distances().to_numpy()[np.triu_indices(6, 1)]
            for name in (pair.first, pair.second)
        )
        expected = stats.spearmanr(first, second).statistic
        assert pair.rank_correlation == pytest.approx(expected)


def test_bootstrap_samples_are_drawn_with_replacement_from_the_training_samples(
    made: UncertaintyResult, embedding: ModelEmbedding
) -> None:
    aside = set(embedding.held_out_samples.tolist())
    drawn = []
    for number in (1, 2, 3):
        fit = made.embeddings[f"bootstrap-{number}"]
        samples = fit.training_samples.tolist()
        assert len(samples) == len(embedding.training_samples)
        assert not aside & set(samples)
        assert len(set(samples)) < len(samples)
        assert set(fit.held_out_samples.tolist()) == aside
        drawn.append(tuple(samples))
    assert len(set(drawn)) == 3


def test_bootstrap_alone(embedding: ModelEmbedding) -> None:
    result = uncertainty(_shorter(embedding), refits=0, bootstrap=2, seed=3, **QUIET)
    assert result.sources["source"].tolist() == ["bootstrap"]
    assert result.fits["source"].tolist() == ["reference", "bootstrap", "bootstrap"]


def test_results_show_what_they_are(made: UncertaintyResult) -> None:
    summary = json.loads(json.dumps(made.to_json(), allow_nan=False))["summary"]
    assert set(summary["sources"]) == {"seeds", "bootstrap"}
    assert len(summary["least_certain"]) == 5
    assert 0 < summary["sources"]["seeds"]["reliability_p"] <= 1
    assert not made.table.isna().any().any()
    traces = made.plot().data
    assert [trace.name for trace in traces if trace.name] == [
        "seeds (3 fits)",
        "bootstrap (3 fits)",
    ]
    assert list(traces[1].text) == list(made.embeddings["embedding"].ids)
    assert sum(value is None for value in traces[0].x) == 6


def test_folders_order_and_length_of_theta_do_not_matter(
    embedding: ModelEmbedding, tmp_path: Path
) -> None:
    (one, two) = _noisy(embedding, 2, 0.05)
    order = [3, 0, 5, 1, 4, 2]
    longer = torch.cat([two.thetas[order], torch.zeros(6, 2)], 1)
    hashes = two.provenance.model_hashes
    shuffled = dataclasses.replace(
        two,
        thetas=longer,
        ids=tuple(two.ids[place] for place in order),
        provenance=dataclasses.replace(
            two.provenance, model_hashes=tuple(hashes[place] for place in order)
        ),
    )
    folder = one.save(tmp_path / "one")
    given: list[ModelEmbedding | str | Path] = [
        str(folder),
        shuffled,
        embedding,
    ]  # itself, which counts once
    result = uncertainty(embedding, fits=given, **QUIET)
    plain = uncertainty(embedding, fits=[one, two], **QUIET)
    assert list(result.embeddings) == ["embedding", "fit-1", "fit-2"]
    for column in ("spread", "major", "minor", "neighbour_overlap"):
        np.testing.assert_allclose(result.table[column], plain.table[column], atol=1e-7)
    single = dp.analyse("uncertainty", embedding, fits=str(folder), **QUIET)
    assert len(single.to_dataframe()) == 6


def test_several_output_groups_and_layers(
    per_step_embedding: ModelEmbedding, two_stage_embedding: ModelEmbedding
) -> None:
    groups = uncertainty(_shorter(per_step_embedding), refits=1, **QUIET)
    assert groups.table["fits"].tolist() == [2] * 6
    layers = uncertainty(two_stage_embedding, refits=1, bootstrap=2, **QUIET)
    assert len(layers.table) == 8


def test_no_fit_is_left_out_in_silence(
    embedding: ModelEmbedding, place: Callable[..., ModelEmbedding]
) -> None:
    one, two = _noisy(embedding, 2, 0.05)
    with pytest.raises(InvalidInput, match="Fits number 1 and 3 are one and the same"):
        uncertainty(embedding, fits=[one, two, one], **QUIET)
    others = dataclasses.replace(one, ids=(*one.ids[:-1], "stranger"))
    with pytest.raises(InvalidInput, match="fit number 1 does not have 'rnn-5'"):
        uncertainty(embedding, fits=[others], **QUIET)
    hashes = ("0" * 64, *one.provenance.model_hashes[1:])
    changed = dataclasses.replace(
        one, provenance=dataclasses.replace(one.provenance, model_hashes=hashes)
    )
    with pytest.raises(InvalidInput, match="'gru-0' is another network of that name"):
        uncertainty(embedding, fits=[changed], **QUIET)
    flat = dataclasses.replace(one, thetas=torch.ones(6, 4))
    with pytest.raises(InvalidInput, match="thetas of the fit 'fit-1' are all equal"):
        uncertainty(embedding, fits=[flat], **QUIET)
    with pytest.raises(InvalidInput, match="4 or more are needed"):
        uncertainty(place(np.eye(3)), **QUIET)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"refits": 0}, InvalidInput, "needs other fits"),
        ({"refits": -1}, InvalidInput, "refits must be at least 0"),
        ({"bootstrap": 1}, InvalidInput, "one fit does not vary"),
        ({"neighbours": 5}, InvalidInput, "from 1 to 4 for 6 models"),
        ({"ellipse": "round"}, InvalidInput, "'normal' or 'prediction'"),
        ({"permutations": 0}, InvalidInput, "permutations must be at least 1"),
        ({"fits": [3]}, InvalidInput, "the folders that hold them, got int"),
        ({"fits": "nowhere"}, StoreNotFound, "no embedding at nowhere"),
        ({"fits": [], "refits": 2}, InvalidInput, "Leave out one"),
    ],
)
def test_bad_options(
    embedding: ModelEmbedding, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        uncertainty(embedding, **{**QUIET, **options})


def test_predictions_need_three_fits(
    embedding: ModelEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("was fitted")

    monkeypatch.setattr(_fits_module, "refit", refuse)
    cases: list[dict[str, Any]] = [
        {"fits": _noisy(embedding, 1, 0.1)},
        {"refits": 3, "bootstrap": 2},
    ]
    for options in cases:
        with pytest.raises(InvalidInput, match="at least 3 fits"):
            uncertainty(embedding, ellipse="prediction", **options, **QUIET)
