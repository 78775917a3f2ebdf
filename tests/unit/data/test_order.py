import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.data.order import (
    micro_batches,
    order,
    rank_range,
    sample_rng,
    split_global_batch,
    step_content,
    steps_per_epoch,
)
from vast.errors import UserError

SEEDS = st.integers(0, 2**63 - 1)


@given(SEEDS, st.integers(0, 1000), st.integers(1, 2000))
def test_order_is_a_permutation(seed: int, epoch: int, num_samples: int) -> None:
    assert sorted(order(seed, epoch, num_samples)) == list(range(num_samples))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    first = order(7, 0, 1000).copy()
    order.cache_clear()
    np.random.seed(1)
    assert np.array_equal(order(7, 0, 1000), first)
    assert not np.array_equal(order(7, 1, 1000), first)
    assert not np.array_equal(order(8, 0, 1000), first)


def test_order_is_pinned() -> None:
    # A change here breaks the resumption of every run that exists.
    assert order(0, 0, 10).tolist() == [4, 6, 3, 5, 2, 9, 1, 0, 7, 8]


def test_order_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 5)[0] = 1


def test_a_sample_has_its_own_generator() -> None:
    draws = {
        (seed, epoch, sample): sample_rng(seed, epoch, sample).integers(2**63)
        for seed in range(3)
        for epoch in range(3)
        for sample in range(3)
    }
    assert len(set(draws.values())) == 27
    assert sample_rng(1, 2, 0).integers(2**63) == draws[1, 2, 0]


@given(SEEDS, st.integers(1, 60), st.integers(1, 40))
def test_steps_of_an_epoch_share_its_order(seed: int, global_batch: int, extra: int) -> None:
    num_samples = global_batch + extra
    num_steps = steps_per_epoch(num_samples, global_batch)
    for epoch in (0, 2):
        steps = [step_content(seed, epoch * num_steps + i, global_batch, num_samples) for i in range(num_steps)]
        assert {step.epoch for step in steps} == {epoch}
        joined = np.concatenate([step.samples for step in steps])
        assert np.array_equal(joined, order(seed, epoch, num_samples)[: num_steps * global_batch])


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.integers(0, 100))
def test_ranks_are_disjoint_and_complete(num_ranks: int, share: int, max_micro_batch: int, step: int) -> None:
    global_batch = num_ranks * share
    samples = step_content(5, step, global_batch, 2 * global_batch + 1).samples
    micro_batch, accumulation = split_global_batch(global_batch, num_ranks, max_micro_batch)
    seen = []
    for rank in range(num_ranks):
        parts = list(micro_batches(samples, rank, num_ranks, micro_batch))
        assert [len(part) for part in parts] == [micro_batch] * accumulation
        seen += np.concatenate(parts).tolist()
    assert seen == samples.tolist()


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 64))
def test_split_global_batch(global_batch: int, num_ranks: int, max_micro_batch: int) -> None:
    if global_batch % num_ranks:
        with pytest.raises(UserError, match=f"{global_batch} clips cannot be shared equally by {num_ranks} ranks"):
            split_global_batch(global_batch, num_ranks, max_micro_batch)
        return
    micro_batch, accumulation = split_global_batch(global_batch, num_ranks, max_micro_batch)
    assert micro_batch * num_ranks * accumulation == global_batch
    assert micro_batch <= max_micro_batch
    larger = range(micro_batch + 1, min(max_micro_batch, global_batch // num_ranks) + 1)
    assert all(global_batch // num_ranks % size for size in larger)


def test_an_impossible_split_tells_what_would_do() -> None:
    with pytest.raises(UserError, match="use a global batch of 9 or 12, or a number of ranks that divides 10"):
        split_global_batch(10, 3, 4)
    with pytest.raises(UserError, match="use a global batch of 4, or"):
        split_global_batch(3, 4, 1)
    with pytest.raises(UserError, match="max_micro_batch: got 0"):
        split_global_batch(8, 2, 0)


def test_a_global_batch_above_the_split_is_refused() -> None:
    assert steps_per_epoch(10, 10) == 1
    with pytest.raises(UserError, match="got 11, but the split has only 10 samples"):
        steps_per_epoch(10, 11)


def test_micro_batches_refuse_a_remainder() -> None:
    with pytest.raises(ValueError, match="10 samples are no multiple of 2 ranks x micro-batches of 3"):
        list(micro_batches(np.arange(10), 0, 2, 3))


@given(st.integers(0, 300), st.integers(1, 40))
def test_evaluated_samples_come_exactly_once(num_samples: int, num_ranks: int) -> None:
    ranges = [rank_range(num_samples, rank, num_ranks) for rank in range(num_ranks)]
    assert [i for part in ranges for i in part] == list(range(num_samples))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(st.integers(2, 8), st.integers(1, 6), st.integers(1, 4), st.integers(0, 50))
def test_repeats_stand_in_blocks_of_two_samples(repeats: int, num_blocks: int, num_ranks: int, step: int) -> None:
    global_batch = 2 * repeats * num_blocks * num_ranks
    num_samples = 3 * global_batch // repeats + 1
    step_samples = step_content(5, step, global_batch, num_samples, repeats=repeats).samples
    epoch, position = divmod(step, steps_per_epoch(num_samples, global_batch, repeats))
    num_different = global_batch // repeats
    different = order(5, epoch, num_samples)[position * num_different : (position + 1) * num_different]
    for place, sample in enumerate(step_samples):
        block, within = divmod(place, 2 * repeats)
        assert sample == different[2 * block + within % 2]
    # Neighbours that are mixed are never copies of one sample, and no rank gets a part of a block.
    assert all(step_samples[p] != step_samples[p ^ 1] for p in range(global_batch))
    for rank in range(num_ranks):
        for part in micro_batches(step_samples, rank, num_ranks, 2 * repeats):
            assert all(count == repeats for count in np.unique(part, return_counts=True)[1])


def test_an_epoch_with_repeats_passes_once_over_the_samples() -> None:
    num_steps = steps_per_epoch(100, 16, 4)
    assert num_steps == 25
    seen = np.concatenate([step_content(1, step, 16, 100, repeats=4).samples for step in range(num_steps)])
    assert all(count == 4 for count in np.unique(seen, return_counts=True)[1])
    assert len(set(seen.tolist())) == 100


def test_repeats_that_do_not_fit_the_global_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"global_batch: got 12; with data\.repeats=4 it must be a multiple of 8"):
        steps_per_epoch(100, 12, 4)
    with pytest.raises(UserError, match="choose a global batch of at most 20"):
        steps_per_epoch(10, 24, 2)


@given(SEEDS, st.integers(1, 300), st.integers(1, 40))
def test_chunks_stay_together_and_the_order_a_permutation(seed: int, num_samples: int, chunk_samples: int) -> None:
    permutation = order(seed, 0, num_samples, chunk_samples)
    assert sorted(permutation) == list(range(num_samples))
    for before, after in itertools.pairwise(permutation.tolist()):
        assert after == before + 1 or after % chunk_samples == 0


def test_the_copies_of_a_sample_have_their_own_generators() -> None:
    draws = {sample_rng(0, 1, sample, copy).integers(2**63) for sample in range(4) for copy in range(4)}
    assert len(draws) == 16
    assert sample_rng(0, 1, 2).integers(2**63) == sample_rng(0, 1, 2, 0).integers(2**63)
