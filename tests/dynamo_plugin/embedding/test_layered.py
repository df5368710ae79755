"""Networks whose depth takes the place of time, from capture to a rendered network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from dynamo_plugin.analyses import fidelity
from dynamo_plugin.embedding import ModelEmbedding, fit, geometry, load_embedding
from dynamo_plugin.errors import InvalidInput, UnknownName
from dynamo_plugin.recording import capture
from dynamo_plugin.store import Population


class Convolutional(nn.Module):
    """A network in the layout of residual networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 2 * width]
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                nn.Conv2d(sizes[number], sizes[number + 1], 3, 1 if number == 0 else 2, 1),
                nn.ReLU(),
            )
            for number in range(3)
        )
        self.fc = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


class Stream(HookedRootModule):
    """A residual stream with TransformerLens' names."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.blocks = nn.ModuleList(StreamBlock(width) for _ in range(depth))
        self.unembed = nn.Linear(width, 3)
        self.setup()  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens)
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.unembed(stream)
        return logits


class StreamBlock(nn.Module):
    """Adds a causal average to the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
        self.mix = nn.Linear(width, width)

    def forward(self, stream: Tensor) -> Tensor:
        stream = self.hook_resid_pre(stream)
        steps = torch.arange(1, stream.shape[1] + 1)[:, None]
        result: Tensor = self.hook_resid_post(stream + self.mix(stream.cumsum(1) / steps).tanh())
        return result


def _images() -> Population:
    models = {f"net-{seed}": _seeded(seed, lambda s: Convolutional(3 + s % 2)) for seed in range(4)}
    return capture(models, torch.randn(150, 3, 8, 8), {}, progress=False)


def _tokens() -> Population:
    models = {f"net-{seed}": _seeded(seed, lambda s: Stream(5 + s % 2)) for seed in range(4)}
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 7, (40,), generator=generator)
    inputs = [torch.randint(0, 9, (int(n),), generator=generator) for n in lengths]
    return capture(models, inputs, {}, vocabulary_size=9, progress=False)


def _vectors() -> Population:
    def network(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4 + seed % 2), nn.Tanh())

    models = {f"net-{seed}": _seeded(seed, network) for seed in range(4)}
    return capture(models, torch.randn(40, 6), {}, layers=["1", "3"], progress=False)


def _seeded(seed: int, make: Any) -> nn.Module:
    torch.manual_seed(seed)
    module: nn.Module = make(seed).eval()
    return module


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "resnet": (_images, {"depth": 8, "width": 16}),
    "transformer": (_tokens, {"units": 8, "heads": 2}),
    "residual": (_vectors, {"units": 12}),
}


@pytest.fixture(scope="module", params=CASES)
def fitted(request: pytest.FixtureRequest) -> ModelEmbedding:
    make, options = CASES[request.param]
    torch.manual_seed(7)
    return fit(
        make(),
        family=request.param,
        family_options=options,
        embedding_dim=2,
        steps=80,
        batch_size=16,
        state_map_solver="ridge",
        alignment_weight=1.0,
        progress=False,
    )


def test_stages_are_emulated_better_than_by_their_mean(fitted: ModelEmbedding) -> None:
    result = fidelity(fitted)
    table = result.to_dataframe()
    by_site = result.by_site.groupby("model", sort=False)
    names = [site.name for site in fitted.population.spec(fitted.ids[0]).sites]
    assert by_site.get_group(fitted.ids[0])["site"].tolist() == names
    assert table["hidden_r2_untrained"].to_numpy() == pytest.approx(
        by_site["hidden_r2_untrained"].mean().to_numpy()
    )
    per_step = any(stage.axis == "time" for stage in fitted.meta_model.spec.stages)
    assert len(result.by_step) > 0 if per_step else result.by_step.empty
    stages = [column for column in map(str, table) if column.startswith("hidden_r2_stage")]
    assert len(stages) == len(fitted.state_maps)
    assert (table["hidden_r2"] > 0.1).all()
    assert table["hidden_r2"].to_numpy() == pytest.approx(table[stages].mean(axis=1).to_numpy())


