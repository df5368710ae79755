"""What is done to states of one site, against NumPy written out."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from dynamo_plugin.errors import InvalidInput, NonFiniteStates, UnknownName
from dynamo_plugin.recording.reducing import Reductions, SiteReducer
from dynamo_plugin.recording.reduction import Reduction, as_rules, rules_as_json
from dynamo_plugin.store import random_projection
from dynamo_plugin.types import OutputSpec, SiteSpec, TrajectorySpec


def spec(*sites: SiteSpec) -> TrajectorySpec:
    return TrajectorySpec("none", sites, OutputSpec("o", (1,), "float32", "sample"))


def stored(site: SiteSpec, **rule: Any) -> SiteSpec:
    return Reductions(as_rules({"*": rule})).stored(spec(site)).sites[0]


def reduced(site: SiteSpec, values: Tensor, lengths: list[int] | None = None, **rule: Any) -> Any:
    kept = stored(site, **rule)
    projection = random_projection(kept) if rule.get("project") else None
    counts = np.array(lengths if lengths is not None else [values.shape[1]] * len(values))
    place = "sample {} step {}".format
    result = SiteReducer(site, kept, projection)(values, counts, place)
    assert result.is_contiguous()
    assert str(result.dtype) == f"torch.{kept.dtype}"
    rows = result.shape[2:] if site.axis == "time" else result.shape[1:]
    assert tuple(rows) == kept.shape
    return result


def pool(image: NDArray[Any], size: int, *, maximum: bool) -> NDArray[Any]:
    """Adaptive pooling of (channels, *positions), written out for each cell."""
    axes = [min(size, length) for length in image.shape[1:]]
    result = np.empty((len(image), *axes), image.dtype)
    for cell in np.ndindex(*axes):
        window: tuple[slice, ...] = tuple(
            slice(i * length // n, math.ceil((i + 1) * length / n))
            for i, n, length in zip(cell, axes, image.shape[1:], strict=True)
        )
        part = image[(slice(None), *window)].reshape(len(image), -1)
        result[(slice(None), *cell)] = part.max(1) if maximum else part.mean(1)
    return result


@settings(deadline=None, max_examples=60)
@given(
    positions=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    size=st.none() | st.integers(1, 7),
    maximum=st.booleans(),
    axis=st.sampled_from(["time", "sample"]),
)
def test_pooling(positions: list[int], size: int | None, maximum: bool, axis: Any) -> None:
    site = SiteSpec("x", (3, *positions), "float64", axis)
    leading = (2, 4) if axis == "time" else (5,)
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(*leading, *site.shape)))
    kind = "max" if maximum else "mean"
    found = reduced(site, values, [1] * 5 if axis == "sample" else None, pool=kind, pool_size=size)
    for index in np.ndindex(*leading):
        expected = pool(values[index].numpy(), size or 1, maximum=maximum)
        expected = expected.reshape(3) if size is None else expected
        np.testing.assert_allclose(found[index].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_the_maximum_hides_nothing_that_is_not_finite(size: int | None, bad: float) -> None:
    values = torch.zeros(2, 3, 4, 4)
    values[1, 2, 0, 1] = bad
    site = SiteSpec("x", (3, 4, 4), "float32", "sample")
    found = reduced(site, values, [1, 1], pool="max", pool_size=size)
    assert (~found.isfinite()).nonzero().tolist() == [[1, 2, *([0, 0] if size else [])]]


@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_every(every: int) -> None:
    values = torch.randn(3, 7, 4)
    found = reduced(SiteSpec("x", (4,), "float32"), values, [7, 2, 4], every=every)
    np.testing.assert_array_equal(found.numpy(), values.numpy()[:, list(range(0, 7, every))])


def signs(components: int, width: int, seed: int) -> NDArray[Any]:
    """The documented stream, read with integers."""
    text = f"dynamo-plugin random projection 1: seed {seed}, width {width}, components {components}"
    stream = hashlib.shake_256(text.encode()).hexdigest(components * width // 8 + 1)
    bits = bin(int("1" + stream, 16))[3 : 3 + components * width]
    rows = [1.0 if bit == "1" else -1.0 for bit in bits]
    return np.array(rows).reshape(components, width)


def test_random_projections_follow_from_the_seed() -> None:
    values = torch.randn(3, 5, 11)
    site = SiteSpec("x", (11,), "float32")
    found = reduced(site, values, project=6, seed=4)
    expected = values.double().numpy() @ signs(6, 11, 4).T / np.sqrt(6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, reduced(site, values, project=6, seed=5))


def test_random_projections_keep_distances() -> None:
    values = torch.randn(40, 1, 300, generator=torch.Generator().manual_seed(0))
    found = reduced(SiteSpec("x", (300,), "float32"), values, project=200)[:, 0].double()
    ratios = torch.pdist(found) / torch.pdist(values[:, 0].double())
    assert abs(float(ratios.mean()) - 1) < 0.02  # its standard deviation is 1 / sqrt(2 * 200)
    assert float(ratios.std()) == pytest.approx(0.05, rel=0.3)


def test_all_together_in_their_order() -> None:
    values = torch.randn(2, 5, 3, 4, 4)
    found = reduced(
        SiteSpec("x", (3, 4, 4), "float32"),
        values,
        every=2,
        pool="mean",
        pool_size=2,
        project=5,
        dtype="float16",
    )
    pooled = values.numpy()[:, ::2].reshape(2, 3, 3, 2, 2, 2, 2).mean((4, 6)).reshape(2, 3, 12)
    expected = (pooled.astype(np.float64) @ signs(5, 12, 0).T / np.sqrt(5)).astype(np.float16)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=1e-3)


def test_what_is_stored_says_what_was_done() -> None:
    site = SiteSpec("x", (3, 8, 4), "float16", source_dtype=None)
    kept = stored(site, every=2, pool="max", pool_size=6, project=7, projection="pca", seed=9)
    assert kept == SiteSpec(
        "x",
        (7,),
        "float32",
        "time",
        "float16",
        2,
        {
            "source_shape": [3, 8, 4],
            "pool": "max",
            "pooled_shape": [3, 6, 4],
            "projection": "pca",
            "seed": 9,
            "pca_samples": 1024,
        },
    )
    halved = stored(SiteSpec("x", (3,), "float32", source_dtype="bfloat16"), dtype="float16")
    assert halved == SiteSpec("x", (3,), "float16", source_dtype="bfloat16")
    assert stored(site) == site


def test_the_first_pattern_that_matches_counts() -> None:
    sites = [SiteSpec(name, (4,), "float64") for name in ("layer1", "layer2", "head")]
    rules = as_rules({"layer2": Reduction(), "l[a-b]yer*": {"dtype": "float32"}})
    kept = Reductions(rules).stored(spec(*sites)).sites
    assert [site.dtype for site in kept] == ["float32", "float64", "float64"]
    with pytest.raises(UnknownName, match=r"'laier1' matches no site. Did you mean 'layer1'"):
        Reductions(as_rules({"*": {}, "laier1": {}})).stored(spec(*sites))
    with pytest.raises(UnknownName, match="'Layer1' matches no site"):
        Reductions(as_rules({"Layer1": {}})).stored(spec(*sites))


@pytest.mark.parametrize(
    ("site", "rule", "message"),
    [
        (SiteSpec("x", (4,), "float32", "sample"), {"every": 2}, "one row per sample"),
        (SiteSpec("x", (4,), "float32"), {"pool": "mean"}, r"\(4,\), without positions"),
        (SiteSpec("x", (), "float32"), {"pool": "mean"}, "without positions"),
        (SiteSpec("x", (4,), "float32"), {"project": 5}, "4 numbers per row; project=5"),
        (
            SiteSpec("x", (2, 2, 2, 2, 2), "float32"),
            {"pool": "max", "pool_size": 1},
            "up to 3 axes",
        ),
    ],
)
def test_what_a_site_cannot_do_is_refused(
    site: SiteSpec, rule: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=f"site 'x'.*{message}"):
        stored(site, **rule)


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        ([Reduction()], "must be a mapping from patterns"),
        ({"": {}}, "not empty"),
        ({"*": 3}, r"reduce\['\*'\] must be a Reduction or a mapping"),
        ({"*": {"evry": 2}}, "no field 'evry'. Did you mean 'every'"),
        ({"*": {"every": 0}}, "every must be a positive integer; got 0"),
        ({"*": {"every": True}}, "positive integer; got True"),
        ({"*": {"project": 2.0}}, "project must be a positive integer"),
        ({"*": {"pool": "sum"}}, "pool must be 'mean' or 'max'; got 'sum'"),
        ({"*": {"dtype": "int8"}}, "dtype must be 'float16' or 'float32'"),
        ({"*": {"project": 2, "seed": -1}}, "at least 0"),
        ({"*": {"pool_size": 2}}, "pool_size is only used together with pool;"),
        ({"*": {"projection": "pca"}}, "projection is only used together with project;"),
        ({"*": {"seed": 1}}, "seed is only used together with project;"),
        ({"*": {"project": 2, "pca_samples": 8}}, "together with projection = 'pca'"),
    ],
)
def test_bad_rules_are_refused(reduce: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_rules(reduce)


def test_rules_are_kept_in_order() -> None:
    written = rules_as_json(as_rules({"b": {"every": 2}, "a": Reduction(dtype="float16")}))
    assert [(rule["pattern"], rule["every"]) for rule in written if isinstance(rule, dict)] == [
        ("b", 2),
        ("a", 1),
    ]


def test_numbers_too_large_are_located() -> None:
    values = torch.full((2, 6, 3), 65519.0)
    site = SiteSpec("deep", (3,), "float32")
    assert float(reduced(site, values, dtype="float16").max()) == 65504  # rounds to the largest
    values[1, 4, 2] = -7e4
    with pytest.raises(
        NonFiniteStates, match=r"'deep' reaches 70000 at sample 1 step 4, which float16.*float32"
    ):
        reduced(site, values, dtype="float16", every=2)
    reduced(site, values, dtype="float16", every=3)  # not stored
    reduced(site, values, [6, 4], dtype="float16")  # padding
    values = torch.tensor([[1e39], [2.0]], dtype=torch.float64)
    with pytest.raises(NonFiniteStates, match="at sample 0 step None, which float32"):
        reduced(SiteSpec("x", (1,), "float64", "sample"), values, [1, 1], dtype="float32")
