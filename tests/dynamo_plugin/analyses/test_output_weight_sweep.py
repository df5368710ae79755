"""Sweeps of the output weight against single fits, scipy and scikit-learn."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from sklearn.metrics import silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import dynamo_plugin as dp
from dynamo_plugin.analyses import OutputWeightSweepResult, fidelity, output_weight_sweep
from dynamo_plugin.analyses._reference_distances import OutputDifference, output_reference
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.metrics import PairwiseDistances, metric

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "permutations": 19, "max_exact": 0}
UPPER = np.triu_indices(6, 1)


@pytest.fixture(scope="session")
def swept(embedding: ModelEmbedding) -> OutputWeightSweepResult:
    """Three weights, of which the embedding's own is one."""
    return output_weight_sweep(embedding, weights=[5, 0], labels="architecture", **QUIET)


def test_every_weight_is_a_fit_of_its_own(
    swept: OutputWeightSweepResult, embedding: ModelEmbedding
) -> None:
    assert list(swept.embeddings) == [0.0, 1.0, 5.0]
    assert swept.embeddings[1.0] is embedding
    assert swept.table["fitted"].tolist() == [True, False, True]
    for weight in (0.0, 5.0):
        fresh = dp.fit(
            embedding.population, device="cpu", embedding_dim=4, steps=30, held_out=0.4,
            theta_std=1.0, family_options={"units": 8}, progress=False, output_weight=weight,
        )  # fmt: skip
        made = swept.embeddings[weight]
        assert torch.equal(made.thetas, fresh.thetas)
        assert made.config.output_weight == weight
    assert not torch.equal(swept.embeddings[0.0].thetas, swept.embeddings[5.0].thetas)


def test_fidelity_is_that_of_each_embedding(swept: OutputWeightSweepResult) -> None:
    for row in swept.table.to_dict(orient="records"):
        table = fidelity(swept.embeddings[row["weight"]]).table
        assert row["hidden_r2"] == pytest.approx(table["hidden_r2"].mean())
        assert row["output_decisions"] == pytest.approx(table["output_agreement"].mean())
        assert row["own_readout_agreement"] == pytest.approx(table["own_readout_agreement"].mean())
        own = swept.fidelity[swept.fidelity["weight"] == row["weight"]]
        assert own["model"].tolist() == table["model"].tolist()
        np.testing.assert_allclose(own["hidden_r2"], table["hidden_r2"])
    assert swept.table["note"].tolist() == ["the readout is not trained", "", ""]


def test_agreement_with_states_outputs_and_labels(
    swept: OutputWeightSweepResult, embedding: ModelEmbedding
) -> None:
    population = embedding.population
    cka = dp.pairwise(population, "cka", rows=5000, progress=False).symmetric_distances()
    answers = np.stack([population.outputs(name).argmax(1) for name in embedding.ids])
    disagreement = (answers[:, None] != answers).mean(2)
    labels = [name[:3] for name in embedding.ids]
    for row in swept.table.to_dict(orient="records"):
        thetas = swept.embeddings[row["weight"]].thetas.double().numpy()
        apart = squareform(pdist(thetas))
        for column, other in (("hidden", cka), ("output", disagreement)):
            expected = spearmanr(apart[UPPER], other[UPPER]).statistic
            assert row[f"{column}_spearman"] == pytest.approx(expected)
            assert 1 / 20 <= row[f"{column}_spearman_p"] <= 1
        assert row["label_silhouette"] == pytest.approx(silhouette_score(thetas, labels))
        nearest = cross_val_score(KNeighborsClassifier(1), thetas, labels, cv=LeaveOneOut())
        assert row["neighbour_accuracy"] == pytest.approx(nearest.mean())
    first, last = (swept.embeddings[w].distances().to_numpy()[UPPER] for w in (0.0, 5.0))
    assert swept.correlations.at[0.0, 5.0] == pytest.approx(spearmanr(first, last).statistic)
    assert (swept.hidden_metric, swept.output_metric) == ("cka", "disagreement")


def test_exact_p_values_of_labels(embedding: ModelEmbedding) -> None:
    options = {**QUIET, "max_exact": 1000}
    row = output_weight_sweep(embedding, weights=[1], labels="architecture", **options).table.loc[0]
    clusters = dp.analyse("clusters", embedding, labels="architecture").summary()
    assert row["label_silhouette_p"] == pytest.approx(clusters["label_silhouette_p"])
    assert row["neighbour_accuracy_p"] == pytest.approx(clusters["neighbour_accuracy_p"])
    assert not row["fitted"]


