"""Which states are compared, and how they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.recording import capture
from dynamo_plugin.store import Population
from dynamo_plugin.training import Targets
from dynamo_plugin.training import targets as module
from dynamo_plugin.training.stages import find_stages

CPU = torch.device("cpu")


class Convolutional(nn.Module):
    """Two stages of feature maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.head = nn.Linear(2 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.second(self.first(x).relu()).relu()
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def _population(widths: tuple[int, ...] = (2, 3), **options: Any) -> Population:
    torch.manual_seed(0)
    models = {f"net-{width}": Convolutional(width) for width in widths}
    options = {"layers": ["first", "second"], **options}
    return capture(models, torch.randn(7, 3, 4, 6), {}, progress=False, **options)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_feature_maps_are_read_position_by_position(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", limit)
    population = _population()
    targets = Targets(population, sites=None, device=CPU, layered=True)
    assert [stage.spec.positions for stage in targets.stages] == [(4, 6), (2, 3)]
    assert [stage.units for stage in targets.stages] == [(2, 3), (4, 6)]
    samples = torch.tensor([5, 0, 6])
    batch = targets.batch(torch.tensor([1, 0]), samples)
    assert batch.states["stage0"].shape == (2, 3, 24, 3)
    for stage, site in (("stage0", "first"), ("stage1", "second")):
        assert bool(batch.masks[stage].all())
        for place, model in enumerate(["net-3", "net-2"]):
            stored = torch.from_numpy(population.states(model, site, samples=samples.numpy()))
            expected = stored.flatten(2).transpose(1, 2)
            found = batch.states[stage][place]
            assert torch.equal(found[..., : expected.shape[2]], expected)
            assert not found[..., expected.shape[2] :].any()
    mean, scale = targets.state_statistics(samples, "stage1")
    maps = population.states("net-2", "second", samples=[0, 5, 6]).astype(np.float64)
    assert np.allclose(mean[0, :4], maps.mean((0, 2, 3)), rtol=1e-5)
    variance = maps.var((0, 2, 3)).mean()
    assert scale[0].item() == pytest.approx(np.sqrt(variance), rel=1e-5)


def test_sites_without_steps_are_not_joined() -> None:
    with pytest.raises(InvalidInput, match=r"'first' of model 'net-2'.*'residual' or 'resnet'"):
        Targets(_population(), sites=None, device=CPU)


def test_stages_must_correspond() -> None:
    torch.manual_seed(0)
    models = {"deep": nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), "flat": nn.Linear(4, 4)}
    models["flat"] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    population = capture(models, torch.randn(6, 4), {}, layers=["*"], progress=False)
    with pytest.raises(InvalidInput, match="'flat' has 2 sites where 'deep' has 3"):
        Targets(population, sites=None, device=CPU, layered=True)
    stages = find_stages(population, population.ids, sites=["0", "1"], layered=True)
    assert [[site.name for (site,) in stage.sites] for stage in stages] == [["0"] * 2, ["1"] * 2]
    with pytest.raises(UnknownName, match="no site '2'"):
        Targets(population, sites=["2"], device=CPU, layered=True)


def test_positions_must_correspond() -> None:
    torch.manual_seed(0)

    def network(stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 2, 3, stride, 1), nn.Flatten(), nn.LazyLinear(2))

    models = {"fine": network(1), "coarse": network(2)}
    inputs = torch.randn(5, 3, 4, 4)
    for model in models.values():
        model(inputs)
    population = capture(models, inputs, {}, layers=["0"], progress=False)
    with pytest.raises(InvalidInput, match=r"Stage 0 has different positions.*\(2, 4, 4\)"):
        Targets(population, sites=None, device=CPU, layered=True)
