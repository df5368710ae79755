"""Networks along paths, against networks rendered or mixed one by one."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import r2_score
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.analyses import InterpolationResult, _theta_paths, interpolation
from dynamo_plugin.embedding import ModelEmbedding, geometry
from dynamo_plugin.errors import InvalidInput, UnknownName
from tests.dynamo_plugin.analyses.conftest import LENGTHS, Classifier, capture, fit, make_models

ENDS: dict[str, Any] = {"first": "gru-0", "second": "rnn-5"}


@pytest.fixture(scope="module")
def alike() -> dict[str, nn.Module]:
    """Three networks of one recurrent layer and three readouts: outputs are linear in weights."""
    torch.manual_seed(3)
    layer = nn.GRU(3, 5, batch_first=True)
    models: dict[str, nn.Module] = {}
    for name in ("a", "b", "c"):
        network = Classifier(nn.GRU(3, 5, batch_first=True), 2, per_step=True)
        network.rnn.load_state_dict(layer.state_dict())
        models[name] = network
    return models


@pytest.fixture(scope="module")
def row_targets() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(sum(LENGTHS), 2))


def padded(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(sample, time, channel): rows of all samples, one sample each."""
    found = np.zeros((len(LENGTHS), max(LENGTHS), 2))
    found[np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]] = rows
    return found


@pytest.fixture(scope="module")
def real(alike: dict[str, nn.Module], row_targets: NDArray[np.float64]) -> ModelEmbedding:
    return fit(capture(alike, targets=padded(row_targets)))


@pytest.fixture(scope="module")
def result(embedding: ModelEmbedding) -> InterpolationResult:
    return interpolation(embedding, **ENDS, points=7, progress=False, geodesic_samples=5)


def of(result: InterpolationResult, path: str) -> pd.DataFrame:
    return result.table[result.table["path"] == path].reset_index(drop=True)


def figures_of(result: InterpolationResult, path: str) -> dict[str, Any]:
    row: dict[str, Any] = result.paths.set_index("path").T.to_dict()[path]
    return row


def rendered(embedding: ModelEmbedding, which: Any) -> NDArray[np.float32]:
    samples = embedding.held_out_samples.numpy()
    batch = embedding.population.inputs.batch(samples)
    outputs: NDArray[np.float32] = (
        embedding.render(which)(batch.values, lengths=batch.lengths).detach().numpy()
    )
    return outputs


@pytest.mark.parametrize("path", ["linear", "geodesic"])
def test_thetas_are_scored_like_networks_rendered_one_by_one(
    embedding: ModelEmbedding, classes: NDArray[np.int64], result: InterpolationResult, path: str
) -> None:
    right = classes[embedding.held_out_samples.numpy()]
    thetas = result.thetas.loc[path].to_numpy()
    ends = embedding.thetas[[0, 5]].double().numpy()
    np.testing.assert_array_equal(thetas[[0, -1]], ends)
    if path == "linear":
        np.testing.assert_allclose(np.diff(thetas, axis=0), [(ends[1] - ends[0]) / 6] * 6)
    decided = np.stack([rendered(embedding, theta).argmax(-1) for theta in thetas])
    first, second = (rendered(embedding, name).argmax(-1) for name in ("gru-0", "rnn-5"))
    gains = (decided == right).astype(float)
    table, figures = of(result, path), figures_of(result, path)
    assert table["position"].tolist() == np.linspace(0, 1, 7).tolist()
    root = np.sqrt(len(right))
    np.testing.assert_allclose(table["score"].astype(float), gains.mean(1))
    np.testing.assert_allclose(table["score_se"].astype(float), gains.std(1, ddof=1) / root)
    for name, end in (("agreement_first", first), ("agreement_second", second)):
        equal = (decided == end).astype(float)
        np.testing.assert_allclose(table[name].astype(float), equal.mean(1))
        error = equal.std(1, ddof=1) / root
        np.testing.assert_allclose(table[f"{name}_se"].astype(float), error, atol=1e-12)
    shares = np.linspace(0, 1, 7)[:, None]
    below = (1 - shares) * gains[0] + shares * gains[-1] - gains
    np.testing.assert_allclose(table["below_line"].astype(float), below.mean(1), atol=1e-12)
    worst = below.mean(1).argmax()
    assert figures["barrier"] == pytest.approx(below.mean(1)[worst])
    assert figures["barrier_se"] == pytest.approx(below[worst].std(ddof=1) / root)
    assert figures["barrier_position"] == pytest.approx(worst / 6)


