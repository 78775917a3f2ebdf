from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.plan.timing import BUCKET_BYTES, Figure, Machine, all_reduce_seconds, plan_for, readers_in_words
from pipelines.plan.work import Work
from vast.errors import UserError

WORK = Work(
    macs=10_000_000_000,
    samples=100_000,
    repeats=1,
    epochs=10,
    global_batch=512,
    max_micro_batch=16,
    clips_together=1,
    parameters=25_000_000,
    kept_bytes_per_clip=100_000_000,
    state_bytes=400_000_000,
)


def figure(value):
    return Figure(value, "stated", "said so")


MACHINE = Machine(
    clips_per_s=figure(100.0),
    ranks_per_node=8,
    full_speed_ranks=8,
    link_bytes_per_s=figure(10e9),
    inner_bytes_per_s=figure(100e9),
    latency_s=figure(0.0),
)
RANKS = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512])


def test_a_step_by_hand():
    plan = plan_for(WORK, MACHINE, 16)
    assert (plan.nodes, plan.micro_batch, plan.accumulation) == (2, 16, 2)
    assert plan.compute_s == pytest.approx(0.32)
    # 100 MB of gradients over 16 ranks: each link carries 2 * 15/16 of them, at 10 GB/s
    assert plan.all_reduce_s == pytest.approx(0.01875)
    # hidden behind the 0.107 s of the last backward pass but for the last of four buckets
    assert plan.exposed_s == pytest.approx(0.01875 / 4)
    assert plan.step_s == pytest.approx(0.32 + 0.01875 / 4)
    assert plan.hours == pytest.approx(10 * (100_000 // 512) * plan.step_s / 3600)
    assert plan.memory_bytes == 400_000_000 + 16 * 100_000_000


def test_within_a_node_only_its_own_links_count_and_one_rank_sums_nothing():
    assert all_reduce_seconds(100, 1, MACHINE) == 0
    assert all_reduce_seconds(100, 8, MACHINE) == pytest.approx(2 * 7 / 8 * 100 / 100e9)
    assert all_reduce_seconds(100, 9, MACHINE) == pytest.approx(2 * 8 / 9 * 100 / 10e9)
    slow = replace(MACHINE, latency_s=figure(1.0))
    assert all_reduce_seconds(BUCKET_BYTES + 1, 8, slow) == pytest.approx(2 * 3 * 2, rel=1e-3)


def test_a_sum_that_the_backward_pass_cannot_hide_is_waited_for():
    plan = plan_for(WORK, replace(MACHINE, link_bytes_per_s=figure(1e8)), 512)
    backward_s = 2 / 3 * plan.micro_batch / 100
    assert plan.exposed_s == pytest.approx(plan.all_reduce_s - backward_s)
    assert plan.efficiency < 0.01


@given(RANKS, RANKS)
def test_more_ranks_never_train_longer_nor_better_than_their_share(one, other):
    few, many = (plan_for(WORK, MACHINE, ranks) for ranks in sorted((one, other)))
    assert few.micro_batch * few.accumulation * few.ranks == WORK.global_batch
    assert many.compute_s <= few.compute_s
    assert many.efficiency <= few.efficiency + 1e-9
    assert 0 < many.efficiency <= 1
    assert many.gpu_hours >= few.gpu_hours - 1e-9
    assert many.memory_bytes <= few.memory_bytes


def test_ranks_that_share_cores_are_slower_each():
    machine = replace(MACHINE, ranks_per_node=4, full_speed_ranks=2)
    assert plan_for(WORK, machine, 4).compute_s == pytest.approx(plan_for(WORK, machine, 2).compute_s)


def test_too_few_readers_are_waited_for_and_told():
    fed = replace(MACHINE, decode_clips_per_s=figure(10.0))
    plan = plan_for(WORK, fed, 8)
    assert plan.input_s == 0
    assert plan.reader_cores == pytest.approx(8 * 64 / 10 / plan.step_s)
    starved = replace(fed, reader_cores_per_node=40)
    short = plan_for(WORK, starved, 8)
    assert short.step_s == pytest.approx(8 * 64 / 10 / 40)
    assert readers_in_words(short, starved) == (
        "8 ranks of 99.9 clips/s need 80 reader cores, the nodes have 40: expect 50 % utilisation"
    )
    assert plan_for(replace(WORK, repeats=2), starved, 8).input_s == pytest.approx(0, abs=2e-3)


def test_ranks_that_cannot_share_the_batch_are_refused():
    with pytest.raises(UserError, match="cannot be shared equally by 24 ranks"):
        plan_for(WORK, MACHINE, 24)
