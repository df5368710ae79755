"""Which samples a fit sees."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.training.sampler import draw_batches, split_samples


@given(
    samples=st.integers(2, 300),
    held_out=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_split_is_a_partition(samples: int, held_out: float, seed: int) -> None:
    training, kept = split_samples(samples, held_out=held_out, seed=seed)
    assert sorted([*training.tolist(), *kept.tolist()]) == list(range(samples))
    assert len(training) >= 1
    assert abs(len(kept) - samples * held_out) <= 1
    assert torch.equal(kept, split_samples(samples, held_out=held_out, seed=seed)[1])


def test_seeds_differ() -> None:
    splits = {tuple(split_samples(50, held_out=0.2, seed=s)[1].tolist()) for s in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize("samples", [0, 1])
def test_one_sample_is_too_few(samples: int) -> None:
    with pytest.raises(InvalidInput, match="at least 2 samples"):
        split_samples(samples, held_out=0.2, seed=0)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 100))
def test_epochs_cover_all_samples_and_no_batch_repeats_one(
    count: int, batch_size: int, seed: int
) -> None:
    samples = torch.arange(100, 100 + count)
    batches = draw_batches(
        samples,
        batch_size=batch_size,
        models=3,
        models_per_step=None,
        generator=torch.Generator().manual_seed(seed),
    )
    drawn = [batch for _, batch in islice(batches, 3 * count)]
    size = min(batch_size, count)
    assert all(len(batch) == size == len(set(batch.tolist())) for batch in drawn)
    seen = torch.cat(drawn)
    for epoch in range(len(seen) // count):
        part = seen[epoch * count : (epoch + 1) * count]
        assert sorted(part.tolist()) == samples.tolist()


def test_models_per_step_draws_distinct_models_of_all() -> None:
    batches = draw_batches(
        torch.arange(4),
        batch_size=2,
        models=6,
        models_per_step=2,
        generator=torch.Generator().manual_seed(0),
    )
    drawn = [tuple(models.tolist()) for models, _ in islice(batches, 200)]
    assert all(len(set(models)) == 2 for models in drawn)
    assert {model for models in drawn for model in models} == set(range(6))


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    buckets=st.integers(2, 6),
    seed=st.integers(0, 100),
)
def test_buckets_draw_the_same_samples_in_batches_of_like_lengths(
    count: int, batch_size: int, buckets: int, seed: int
) -> None:
    lengths = torch.randint(1, 50, (count,), generator=torch.Generator().manual_seed(seed))

    def drawn(buckets: int) -> list[torch.Tensor]:
        batches = draw_batches(
            torch.arange(count),
            batch_size=batch_size,
            models=2,
            models_per_step=None,
            generator=torch.Generator().manual_seed(seed),
            lengths=lengths,
            buckets=buckets,
        )
        return [batch for _, batch in islice(batches, 12 * buckets)]

    found = drawn(buckets)
    size = min(batch_size, count)
    assert all(len(batch) == size == len(set(batch.tolist())) for batch in found)
    # Every sample comes as often as any other, but for the windows that are not over yet.
    seen = torch.bincount(torch.cat(found), minlength=count)
    assert int(seen.max() - seen.min()) <= 1 + buckets
    window = found[:buckets]
    pool = torch.cat(window)
    if len(pool.unique()) == len(pool):
        spans = sorted((int(lengths[b].min()), int(lengths[b].max())) for b in window)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