def functional_length(
    embedding: ModelEmbedding, thetas: NDArray[np.float64], samples: Tensor
) -> float:
    """The length of a path in quarters of its steps, by `ModelEmbedding.distances`."""
    pieces = [np.linspace(*step, 5)[1:] for step in itertools.pairwise(thetas)]
    fine = np.concatenate([thetas[:1], *pieces])
    many = dataclasses.replace(
        embedding,
        thetas=torch.tensor(fine, dtype=torch.float32),
        ids=tuple(map(str, range(len(fine)))),
        held_out_samples=samples,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelEmbedding, "population", embedding.population)
        distances = many.distances("functional").to_numpy()
    return float(distances.diagonal(1).sum())


def test_lengths_are_functional_distances(
    embedding: ModelEmbedding, result: InterpolationResult
) -> None:
    order = np.random.default_rng(0).permutation(len(embedding.held_out_samples))
    sought, others = (embedding.held_out_samples[order[some]] for some in (np.s_[:5], np.s_[5:]))
    for path in ("linear", "geodesic"):
        thetas = result.thetas.loc[path].to_numpy()
        row = figures_of(result, path)
        assert row["length"] == pytest.approx(
            functional_length(embedding, thetas, sought), rel=1e-3
        )
        assert row["length_elsewhere"] == pytest.approx(
            functional_length(embedding, thetas, others), rel=1e-3
        )
        assert of(result, path)["distance"].iloc[-1] == pytest.approx(row["length"])


def test_lengths_do_not_depend_on_how_many_samples_run_at_once(
    embedding: ModelEmbedding, result: InterpolationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "PAIRS", 40)
    again = interpolation(embedding, **ENDS, points=7, progress=False, geodesic_samples=5)
    for path in ("linear", "geodesic"):
        one, other = figures_of(result, path), figures_of(again, path)
        for column in ("length", "length_elsewhere", "energy"):
            assert other[column] == pytest.approx(one[column], rel=1e-4)


def test_layered_networks_have_paths_too() -> None:
    torch.manual_seed(0)
    models = {
        name: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        for name in "abc"
    }
    population = dp.capture(models, torch.randn(40, 6), {}, layers=["1", "3"], progress=False)
    embedding = dp.fit(
        population,
        family="residual",
        family_options={"units": 8},
        embedding_dim=2,
        steps=20,
        progress=False,
        device="cpu",
    )
    result = interpolation(
        embedding,
        first="a",
        second="b",
        points=5,
        models=models,
        capture_options={"layers": ["1", "3"]},
        progress=False,
    )
    assert not result.omitted
    samples = embedding.held_out_samples
    for path in ("linear", "geodesic"):
        thetas = result.thetas.loc[path].to_numpy()
        assert figures_of(result, path)["length"] == pytest.approx(
            functional_length(embedding, thetas, samples), rel=1e-3
        )
    lengths = [figures_of(result, path)["length"] for path in ("geodesic", "linear")]
    assert lengths[0] <= lengths[1]


def test_the_geodesic_is_shorter_and_even(result: InterpolationResult) -> None:
    paths = {name: figures_of(result, name) for name in ("linear", "geodesic")}
    assert paths["geodesic"]["converged"]
    assert paths["geodesic"]["length"] <= paths["linear"]["length"]
    assert paths["geodesic"]["energy"] <= paths["linear"]["energy"]
    steps = np.diff(of(result, "geodesic")["distance"].astype(float))
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.02)


