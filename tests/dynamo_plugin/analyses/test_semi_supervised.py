from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from torch import nn

import dynamo_plugin as dp
from dynamo_plugin.analyses import SemiSupervisedResult, analyse, semi_supervised
from dynamo_plugin.analyses._label_task import LabelTask, draw_labels, fold_numbers
from dynamo_plugin.analyses._probes import FLOOR, fit_probe, rendered_features
from dynamo_plugin.analyses._theta_search import Problems, Subspace, search
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, UnknownName

QUICK: dict[str, Any] = {
    "samples": "all",
    "label_counts": [3, 8],
    "repeats": 3,
    "steps": 5,
    "prior_strengths": [0.1],
    "probes": False,
    "progress": False,
}


@pytest.fixture(scope="module")
def result(embedding: ModelEmbedding) -> SemiSupervisedResult:
    return semi_supervised(embedding, **QUICK | {"probes": True})


@pytest.fixture(scope="module")
def task(embedding: ModelEmbedding) -> LabelTask:
    return LabelTask(embedding, np.arange(12), targets=None, output_group=None)


def problems(embedding: ModelEmbedding, count: int, steps: int, seed: int = 0) -> Problems:
    rng = np.random.default_rng(seed)
    return Problems(
        np.stack([rng.permutation(12)[:6] for _ in range(count)]),
        np.tile(np.arange(6) < 4, (count, 1)),
        rng.uniform(0.5, 2, count),
        embedding.thetas.double().numpy()[rng.integers(0, 6, count)],
        rng.uniform(0.05, 0.5, count),
        np.full(count, steps),
    )


def run(
    task: LabelTask, given: Problems, steps: int, components: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Subspace]:
    subspace = Subspace.of(task.embedding.thetas.double().numpy(), components)
    validated, thetas = search(
        task, subspace, given, steps=steps, learning_rate=0.1, advance=lambda _: None
    )
    return validated, thetas, subspace