def test_results_show_what_they_are(swept: OutputWeightSweepResult) -> None:
    summary = json.loads(json.dumps(swept.to_json(), allow_nan=False))["summary"]
    assert [row["weight"] for row in summary["weights"]] == [0, 1, 5]
    assert summary["labels"] == "architecture"
    figure = swept.plot()
    assert list(figure.layout.xaxis.ticktext) == ["0", "1 (given)", "5"]
    names = [trace.name for trace in figure.data]
    assert "thetas and hidden states (cka)" in names
    assert "output agreement, R²" not in names
    assert len(names) == 7


def test_groups_that_are_too_small_have_no_agreement(per_step_embedding: ModelEmbedding) -> None:
    config = dataclasses.replace(per_step_embedding.config, steps=3)
    shorter = dataclasses.replace(per_step_embedding, config=config)
    result = output_weight_sweep(shorter, weights=[0], **QUIET)
    assert result.table["output_spearman"].isna().all()
    assert result.table["note"][0] == (
        "the readout is not trained; output group task-gru, task-rnn: fewer than 4 models"
    )
    assert result.table["output_r2"].notna().all()
    json.dumps(result.summary(), allow_nan=False)
    result.plot()


def test_real_outputs_are_compared_by_their_difference(
    per_step_embedding: ModelEmbedding,
) -> None:
    one_group = dataclasses.replace(per_step_embedding, output_groups=("task-gru",) * 6)
    found = output_reference(one_group, None, rows=None)
    outputs = [per_step_embedding.population.outputs(name) for name in one_group.ids]
    flat = np.stack(outputs).reshape(6, -1).astype(np.float64)
    np.testing.assert_allclose(found.square, squareform(pdist(flat)) / np.sqrt(flat.shape[1]))
    assert found.name == "output difference"
    assert found.note == ""
    with pytest.raises(InvalidInput, match="finite outputs"):
        OutputDifference()(np.full((4, 2), np.nan), np.zeros((4, 2)))


def test_outputs_of_different_groups_are_not_compared(embedding: ModelEmbedding) -> None:
    names = tuple(f"m{index}" for index in range(8))
    points = np.random.default_rng(0).normal(size=(8, 2))
    square = squareform(pdist(points))
    given = PairwiseDistances.make(
        metric("procrustes"), names, square, settings={"metric": "mine"}, population="nowhere"
    )
    eight = dataclasses.replace(
        embedding, ids=names, thetas=torch.zeros(8, 4), output_groups=("a", "b") * 4
    )
    found = output_reference(eight, given, rows=None)
    assert [members.tolist() for members in found.strata] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    distances = given.symmetric_distances()
    for members in found.strata:
        inside = np.ix_(members, members)
        np.testing.assert_array_equal(found.square[inside], distances[inside])
    assert not found.square[::2, 1::2].any()


def test_layers(two_stage_embedding: ModelEmbedding) -> None:
    answers = two_stage_embedding.population
    distances = np.random.default_rng(0).uniform(1, 2, (4, 4))
    given = PairwiseDistances.make(
        metric("procrustes"), answers.ids, distances + distances.T, settings={"metric": "mine"},
        population="nowhere",
    )  # fmt: skip
    result = output_weight_sweep(
        two_stage_embedding, weights=[0], site="2", output_metric=given, **QUIET
    )
    assert result.table["hidden_spearman"].between(-1, 1).all()
    with pytest.raises(InvalidInput, match="site"):
        output_weight_sweep(two_stage_embedding, weights=[0], output_metric=given, **QUIET)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": [-1]}, InvalidInput, "at least 0, got -1"),
        ({"weights": [float("nan")]}, InvalidInput, "finite numbers, at least 0, got nan"),
        ({"weights": ["1"]}, InvalidInput, "got '1'"),
        ({"weights": [2, 2.0]}, InvalidInput, "every weight once"),
        ({"hidden_metric": "disagreement"}, InvalidInput, "'disagreement' compares outputs"),
        ({"output_metric": "cka"}, InvalidInput, "'cka' compares hidden states"),
        ({"hidden_metric": "ckaa"}, UnknownName, "Did you mean 'cka'"),
        ({"labels": "architectur"}, UnknownName, "Did you mean 'architecture'"),
        ({"permutations": 0}, InvalidInput, "permutations must be at least 1"),
    ],
)
def test_bad_options_are_found_before_anything_is_fitted(
    embedding: ModelEmbedding,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("was fitted")

    module = inspect.unwrap(output_weight_sweep).__globals__
    monkeypatch.setitem(module, "refit", refuse)
    with pytest.raises(error, match=message):
        output_weight_sweep(embedding, **{**QUIET, **options})


def test_too_few_models(place: Callable[..., ModelEmbedding]) -> None:
    with pytest.raises(InvalidInput, match="4 or more are needed"):
        output_weight_sweep(place(np.eye(3)), **QUIET)


def test_a_weight_may_come_alone(embedding: ModelEmbedding) -> None:
    frame = dp.analyse("output_weight_sweep", embedding, weights=1, **QUIET).to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert frame["weight"].tolist() == [1.0]