def test_outputs_are_mixed_as_probabilities(
    embedding: ModelEmbedding, classes: NDArray[np.int64], result: InterpolationResult
) -> None:
    samples = embedding.held_out_samples.numpy()
    first, second = (
        softmax(embedding.population.outputs(name, samples=samples).astype(float), axis=-1)
        for name in ("gru-0", "rnn-5")
    )
    decided = np.stack([((1 - s) * first + s * second).argmax(-1) for s in np.linspace(0, 1, 7)])
    table = of(result, "outputs")
    expected = (decided == classes[samples]).mean(1)
    np.testing.assert_allclose(table["score"].astype(float), expected)
    agreement = (decided == decided[0]).mean(1)
    np.testing.assert_allclose(table["agreement_first"].astype(float), agreement)
    assert table["distance"].isna().all()
    assert "models=" in result.omitted["weights"]
    figures = figures_of(result, "outputs")
    assert figures["length"] is None
    nearer = (decided == decided[-1]).mean(1) > agreement
    assert figures["switch_position"] == pytest.approx(np.flatnonzero(nearer)[0] / 6)


def test_averaged_weights_of_networks_that_are_linear_in_them(
    real: ModelEmbedding, alike: dict[str, nn.Module], row_targets: NDArray[np.float64]
) -> None:
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in alike.items()}
    models: dict[str, Any] = {"a": alike["a"], "c": lambda: alike["c"]}
    result = interpolation(
        real, first="a", second="c", points=5, models=models, progress=False, geodesic_steps=5
    )
    assert not result.omitted
    assert (result.score_kind, result.agreement_kind) == ("r2", "r2")
    weights, outputs = of(result, "weights"), of(result, "outputs")
    for column in ("score", "score_se", "below_line", "agreement_first", "agreement_second"):
        np.testing.assert_allclose(
            weights[column].astype(float), outputs[column].astype(float), atol=1e-5
        )
    samples = real.held_out_samples.numpy()
    offsets = real.population.offsets
    rows = np.concatenate([np.arange(offsets[s], offsets[s + 1]) for s in samples])
    first, last = (real.population.outputs(name, samples=samples) for name in "ac")
    for place, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        mixed = (1 - share) * first + share * last
        values = [(row_targets[rows], "score"), (first, "agreement_first")]
        for truth, column in [*values, (last, "agreement_second")]:
            expected = r2_score(truth, mixed, multioutput="variance_weighted")
            assert outputs[column][place] == pytest.approx(expected, abs=1e-5)
    for name, network in alike.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[name][key])


def test_every_path_ends_with_the_scores_of_its_ends(
    real: ModelEmbedding, alike: dict[str, nn.Module], row_targets: NDArray[np.float64]
) -> None:
    result = interpolation(
        real, first="b", second="a", points=3, models=alike, progress=False, geodesic_steps=3
    )
    samples = real.held_out_samples.numpy()
    offsets = real.population.offsets
    rows = np.concatenate([np.arange(offsets[s], offsets[s + 1]) for s in samples])
    for place, name in ((0, "b"), (2, "a")):
        own = real.population.outputs(name, samples=samples)
        emulated = np.concatenate(
            [
                real.render(name)(real.population.inputs.batch([s]).values).detach().numpy()[0]
                for s in samples
            ]
        )
        for path, outputs in (
            ("linear", emulated), ("geodesic", emulated), ("weights", own), ("outputs", own)
        ):  # fmt: skip
            expected = r2_score(row_targets[rows], outputs, multioutput="variance_weighted")
            assert of(result, path)["score"][place] == pytest.approx(expected, abs=1e-5)
    for column in ("agreement_first", "agreement_second"):
        at_end = result.table[result.table["point"] == (0 if column.endswith("first") else 2)]
        np.testing.assert_allclose(at_end[column].astype(float), 1)
        np.testing.assert_allclose(at_end[f"{column}_se"].astype(float), 0)