def test_the_search_finds_what_scipy_finds(task: LabelTask, classes: NDArray[np.int64]) -> None:
    embedding = task.embedding
    given = problems(embedding, 1, 200)
    _, found, _ = run(task, given, 200, components=2)
    # Whitened coordinates, written out with a covariance matrix instead of singular values.
    thetas = embedding.thetas.double().numpy()
    values, vectors = np.linalg.eigh(np.cov(thetas.T))
    axes = (vectors * np.sqrt(values.clip(0)))[:, ::-1].T[:2]
    start = given.starts[0]
    origin = np.linalg.lstsq(axes.T, start - thetas.mean(0), rcond=None)[0]
    samples = given.places[0, :4]
    batch = embedding.population.inputs.batch(samples)
    network = embedding.render(embedding.ids[0])

    def objective(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        leaf = torch.tensor(z, requires_grad=True)
        theta = torch.tensor(start) + (leaf - torch.tensor(origin)) @ torch.tensor(axes.copy())
        outputs = network(batch.values, theta=theta.float(), lengths=batch.lengths).double()
        loss = F.cross_entropy(outputs, torch.tensor(classes[samples])) / given.scales[0]
        total = loss + given.strengths[0] * (leaf**2).sum() / 2
        (gradient,) = torch.autograd.grad(total, leaf)
        return float(total.detach()), gradient.numpy()

    wanted = minimize(objective, origin, jac=True, method="BFGS")
    reached = np.linalg.lstsq(axes.T, found[0] - start, rcond=None)[0] + origin
    np.testing.assert_allclose(reached, wanted.x, atol=5e-3)
    # What lies outside of the subspace has not moved.
    np.testing.assert_allclose(found[0] - start, (reached - origin) @ axes, atol=1e-9)
    assert objective(reached)[0] < objective(origin)[0] - 1e-3


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_problems_do_not_see_one_another(task: LabelTask, seed: int, count: int) -> None:
    together = problems(task.embedding, count, 4, seed)
    validated, thetas, _ = run(task, together, 6)
    for place in range(count):
        alone = run(task, together.part(slice(place, place + 1)), 6)
        np.testing.assert_allclose(validated[place], alone[0][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(thetas[place], alone[1][0], atol=1e-3)


def test_no_step_is_the_start(task: LabelTask) -> None:
    given = problems(task.embedding, 4, 0)
    validated, thetas, _ = run(task, given, 3)
    np.testing.assert_array_equal(thetas, given.starts)
    held = task.emulated_losses(torch.as_tensor(given.starts, dtype=torch.float32))
    wanted = [
        held[row, given.places[row, 4:]].sum() / given.scales[row] for row in range(len(held))
    ]
    np.testing.assert_allclose(validated[:, 0], wanted, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_never_worse_than_a_start_in_validation(
    embedding: ModelEmbedding, classes: NDArray[np.int64], seed: int
) -> None:
    noisy = np.where(np.arange(20) % 3 == seed, (classes + 1) % 3, classes)
    found = semi_supervised(embedding, targets=noisy, seed=seed, **QUICK | {"starts": "all"})
    choices = found.choices
    assert (choices["validation_loss"] <= choices["start_validation_loss"]).all()
    assert (choices["moved"][choices["kept"]] == 0).all()
    assert (choices["moved"][~choices["kept"]] > 0).all()
    assert set(choices["start"]) <= set(embedding.ids)


def test_starts_are_validated_like_the_baselines(result: SemiSupervisedResult) -> None:
    # The losses of the baselines come from another way through the code.
    losses: Any = result.table.set_index(["method", "label_count", "repeat"])["validation_loss"]
    choices: Any = result.choices.set_index(["label_count", "repeat"])
    starts = np.minimum(losses["mean_theta"], losses["best_emulated"])
    np.testing.assert_allclose(choices["start_validation_loss"], starts, rtol=1e-4)
    assert (choices["validation_loss"] <= starts + 1e-4).all()


def test_test_targets_change_no_choice(
    embedding: ModelEmbedding, classes: NDArray[np.int64], result: SemiSupervisedResult
) -> None:
    changed = classes.copy()
    changed[result.test_samples] = (changed[result.test_samples] + 1) % 3
    other = semi_supervised(embedding, targets=changed, **QUICK | {"probes": True})
    assert result.choices.equals(other.choices)
    assert result.thetas.equals(other.thetas)
    same = ["label_count", "repeat", "method", "validation_loss", "chosen"]
    assert result.table[same].equals(other.table[same])
    assert not result.table["test_score"].equals(other.table["test_score"])
    assert not set(result.pool_samples) & set(result.test_samples)


def test_shuffled_labels_teach_nothing(embedding: ModelEmbedding) -> None:
    differences = []
    for seed in range(6):
        noise = np.random.default_rng(seed).integers(0, 3, 20)
        found = semi_supervised(embedding, targets=noise, seed=seed, **QUICK)
        curve: Any = found.curve.set_index(["label_count", "method"])
        differences.append(curve.loc[(8, "optimised_theta"), "above_mean_theta"])
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    assert np.mean(differences) < 3 * error + 0.05


def test_scores_are_those_of_rendered_networks(
    embedding: ModelEmbedding, classes: NDArray[np.int64], result: SemiSupervisedResult
) -> None:
    test = result.test_samples
    batch = embedding.population.inputs.batch(test)
    last: Any = result.table[result.table["label_count"] == 8].set_index(["method", "repeat"])
    recorded = {name: embedding.population.outputs(name) for name in embedding.ids}
    mean = np.mean([torch.tensor(o).softmax(-1).numpy() for o in recorded.values()], axis=0)
    for repeat in range(3):
        score = {}
        theta = np.array(result.thetas.loc[repeat])
        for method, which in (
            ("optimised_theta", theta),
            ("mean_theta", embedding.thetas.mean(0)),
            ("best_emulated", last.loc[("best_emulated", repeat), "chosen"]),
        ):
            outputs = embedding.render(which)(batch.values, lengths=batch.lengths)
            score[method] = (outputs.argmax(-1).numpy() == classes[test]).mean()
        best = recorded[str(last.loc[("best_network", repeat), "chosen"])]
        score["best_network"] = (best.argmax(-1)[test] == classes[test]).mean()
        score["ensemble"] = (mean.argmax(-1)[test] == classes[test]).mean()
        for method, wanted in score.items():
            assert last.loc[(method, repeat), "test_score"] == pytest.approx(wanted)


def test_the_curve_summarises_the_table(result: SemiSupervisedResult) -> None:
    part: Any = result.table[result.table["label_count"] == 3].set_index(["method", "repeat"])
    scores = part["test_score"]
    curve: Any = result.curve.set_index(["label_count", "method"])
    row = curve.loc[(3, "ensemble")]
    difference = (scores["optimised_theta"] - scores["ensemble"]).to_numpy()
    assert row["theta_above"] == pytest.approx(difference.mean())
    assert row["theta_above_standard_error"] == pytest.approx(difference.std(ddof=1) / 3**0.5)
    assert row["sd"] == 0
    verdicts: Any = result.summary()["optimised_theta_is"]
    assert verdicts["ensemble"]["3"] in ("better", "worse", "no clear difference")
    json.dumps(result.to_json(), allow_nan=False)
    figure = result.plot()
    assert len(figure.data) == 7
    assert figure.layout.xaxis.type == "log"


def test_a_seed_decides_everything(embedding: ModelEmbedding) -> None:
    first, second = (analyse("semi_supervised", embedding, seed=5, **QUICK) for _ in range(2))
    assert first.to_dataframe().equals(second.to_dataframe())
    other = semi_supervised(embedding, seed=6, **QUICK)
    assert not first.to_dataframe().equals(other.table)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.integers(0, 10**6))
def test_draws_keep_the_shares_of_classes(values: list[int], seed: int) -> None:
    strata = np.array(values)
    draws = draw_labels(strata, len(strata), 3, np.random.default_rng(seed))
    for draw in draws:
        assert sorted(draw) == list(range(len(strata)))
        for count in range(1, len(strata)):
            drawn = np.bincount(strata[draw[:count]], minlength=4)
            wanted = count * np.bincount(strata, minlength=4) / len(strata)
            assert (np.abs(drawn - wanted) < 4).all()
    folds = fold_numbers(strata[draws], min(5, len(strata)))
    assert np.ptp(np.bincount(folds[0])) <= 1


def test_probes_are_those_of_scikit_learn(task: LabelTask, classes: NDArray[np.int64]) -> None:
    theta = task.embedding.thetas.mean(0).double().numpy()
    features = rendered_features(task, theta, np.arange(20))
    batch = task.embedding.population.inputs.batch(np.arange(20))
    states = task.embedding.render(theta).trajectory(batch.values, lengths=batch.lengths).states
    last = states["hidden"][torch.arange(20), batch.lengths - 1].detach()
    np.testing.assert_allclose(features, last, atol=1e-6)
    rows, folds = np.arange(12), np.arange(12) % 4
    probe = fit_probe(
        task, features[:12], classes[:12], rows, folds, features[12:], scale=1.0, strengths=[2.0]
    )
    model = LogisticRegression(C=0.5).fit(features[:12], classes[:12])
    wanted = np.maximum(model.predict_proba(features[12:]), FLOOR)
    np.testing.assert_allclose(np.exp(probe.outputs), wanted, atol=1e-3)
    total = 0.0
    for fold in range(4):
        held = folds == fold
        part = LogisticRegression(C=0.5).fit(features[:12][~held], classes[:12][~held])
        held_out = part.predict_proba(features[:12][held])
        total -= np.log(held_out[np.arange(held.sum()), classes[:12][held]]).sum()
    assert probe.validation_loss == pytest.approx(total / 12, abs=2e-3)


def test_a_probe_that_saw_one_class_answers_it(task: LabelTask) -> None:
    rng = np.random.default_rng(0)
    features, rows = rng.normal(size=(6, 3)), np.arange(6)
    alone = fit_probe(task, features, np.ones(6, np.int64), rows, rows, features, scale=1.0)
    assert (alone.outputs.argmax(-1) == 1).all()
    lonely = np.array([0, 0, 0, 0, 0, 2])  # its fold has no label of that class
    found = fit_probe(task, features, lonely, rows, rows, features, scale=1.0)
    assert np.isfinite(found.outputs).all()
    np.testing.assert_allclose(np.exp(found.outputs[:, 1]), FLOOR)


def test_real_targets_per_step(per_step_embedding: ModelEmbedding) -> None:
    embedding = per_step_embedding
    population = embedding.population
    targets = np.random.default_rng(0).normal(size=(int(population.lengths.sum()), 2))
    found = semi_supervised(
        embedding, targets=targets, output_group="task-gru", **QUICK | {"probes": True}
    )
    assert found.score_kind == "r2"
    starts, test = population.offsets, found.test_samples
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in test])
    batch = population.inputs.batch(test)
    mask = torch.arange(batch.values.shape[1]) < batch.lengths[:, None]
    last: Any = found.table[found.table["label_count"] == 8].set_index(["method", "repeat"])
    for repeat in range(3):
        network = embedding.render(np.array(found.thetas.loc[repeat]), output_group="task-gru")
        outputs = network(batch.values, lengths=batch.lengths)[mask].detach().numpy()
        wanted = r2_score(targets[rows], outputs, multioutput="variance_weighted")
        assert last.loc[("optimised_theta", repeat), "test_score"] == pytest.approx(wanted)
    assert (found.choices["validation_loss"] <= found.choices["start_validation_loss"]).all()
    assert {"gru-0", "gru-2", "gru-4"} >= set(last.loc["best_network", "chosen"])
    assert {"probe_mean_theta", "probe_best_network"} <= set(found.curve["method"])


def test_a_ridge_probe_is_that_of_scikit_learn(per_step_embedding: ModelEmbedding) -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(int(per_step_embedding.population.lengths.sum()), 2))
    task = LabelTask(per_step_embedding, np.arange(10), targets=targets, output_group="task-gru")
    features, rows = rng.normal(size=(12, 3)), np.repeat(np.arange(6), 2)
    found = fit_probe(
        task,
        features,
        targets[:12],
        rows,
        np.arange(6) % 3,
        features,
        scale=2.0,
        strengths=[10.0],
    )
    wanted = Ridge(alpha=10.0).fit(features, targets[:12]).predict(features)
    np.testing.assert_allclose(found.outputs, wanted)


