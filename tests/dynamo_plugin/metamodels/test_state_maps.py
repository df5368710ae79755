"""The batched state maps against one module per model, and against scikit-learn's regressions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidConfig, InvalidInput
from dynamo_plugin.metamodels import (
    STATE_MAPS,
    AffineStateMaps,
    AmortisedStateMaps,
    LinearStateMaps,
    MLPStateMaps,
    OrthogonalStateMaps,
    SharedStateMaps,
    SolvableStateMaps,
    StateMaps,
)
from dynamo_plugin.metamodels.state_maps._base import RIDGE
from dynamo_plugin.metamodels.state_maps._moments import Moments, ridge

UNITS = (3, 5, 1)


@pytest.fixture
def maps() -> AffineStateMaps:
    torch.manual_seed(0)
    maps = AffineStateMaps(6, UNITS)
    maps.bias.data.normal_().mul_(maps.real_units)
    maps.mean.normal_()
    maps.scale.copy_(torch.tensor([0.5, 2.0, 7.0]))
    return maps


def _linear(maps: AffineStateMaps, model: int) -> nn.Linear:
    linear = nn.Linear(6, UNITS[model])
    linear.weight.data = maps.weight.data[model, : UNITS[model]]
    linear.bias.data = maps.bias.data[model, : UNITS[model]]
    return linear


def _mapped(maps: AffineStateMaps, states: Tensor, models: list[int]) -> Tensor:
    mapped: Tensor = maps(states, torch.tensor(models), torch.zeros(len(models), 0))
    return mapped


def test_matches_one_linear_layer_per_model(maps: AffineStateMaps) -> None:
    states = torch.randn(3, 4, 2, 6)
    mapped = _mapped(maps, states, [0, 1, 2])
    for model, units in enumerate(UNITS):
        torch.testing.assert_close(mapped[model, ..., :units], _linear(maps, model)(states[model]))
        assert not mapped[model, ..., units:].any()


def test_a_subset_of_models_in_any_order(maps: AffineStateMaps) -> None:
    states = torch.randn(2, 4, 2, 6)
    mapped = _mapped(maps, states, [2, 0])
    torch.testing.assert_close(mapped[0, ..., :1], _linear(maps, 2)(states[0]))
    torch.testing.assert_close(mapped[1, ..., :3], _linear(maps, 0)(states[1]))


def test_matrix_maps_into_the_units_of_the_model(maps: AffineStateMaps) -> None:
    states = torch.randn(3, 4, 2, 6)
    mapped = _mapped(maps, states, [0, 1, 2])
    for model, units in enumerate(UNITS):
        matrix, offset = maps.matrix(model)
        base = states[model] @ matrix.T + offset
        padded = nn.functional.pad(base, (0, 5 - units))[None]
        normalised = maps.normalise(padded, torch.tensor([model]))
        torch.testing.assert_close(
            normalised[0, ..., :units], mapped[model, ..., :units], rtol=1e-5, atol=1e-5
        )


def test_padding_units_get_no_gradient(maps: AffineStateMaps) -> None:
    real = maps.real_units[:, None, None].expand(3, 4, 2, 5)
    (_mapped(maps, torch.randn(3, 4, 2, 6), [0, 1, 2]).square() * real).sum().backward()
    assert maps.weight.grad is not None
    assert not maps.weight.grad[~maps.real_units].any()


def _made(kind: str, units: tuple[int, ...] = UNITS, solver: str = "gradient") -> StateMaps:
    """Return maps of a kind with statistics and parameters that are not those of the start."""
    torch.manual_seed(0)
    units = (4,) * len(units) if kind == "shared" else units
    maps = STATE_MAPS[kind](6, units, embedding_dim=2, solver=solver)
    maps.mean.normal_().mul_(maps.real_units)
    maps.scale.copy_(torch.rand(len(units)) + 0.5)
    for parameter in maps.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    maps.double()
    if isinstance(maps, AmortisedStateMaps):
        for rotation in maps.rotation:
            nn.init.orthogonal_(rotation)
    return maps


@pytest.mark.parametrize("kind", STATE_MAPS)
def test_restoring_undoes_normalising(kind: str) -> None:
    maps = _made(kind)
    models = torch.tensor([2, 0])
    states = torch.randn(2, 3, 4, maps.widest).double() * maps.real_units[models][:, None, None]
    restored = maps.restore(maps.normalise(states, models), models)
    torch.testing.assert_close(restored, states, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", STATE_MAPS)
def test_a_selection_maps_as_the_whole_does(kind: str) -> None:
    maps = _made(kind)
    chosen = maps.select([2, 0])
    assert chosen.units == (maps.units[2], maps.units[0])
    states, thetas = torch.randn(2, 3, 4, 6).double(), torch.randn(2, 2).double()
    expected = maps(states, torch.tensor([2, 0]), thetas)
    found = chosen(states, torch.tensor([0, 1]), thetas)
    assert torch.equal(found, expected)
    restored = maps.restore(expected, torch.tensor([2, 0]))
    assert torch.equal(chosen.restore(found, torch.tensor([0, 1])), restored)


@pytest.mark.parametrize("kind", STATE_MAPS)
def test_predictions_of_padding_are_nothing(kind: str) -> None:
    maps = _made(kind)
    for parameter in maps.parameters():
        if parameter.shape[:2] == maps.real_units.shape:
            parameter.data *= maps.real_units.view(
                *maps.real_units.shape, *(1,) * (parameter.ndim - 2)
            )
    models = torch.arange(len(UNITS))
    mapped = maps(torch.randn(3, 2, 2, 6).double(), models, torch.randn(3, 2).double())
    restored = maps.restore(mapped, models)
    padding = ~maps.real_units[:, None, None].expand_as(restored)
    assert not restored[padding].any()


def test_an_orthogonal_map_stays_one() -> None:
    maps = OrthogonalStateMaps(6, (3, 8, 6), embedding_dim=0).double()
    optimiser = torch.optim.SGD(maps.parameters(), lr=0.5)
    models = torch.arange(3)
    for _ in range(3):
        states, targets = torch.randn(3, 5, 2, 6).double(), torch.randn(3, 5, 2, 8).double()
        loss = (maps(states, models, torch.zeros(3, 0)) - targets).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert maps.gain.ne(1).all()
    matrices = (maps.matrices(models) / maps.gain[:, None, None]).detach()
    few, many, same = matrices[0, :3], matrices[1], matrices[2, :6]
    torch.testing.assert_close(few @ few.T, torch.eye(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(many.T @ many, torch.eye(6).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(same @ same.T, torch.eye(6).double(), rtol=0, atol=1e-5)


def test_an_mlp_is_one_network_per_model() -> None:
    maps = _made("mlp")
    assert isinstance(maps, MLPStateMaps)
    states = torch.randn(1, 4, 2, 6).double()
    mapped = maps(states, torch.tensor([1]), torch.zeros(1, 2))
    inner = torch.tanh(states[0] @ maps.inner_weight[1].T + maps.inner_bias[1])
    torch.testing.assert_close(mapped[0], inner @ maps.weight[1].T + maps.bias[1])


def test_theta_bends_the_amortised_map() -> None:
    maps = _made("amortised")
    assert isinstance(maps, AmortisedStateMaps)
    states, theta = torch.randn(1, 4, 2, 6).double(), torch.randn(1, 2).double()
    mapped = maps(states, torch.tensor([1]), theta)
    matrix = maps.weight[0] + theta[0, 0] * maps.weight[1] + theta[0, 1] * maps.weight[2]
    with_one = torch.cat([states[0], torch.ones(4, 2, 1).double()], -1)
    torch.testing.assert_close(mapped[0], with_one @ matrix.T)


class Rows:
    """Random states and targets of three models, the last rows of which do not count."""

    def __init__(self, widest: int) -> None:
        generator = np.random.default_rng(0)
        self.states = torch.from_numpy(generator.normal(1.0, 2.0, (3, 7, 3, 6)))
        self.thetas = torch.from_numpy(generator.normal(size=(3, 2)))
        mixing = torch.from_numpy(generator.normal(size=(3, 6, widest)))
        noise = torch.from_numpy(generator.normal(size=(3, 7, 3, widest)))
        self.targets = torch.einsum("msti,mio->msto", self.states, mixing) + noise + 3
        self.mask = torch.ones(1, 7, 3, dtype=torch.bool)
        self.mask[:, 3:, 2] = False
        self.models = torch.arange(3)

    def kept(self, values: Tensor, model: int) -> np.ndarray:
        return values[model][self.mask[0]].numpy()


@pytest.mark.parametrize("kind", ["affine", "linear", "shared"])
def test_solved_maps_are_the_ridge_regression_of_scikit_learn(kind: str) -> None:
    maps = _made(kind, solver="ridge")
    assert isinstance(maps, AffineStateMaps)
    rows = Rows(maps.widest)
    moments = maps.new_moments(decay=None, dtype=torch.float64)
    for part in (slice(0, 4), slice(4, 7)):
        maps.collect(
            moments, rows.states[:, part], rows.targets[:, part], rows.mask[:, part], rows.models
        )  # fmt: skip
    maps.solve_for(moments, rows.models, rows.thetas)
    inputs = [rows.kept(rows.states, model) for model in range(3)]
    outputs = [rows.kept(rows.targets, model) for model in range(3)]
    if kind == "shared":
        inputs, outputs = [np.concatenate(inputs)], [np.concatenate(outputs)]
    for model, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
        centre = 0 if kind == "linear" else x.mean(0)
        penalty = RIDGE * np.square(x - centre).sum(0).mean()
        expected = Ridge(penalty, fit_intercept=kind != "linear").fit(x, y)
        np.testing.assert_allclose(maps.weight[model], expected.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(
            maps.bias[model],
            np.broadcast_to(expected.intercept_, y.shape[1:]),
            rtol=1e-6,
            atol=1e-9,
        )


@pytest.mark.parametrize("dims", [1, 2, 7])  # with more than there are models, too
def test_the_solved_amortised_map_is_a_regression_on_products_with_theta(dims: int) -> None:
    maps = AmortisedStateMaps(6, (3, 5, 4), embedding_dim=dims, solver="ridge").double()
    rows = Rows(maps.widest)
    rows.thetas = torch.from_numpy(np.random.default_rng(1).normal(size=(3, dims)))
    moments = maps.new_moments(decay=None, dtype=torch.float64)
    maps.collect(moments, rows.states, rows.targets, rows.mask, rows.models)
    maps.solve_for(moments, rows.models, rows.thetas)
    features, outputs = [], []
    for model in range(3):
        x = np.pad(rows.kept(rows.states, model), ((0, 0), (0, 1)), constant_values=1)
        scales = np.concatenate([[1], rows.thetas[model].numpy()])
        features.append(np.concatenate([scale * x for scale in scales], axis=1))
        outputs.append(rows.kept(rows.targets, model))
    x, y = np.concatenate(features), np.concatenate(outputs)
    assert x.shape[1] == (1 + dims) * 7
    expected = Ridge(RIDGE * np.square(x).sum(0).mean(), fit_intercept=False).fit(x, y).coef_
    found = maps.weight.permute(1, 0, 2).flatten(1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["affine", "linear", "shared", "amortised"])
def test_it_makes_no_difference_how_many_models_come_at_once(kind: str) -> None:
    """A step over many models runs in several passes; a shared map must not forget the others."""
    whole, parts = _made(kind, solver="ridge"), _made(kind, solver="ridge")
    assert isinstance(whole, SolvableStateMaps)
    assert isinstance(parts, SolvableStateMaps)
    rows = Rows(whole.widest)
    for _ in range(2):
        for maps, groups in ((whole, [[0, 1, 2]]), (parts, [[1], [2, 0]])):
            for group in groups:
                maps.solve(
                    rows.states[group], rows.targets[group], rows.mask, rows.models[group],
                    rows.thetas[group],
                )  # fmt: skip
    expected = whole(rows.states, rows.models, rows.thetas)
    found = parts(rows.states, rows.models, rows.thetas)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["orthogonal", "mlp"])
def test_maps_without_a_closed_form_say_so(kind: str) -> None:
    with pytest.raises(InvalidConfig, match="found by gradient, not by 'ridge'"):
        STATE_MAPS[kind](4, (3,), embedding_dim=1, solver="ridge")


def test_moments_forget_as_they_should() -> None:
    torch.manual_seed(0)
    moments = Moments(2, 3, 2, decay=0.8, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []
    mask = torch.tensor([[True, True, False, True]])
    for _ in range(4):
        x, y = torch.randn(1, 4, 3).double(), torch.randn(1, 4, 2).double()
        moments.update(torch.tensor([1]), x, y, mask)
        seen.append((x[0, mask[0]], y[0, mask[0]]))
    weights = torch.tensor([0.8**k for k in (3, 2, 1, 0)]).double()
    weights /= weights.sum()
    features = sum(w * x.T @ x / 3 for w, (x, _) in zip(weights, seen, strict=True))
    products = sum(w * x.T @ y / 3 for w, (x, y) in zip(weights, seen, strict=True))
    found = moments.raw(torch.tensor([1]))
    torch.testing.assert_close(found[0][0], features)
    torch.testing.assert_close(found[1][0], products)
    assert not moments.weight[0]


def test_singular_features_are_solved_nonetheless() -> None:
    x = torch.randn(1, 50, 2).double()
    x = torch.cat([x, x, torch.zeros(1, 50, 1)], -1).float()
    y = torch.randn(1, 50, 2)
    solution = ridge(x.mT @ x, x.mT @ y, 1e-12)
    fitted = LinearRegression(fit_intercept=False).fit(x[0], y[0]).predict(x[0])
    np.testing.assert_allclose(x[0] @ solution[0], fitted, atol=1e-2)


def test_shared_maps_need_one_width() -> None:
    with pytest.raises(InvalidInput, match=r"3, 4 units.*amortised"):
        SharedStateMaps(6, (3, 4))


def test_a_linear_map_takes_zero_to_zero() -> None:
    maps = _made("linear")
    assert isinstance(maps, LinearStateMaps)
    matrix, offset = maps.matrix(1)
    assert matrix.shape == (5, 6)
    assert not offset.any()


@pytest.mark.parametrize("units", [[], [3, 0]])
def test_every_model_needs_units(units: list[int]) -> None:
    with pytest.raises(InvalidInput, match="at least one hidden unit"):
        AffineStateMaps(4, units)