def test_without_targets_there_are_lengths_and_agreement(
    per_step_embedding: ModelEmbedding,
) -> None:
    result = interpolation(
        per_step_embedding, first="gru-0", second="gru-4", points=4, progress=False
    )
    assert result.score_kind is None
    assert "no targets were captured" in result.score_note
    assert result.table["score"].isna().all()
    assert result.table["agreement_first"].notna().all()
    figures: dict[str, Any] = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert figures["paths"]["linear"]["barrier"] is None
    assert figures["paths"]["linear"]["length"] > 0
    assert figures["paths"]["linear"]["length_elsewhere"] is None
    assert "no held-out samples are left" in figures["paths"]["linear"]["note"]
    assert len(result.plot().data) == 6
    with pytest.raises(InvalidInput, match="task-gru, task-rnn"):
        interpolation(per_step_embedding, **ENDS, progress=False)
    read = interpolation(
        per_step_embedding, **ENDS, output_group="task-rnn", geodesic_steps=1, progress=False
    )
    assert set(read.omitted) == {"weights", "outputs"}
    assert "another output group" in read.omitted["outputs"]
    only = interpolation(per_step_embedding, **ENDS, output_group="task-rnn", paths=["linear"])
    assert only.omitted["geodesic"] == "it was not asked for"


def test_constant_outputs_have_no_agreement(real: ModelEmbedding) -> None:
    constant: Any = Constant(real.meta_model)
    still = dataclasses.replace(real, meta_model=constant, common_maps=None)
    result = interpolation(still, first="a", second="b", points=3, progress=False)
    linear = of(result, "linear")
    assert linear["agreement_first"].isna().all()
    notes = result.paths.set_index("path")["note"]
    assert "constant" in notes["linear"]
    assert "do the same" in notes["geodesic"]
    assert figures_of(result, "linear")["length"] == 0
    json.dumps(result.summary(), allow_nan=False)


class Constant(nn.Module):
    """A meta-model that does not see anything."""

    def __init__(self, meta_model: Any) -> None:
        super().__init__()
        self.inner, self.layered, self.spec = meta_model, meta_model.layered, meta_model.spec

    def forward(self, inputs: Tensor, theta: Tensor, lengths: Tensor) -> Any:
        found = self.inner(inputs, theta, lengths)
        states = {name: values * 0 for name, values in found.states.items()}
        outputs = {name: values * 0 for name, values in found.outputs.items()}
        return dataclasses.replace(found, states=states, outputs=outputs)


def test_thetas_and_groups_as_ends(embedding: ModelEmbedding) -> None:
    theta = [0.1, -0.2, 0.3, 0.0]
    result = interpolation(
        embedding,
        first="gru",
        second=theta,
        labels="architecture",
        points=3,
        progress=False,
        geodesic_steps=2,
    )
    ends = result.thetas.loc["linear"].to_numpy()
    np.testing.assert_allclose(ends[0], embedding.thetas[[0, 2, 4]].double().mean(0))
    np.testing.assert_allclose(ends[2], theta)
    assert result.ends == ("gru", "theta")
    assert set(result.omitted) == {"weights", "outputs"}
    other = interpolation(
        embedding, first=torch.tensor(theta), second="rnn-1", points=3, paths=["linear"]
    )
    np.testing.assert_allclose(other.thetas.loc["linear"].to_numpy()[0], theta, atol=1e-7)


def test_a_search_that_is_cut_short_says_so(embedding: ModelEmbedding) -> None:
    result = interpolation(embedding, **ENDS, points=5, geodesic_steps=1, progress=False)
    row = figures_of(result, "geodesic")
    assert not row["converged"]
    assert "use more geodesic_steps" in row["note"]
    assert row["length"] <= figures_of(result, "linear")["length"]