def convolutional(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    maps = (nn.Conv2d(1, 3 + seed % 2, 3, padding=1), nn.ReLU(), nn.Conv2d(3 + seed % 2, 4, 3))
    return nn.Sequential(*maps, nn.Flatten(), nn.Linear(64, 1))


def dense(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("make", "shape", "layers", "family", "options"),
    [
        (convolutional, (1, 6, 6), ["1", "2"], "resnet", {"blocks": [1, 1], "width": 8}),
        (dense, (6,), ["1", "3"], "residual", {"units": 8}),
    ],
)
def test_layered_networks_with_one_logit(
    make: Any, shape: tuple[int, ...], layers: list[str], family: str, options: dict[str, Any]
) -> None:
    inputs = torch.randn(40, *shape, generator=torch.Generator().manual_seed(3))
    answers = (inputs.flatten(1).sum(1) > 0).long()
    embedding = dp.fit(
        dp.capture(
            {f"net-{seed}": make(seed) for seed in range(4)},
            inputs,
            {},
            layers=layers,
            targets=answers,
            progress=False,
        ),
        family=family,
        family_options=options,
        output_loss="kl",
        embedding_dim=2,
        steps=10,
        theta_std=1.0,
        progress=False,
    )
    found = semi_supervised(embedding, **QUICK | {"probes": True, "label_counts": 6})
    batch = embedding.population.inputs.batch(found.test_samples)
    theta = np.array(found.thetas.loc[0])
    logits = embedding.render(theta)(batch.values, lengths=batch.lengths)[:, 0]
    wanted = ((logits > 0) == (answers[found.test_samples] == 1)).double().mean()
    scores: Any = found.table.set_index(["method", "repeat"])["test_score"]
    assert scores.loc[("optimised_theta", 0)] == pytest.approx(float(wanted))
    assert len(found.curve) == 7
    assert (found.choices["validation_loss"] <= found.choices["start_validation_loss"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": "some"}, "'held_out' or 'all'"),
        ({"test_fraction": 1.0}, "between 0 and 1"),
        ({"label_counts": [1, 4]}, "from 2"),
        ({"label_counts": []}, "from 2"),
        ({"label_counts": 50}, "smallest label count is 50"),
        ({"repeats": 1}, "repeats must be"),
        ({"steps": 0}, "steps must be"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"subspace": 0}, "subspace must be"),
        ({"subspace": 9}, "at most 4"),
        ({"prior_strengths": [-1.0]}, "numbers from 0"),
        ({"starts": []}, "at least one"),
        ({"samples": "held_out", "test_fraction": 0.9}, "at least 2 samples"),
    ],
)
def test_options_out_of_range(
    embedding: ModelEmbedding, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        semi_supervised(embedding, **QUICK | options)


def test_an_unknown_start_suggests(embedding: ModelEmbedding) -> None:
    with pytest.raises(UnknownName, match="'mean'"):
        semi_supervised(embedding, **QUICK | {"starts": ["meen"]})


def test_missing_targets(per_step_embedding: ModelEmbedding) -> None:
    with pytest.raises(InvalidInput, match="no targets"):
        semi_supervised(per_step_embedding, output_group="task-gru", **QUICK)