def test_round_trip_to_the_bit(fitted: ModelEmbedding, tmp_path: Path) -> None:
    fitted.save(tmp_path / "embedding")
    loaded = load_embedding(tmp_path / "embedding", population=fitted.population)
    batch = fitted.population.inputs.batch([0, 1, 2])
    for model in fitted.ids:
        network, again = fitted.render(model), loaded.render(model)
        ours, theirs = (n(batch.values, lengths=batch.lengths) for n in (network, again))
        assert torch.equal(ours, theirs)
        for stage in fitted.state_maps:
            assert torch.equal(
                network.base_states(batch.values, lengths=batch.lengths, stage=stage),
                again.base_states(batch.values, lengths=batch.lengths, stage=stage),
            )
    for kind in ("theta", "pullback", "functional"):
        assert fitted.distances(kind).equals(loaded.distances(kind))


def test_base_states_are_those_whose_fidelity_is_reported(fitted: ModelEmbedding) -> None:
    batch = fitted.population.inputs.batch(fitted.held_out_samples.numpy())
    model = fitted.ids[1]
    table = fidelity(fitted).to_dataframe().set_index("model")
    for number, site in enumerate(fitted.population.spec(model).sites):
        stage = f"stage{number}"
        emulated = fitted.render(model).base_states(
            batch.values, lengths=batch.lengths, stage=stage
        )
        stored = torch.from_numpy(
            fitted.population.states(model, site.name, samples=fitted.held_out_samples.numpy())
        )
        if site.axis == "time":
            real = torch.arange(emulated.shape[1]) < batch.lengths[:, None]
            emulated = emulated[real]
        else:
            stored = stored.flatten(2).mT if stored.ndim > 2 else stored.unsqueeze(1)
            stored, emulated = stored.flatten(0, 1), emulated.flatten(0, 1)
        residual = (stored - emulated).double().square().sum()
        total = (stored - stored.mean(0)).double().square().sum()
        found = table.loc[model, f"hidden_r2_{stage}"]
        assert float(1 - residual / total) == pytest.approx(found, rel=1e-3)


def test_functional_distances_run_in_parts_that_fit_into_memory(
    fitted: ModelEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fitted.distances("functional")
    spec, lengths = fitted.meta_model.spec, fitted.population.lengths
    longest = int(lengths[fitted.held_out_samples.numpy()].max())
    rows = sum(
        longest if stage.axis == "time" else math.prod(stage.positions) for stage in spec.stages
    )
    monkeypatch.setattr(geometry, "ROWS", 8 * rows)  # two samples of four models
    counts = []
    run = fitted.meta_model.register_forward_pre_hook(
        lambda module, given: counts.append(len(given[0][0]))
    )
    found = fitted.distances("functional")
    run.remove()
    assert max(counts) == 2
    assert sum(counts) == len(fitted.held_out_samples)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_several_stages_must_be_chosen_from(fitted: ModelEmbedding) -> None:
    network = fitted.render(fitted.ids[0])
    batch = fitted.population.inputs.batch([0])
    with pytest.raises(InvalidInput, match="Name one with stage=, of stage0, stage1"):
        network.base_states(batch.values)
    with pytest.raises(UnknownName, match=r"no stage 'stag1'. Did you mean 'stage1'"):
        network.base_states(batch.values, stage="stag1")


def test_on_images_the_map_is_a_convolution_of_one_by_one() -> None:
    torch.manual_seed(7)
    embedding = fit(
        _images(),
        family="resnet",
        family_options={"depth": 8, "width": 4},
        embedding_dim=2,
        steps=2,
        progress=False,
    )
    images = torch.randn(3, 3, 8, 8)
    network = embedding.render("net-1")
    hidden = network.trajectory(images).states["stage1"]
    weight, offset = embedding.state_maps["stage1"].matrix(1)  # type: ignore[operator]
    maps = hidden.mT.unflatten(2, (4, 4))
    expected = F.conv2d(maps, weight[:, :, None, None], offset).flatten(2).mT
    torch.testing.assert_close(network.base_states(images, stage="stage1"), expected)


def test_a_wrong_image_is_refused() -> None:
    torch.manual_seed(7)
    embedding = fit(
        _images(),
        family="resnet",
        family_options={"depth": 8, "width": 4},
        embedding_dim=2,
        steps=1,
        progress=False,
    )
    with pytest.raises(InvalidInput, match=r"Expected inputs \(sample, 3, 8, 8\), got shape"):
        embedding.render("net-0")(torch.randn(2, 3, 8))