def test_states_on_a_sphere(embedding: ModelEmbedding, monkeypatch: pytest.MonkeyPatch) -> None:
    def sphere(_: Any, inputs: Tensor, lengths: Tensor, thetas: Tensor) -> Tensor:
        latitude, longitude = thetas[:, 0], thetas[:, 1]
        flat = latitude.cos()
        parts = [flat * longitude.cos(), flat * longitude.sin(), latitude.sin()]
        return torch.stack(parts, 1)

    monkeypatch.setattr(_theta_paths, "rendered_states", sphere)
    monkeypatch.setattr(geometry, "rendered_states", sphere)
    ends = np.array([[0.6, -1.0, 0, 0], [0.6, 1.0, 0, 0]])
    result = interpolation(embedding, first=ends[0], second=ends[1], progress=False)
    paths = {name: figures_of(result, name) for name in ("linear", "geodesic")}
    angle = np.arccos(np.sin(0.6) ** 2 + np.cos(0.6) ** 2 * np.cos(2.0))
    assert paths["linear"]["length"] == pytest.approx(2 * np.cos(0.6), rel=1e-3)
    assert paths["geodesic"]["length"] == pytest.approx(angle, rel=1e-3)
    top = result.thetas.loc["geodesic"].to_numpy()[10]
    assert top[0] == pytest.approx(np.arctan(np.tan(0.6) / np.cos(1.0)), abs=1e-2)


def test_by_name_with_plot(embedding: ModelEmbedding) -> None:
    result = dp.analyse(
        "interpolation", embedding, **ENDS, points=3, geodesic_steps=2, progress=False
    )
    summary: dict[str, Any] = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert summary["first"] == "gru-0"
    assert set(summary["paths"]) == {"linear", "geodesic", "outputs"}
    figure = result.plot()
    assert len(figure.data) == 9
    table = result.to_dataframe()
    np.testing.assert_allclose(figure.data[0].y, table["score"][:3].astype(float))
    assert figure.data[3].line.dash == "solid"
    assert figure.data[6].line.dash == "dash"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": 2}, InvalidInput, "points must be at least 3"),
        ({"geodesic_samples": 0}, InvalidInput, "geodesic_samples must be"),
        ({"second": "gru-0"}, InvalidInput, "same theta"),
        ({"second": "gru-9"}, UnknownName, "gru-9"),
        ({"second": [0.0, 1.0]}, InvalidInput, "finite theta of 4 numbers"),
        ({"second": [0.0, 1.0, np.nan, 0]}, InvalidInput, "finite theta of 4 numbers"),
        ({"second": object()}, InvalidInput, "second must be a model id"),
        ({"labels": "architecture"}, UnknownName, "names the group 'gru-0'"),
        ({"paths": "linear"}, InvalidInput, r"write \['linear'\]"),
        ({"paths": []}, InvalidInput, "names no kind"),
        ({"paths": ["lines"]}, UnknownName, "'lines'"),
        ({"paths": ["weights"]}, InvalidInput, "networks are not given"),
        ({"second": [0.0] * 4, "paths": ["outputs"]}, InvalidInput, "not the id of one"),
        ({"second": [0.0] * 4, "models": {}}, InvalidInput, "path of weights cannot be"),
        ({"models": {}}, InvalidInput, "lacks 'gru-0'"),
        ({"output_group": "nothing"}, UnknownName, "'nothing'"),
    ],
)
def test_bad_options(
    embedding: ModelEmbedding, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        interpolation(embedding, **{**ENDS, "geodesic_steps": 1, "progress": False, **options})


def test_networks_of_two_architectures_have_no_path_of_weights(embedding: ModelEmbedding) -> None:
    models = make_models(3, per_step=False)
    with pytest.raises(InvalidInput, match="cannot be averaged"):
        interpolation(embedding, **ENDS, models=models, paths=["weights"], progress=False)
