"""New networks join an embedding, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynamo_plugin.analyses import analyse
from dynamo_plugin.embedding import ModelEmbedding, fit, load_embedding
from dynamo_plugin.errors import DuplicateName, InvalidInput, UnknownName
from dynamo_plugin.store import Population, open_population
from dynamo_plugin.training import insertion

SAMPLES, TIME, INPUTS, UNITS = 60, 12, 2, 6
KINDS = (0.0, 1.0)
"""Two dynamics, by the weight of a second network in the first."""


def _states(kind: float, seed: int, units: int = UNITS) -> tuple[Tensor, Tensor]:
    """States of one of two networks in a random basis, and its outputs."""
    torch.manual_seed(0)
    one, other = (nn.GRU(INPUTS, UNITS, batch_first=True) for _ in range(2))
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        mine.data = 2 * ((1 - kind) * mine.data + kind * its.data)
    readout = nn.Linear(UNITS, 3)
    inputs = torch.randn(SAMPLES, TIME, INPUTS, generator=torch.Generator().manual_seed(1))
    hidden = one(inputs)[0].detach()
    basis = torch.linalg.qr(
        torch.randn(units, units, generator=torch.Generator().manual_seed(seed))
    ).Q[:UNITS]
    return hidden @ basis, readout(hidden[:, -1]).detach()


def _stored(
    write: Callable[..., Population], place: Path, models: dict[str, tuple[float, int, int]]
) -> Population:
    made = {name: _states(*spec) for name, spec in models.items()}
    inputs = torch.randn(SAMPLES, TIME, INPUTS, generator=torch.Generator().manual_seed(1))
    return write(
        {name: states.flatten(0, 1).numpy() for name, (states, _) in made.items()},
        {name: outputs.numpy() for name, (_, outputs) in made.items()},
        inputs.flatten(0, 1).numpy(),
        [TIME] * SAMPLES,
        store=str(place),
        metadata={name: {"kind": kind} for name, (kind, _, _) in models.items()},
    )


@pytest.fixture(scope="module")
def places(
    write_population: Callable[..., Population], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("populations")
    known = {f"{kind:g}-{seed}": (kind, seed, UNITS) for kind in KINDS for seed in range(3)}
    new = {f"new {kind:g}": (kind, 10 + seed, 8) for seed, kind in enumerate(KINDS)}
    _stored(write_population, folder / "known.zarr", known)
    _stored(write_population, folder / "new.zarr", new)
    return folder / "known.zarr", folder / "new.zarr"


SETTINGS: dict[str, dict[str, Any]] = {
    "learned": {},
    "solved and aligned": {"state_map_solver": "ridge", "alignment_weight": 1.0},
    "amortised": {"state_map": "amortised"},
    "mlp": {"state_map": "mlp"},
    "orthogonal": {"state_map": "orthogonal"},
}


def _fitted(places: tuple[Path, Path], **settings: Any) -> ModelEmbedding:
    return fit(
        open_population(places[0]),
        seeds=None,
        device="cpu",
        progress=False,
        **{"family_options": {"units": 12}, "embedding_dim": 2, "steps": 200, **settings},
    )


@pytest.mark.parametrize("variant", SETTINGS)
def test_others_stay_and_new_ones_are_emulated(
    places: tuple[Path, Path], tmp_path: Path, variant: str
) -> None:
    embedding = _fitted(places, **SETTINGS[variant])
    joined = embedding.insert(open_population(places[1]), device="cpu", progress=False)
    assert joined.ids == (*embedding.ids, "new 0", "new 1")
    assert joined.metadata["kind"].tolist() == [0.0] * 3 + [1.0] * 3 + [0.0, 1.0]
    assert torch.equal(joined.thetas[:6], embedding.thetas)
    inputs = torch.randn(3, TIME, INPUTS)
    for model in embedding.ids:
        before, after = embedding.render(model), joined.render(model)
        assert torch.equal(before(inputs), after(inputs))
        # Padding of a wider model changes the order of sums.
        torch.testing.assert_close(
            before.base_states(inputs), after.base_states(inputs), rtol=1e-5, atol=1e-5
        )
    assert joined.render("new 0").base_states(inputs).shape == (3, TIME, 8)
    fidelity = analyse("fidelity", joined).to_dataframe().set_index("model")["hidden_r2"]
    assert fidelity[["new 0", "new 1"]].min() > fidelity[list(embedding.ids)].min() - 0.05

    folder = joined.save(tmp_path / "joined")
    loaded = load_embedding(folder)
    assert loaded.population.ids == joined.ids
    assert torch.equal(loaded.render("new 1")(inputs), joined.render("new 1")(inputs))


def test_a_network_joins_its_like(places: tuple[Path, Path]) -> None:
    embedding = _fitted(places, state_map_solver="ridge", alignment_weight=1.0)
    joined = embedding.insert(open_population(places[1]), device="cpu", progress=False)
    distances = joined.distances().loc[["new 0", "new 1"], list(embedding.ids)]
    for kind in KINDS:
        own = distances.loc[f"new {kind:g}"]
        assert str(own.idxmin()).startswith(f"{kind:g}-")
        like = [name for name in own.index if name.startswith(f"{kind:g}-")]
        assert own[like].max() < own.drop(like).min()


def test_models_in_several_passes_are_the_same(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = _fitted(places, steps=20, state_map_solver="ridge", alignment_weight=1.0)
    new = open_population(places[1])
    whole = embedding.insert(new, steps=10, device="cpu", progress=False)
    monkeypatch.setattr(insertion, "ROWS_PER_PASS", 1)
    parts = embedding.insert(new, steps=10, device="cpu", progress=False)
    torch.testing.assert_close(parts.thetas, whole.thetas, rtol=1e-4, atol=1e-5)


def test_one_more_of_a_population_that_was_embedded_in_part(
    places: tuple[Path, Path], write_population: Callable[..., Population], tmp_path: Path
) -> None:
    embedding = _fitted(places)
    known = {f"{kind:g}-{seed}": (kind, seed, UNITS) for kind in KINDS for seed in range(3)}
    grown = _stored(write_population, tmp_path / "g.zarr", {**known, "late": (1.0, 7, UNITS)})
    joined = embedding.insert(grown, steps=5, device="cpu", progress=False)
    assert joined.ids[-1] == "late"
    assert joined.provenance.population == grown.location
    assert joined.provenance.others == ()


def test_what_cannot_be_inserted(
    places: tuple[Path, Path], write_population: Callable[..., Population], tmp_path: Path
) -> None:
    embedding = _fitted(places, steps=5)
    new = open_population(places[1])
    with pytest.raises(UnknownName, match="Did you mean 'new 0'"):
        embedding.insert(new, models=["new 00"])
    with pytest.raises(DuplicateName, match="already"):
        embedding.insert(open_population(places[0]), models=["0-1"])
    with pytest.raises(InvalidInput, match="got none, of 6"):
        embedding.insert(open_population(places[0]))
    rng = np.random.default_rng(0)
    rows = SAMPLES * TIME
    inputs = torch.randn(SAMPLES, TIME, INPUTS, generator=torch.Generator().manual_seed(1))
    states = {"x": rng.normal(size=(rows, 3)).astype(np.float32)}
    for values, outputs, groups, words in (
        (inputs + 1, (SAMPLES, 3), None, "different inputs"),
        (inputs, (SAMPLES, 4), None, r"outputs of model 'x' are \(4,\) per sample"),
        (inputs, (SAMPLES, 3), {"x": "other"}, "'other', for which the meta-model has no readout"),
    ):
        population = write_population(
            states,
            {"x": rng.normal(size=outputs).astype(np.float32)},
            values.flatten(0, 1).numpy(),
            [TIME] * SAMPLES,
            groups=groups,
        )
        with pytest.raises(InvalidInput, match=words):
            embedding.insert(population, progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
@pytest.mark.parametrize("variant", SETTINGS)
def test_an_accelerator_inserts(places: tuple[Path, Path], variant: str) -> None:
    embedding = _fitted(places, **SETTINGS[variant])
    new, accelerator = open_population(places[1]), torch.accelerator.current_accelerator()
    assert accelerator is not None
    there = embedding.insert(new, device=accelerator, progress=False)
    here = embedding.insert(new, device="cpu", progress=False)
    assert there.thetas.device.type == "cpu"
    for found in (there, here):
        fidelity = analyse("fidelity", found).to_dataframe()["hidden_r2"]
        assert fidelity.iloc[-2:].min() > fidelity.iloc[:-2].min() - 0.05
