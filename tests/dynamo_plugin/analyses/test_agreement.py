"""Agreement of distances against scipy, and against orders enumerated one by one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, spearmanr

import dynamo_plugin as dp
from dynamo_plugin.analyses import agreement
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import DuplicateName, InvalidInput, UnknownName
from dynamo_plugin.metrics import PairwiseDistances, metric

Place = Callable[..., ModelEmbedding]


def _compared(ids: tuple[str, ...], points: NDArray[np.float64], name: str) -> PairwiseDistances:
    return PairwiseDistances.make(
        metric("procrustes"), ids, squareform(pdist(points)), settings={"metric": name},
        population="nowhere",
    )  # fmt: skip


def _points(models: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(models, 3))


def test_correlations_and_exact_p_values(place: Place) -> None:
    points = _points(6, 0)
    embedding = place(points)
    near = points + 0.8 * _points(6, 1)
    result = agreement(
        embedding, distances=["theta"], metrics=[_compared(embedding.ids, near, "near")]
    )
    (row,) = result.to_dataframe().to_dict(orient="records")
    a, b = pdist(points.astype(np.float32)), pdist(near)
    assert row["pearson"] == pytest.approx(pearsonr(a, b).statistic, abs=1e-6)
    assert row["spearman"] == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)
    square = squareform(b)
    reached = {"pearson": 0, "spearman": 0}
    for order in permutations(range(6)):
        moved = squareform(square[np.ix_(order, order)], checks=False)
        reached["pearson"] += pearsonr(a, moved).statistic >= row["pearson"] - 1e-9
        reached["spearman"] += spearmanr(a, moved).statistic >= row["spearman"] - 1e-9
    assert result.exact
    assert result.permutations == 720
    assert row["pearson_p"] == pytest.approx(reached["pearson"] / 720)
    assert row["spearman_p"] == pytest.approx(reached["spearman"] / 720)


def test_p_values_of_unrelated_distances_are_calibrated(place: Place) -> None:
    embedding = place(_points(12, 0))
    others = [_compared(embedding.ids, _points(12, seed), str(seed)) for seed in range(1, 41)]
    result = agreement(
        embedding, distances=["theta"], metrics=others, permutations=199, max_exact=0
    )
    p_values = result.table["pearson_p"].to_numpy()  # of 820 pairs of 41 unrelated squares
    assert 0.02 < (p_values <= 0.05).mean() < 0.08
    assert not result.exact


def test_the_order_of_a_comparison_does_not_matter(place: Place) -> None:
    points = _points(5, 0)
    embedding = place(points)
    ids = (*reversed(embedding.ids), "stranger")
    shuffled = np.vstack([points[::-1], [[9.0, 9.0, 9.0]]])
    result = agreement(embedding, distances=["theta"], metrics=[_compared(ids, shuffled, "same")])
    assert result.table["pearson"][0] == pytest.approx(1, abs=1e-6)
    assert result.table["pearson_p"][0] == pytest.approx(1 / 120)
    assert np.allclose(result.disagreements["difference"], 0)


def test_the_pair_on_which_they_disagree_is_named(place: Place) -> None:
    line = np.arange(5.0)[:, None] ** 2 * [1.0, 0.0, 0.0]
    embedding = place(line)
    moved = line.copy()
    moved[4] = line[0] + 0.1  # far from the first one for theta, next to it for the other
    result = agreement(
        embedding, distances=["theta"], metrics=[_compared(embedding.ids, moved, "moved")], shown=1
    )
    (row,) = result.disagreements.to_dict(orient="records")
    assert (row["first"], row["second"]) == (embedding.ids[0], embedding.ids[4])
    assert (row["first_rank"], row["second_rank"]) == (1.0, 0.0)
    assert row["difference"] == 1.0


def test_metrics_are_computed_from_the_population(embedding: ModelEmbedding) -> None:
    result = agreement(embedding, metrics=["cka", "rsa"], rows=60, permutations=9, max_exact=0)
    assert list(result.correlations) == ["theta", "pullback", "functional", "cka", "rsa"]
    direct = dp.pairwise(embedding.population, "rsa", rows=60, progress=False)
    a, b = (
        squareform(np.asarray(square), checks=False)
        for square in (embedding.distances("functional"), direct.symmetric_distances())
    )
    chosen = result.table.query("first == 'functional' and second == 'rsa'")
    assert chosen["spearman"].item() == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)
    assert result.correlations.loc["functional", "rsa"] == pytest.approx(chosen["spearman"].item())
    summary = result.summary()
    assert summary["models"] == len(embedding)
    heat = result.plot().data[0]
    assert list(heat.x) == list(result.correlations)
    assert isinstance(
        dp.analyse("agreement", embedding, metrics=["cka"]).to_dataframe(), pd.DataFrame
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"distances": ["theta"], "metrics": []}, InvalidInput, "two or more kinds"),
        ({"distances": "theta"}, InvalidInput, r"write \['theta'\]"),
        ({"distances": ["theta", "theta"]}, DuplicateName, "called 'theta'"),
        ({"metrics": ["ckaa"], "distances": ["theta"]}, UnknownName, "Did you mean 'cka'"),
        ({"options": {"svca": {}}}, UnknownName, "Did you mean 'svcca'"),
        ({"permutations": 0}, InvalidInput, "permutations must be at least 1"),
    ],
)
def test_bad_arguments(
    embedding: ModelEmbedding, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        agreement(embedding, **arguments)


def test_distances_that_are_all_equal_are_refused(place: Place) -> None:
    embedding = place(_points(4, 0))
    corners = _compared(embedding.ids, np.eye(4), "corners")
    with pytest.raises(InvalidInput, match="All distances 'corners' are equal"):
        agreement(embedding, distances=["theta"], metrics=[corners])


def test_a_comparison_of_other_models_is_refused(place: Place) -> None:
    embedding = place(_points(4, 0))
    fewer = _compared(embedding.ids[:3], _points(3, 0), "fewer")
    with pytest.raises(UnknownName, match=embedding.ids[3]):
        agreement(embedding, distances=["theta"], metrics=[fewer])


def test_few_models_are_refused(place: Place) -> None:
    with pytest.raises(InvalidInput, match="4 or more are needed"):
        agreement(place(_points(3, 0)), distances=["theta"])


def test_distances_of_the_embedding_as_metrics(embedding: ModelEmbedding) -> None:
    result = agreement(embedding, distances=[], metrics=["functional", "cka"], rows=40)
    expected = agreement(embedding, distances=["functional"], metrics=["cka"], rows=40)
    assert result.table["spearman"][0] == pytest.approx(expected.table["spearman"][0], abs=1e-9)
    with pytest.raises(DuplicateName, match="theta"):
        agreement(embedding, distances=["theta"], metrics=["theta"])
