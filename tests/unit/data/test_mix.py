from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vast.data.config import AugmentConfig
from vast.data.mix import Mix, draw_mix, mix

BOTH = AugmentConfig(mixup_alpha=0.8, cutmix_alpha=1.0)
NUM_CLASSES = 7
GLOBAL_BATCH = 24


def make_batch(count: int = GLOBAL_BATCH) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips that are their position everywhere, their labels, weights and positions."""
    position_B = torch.arange(count)
    clip_BCTHW = position_B.float().view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 16, 20).clone()
    return clip_BCTHW, position_B % NUM_CLASSES, torch.ones(count), position_B


def mixed(
    config: AugmentConfig = BOTH, part: slice = slice(None), seed: int = 1, step: int = 5, smoothing: float = 0.1
) -> tuple[Tensor, Tensor]:
    batch = [tensor[part] for tensor in make_batch()]
    return mix(*batch, num_classes=NUM_CLASSES, config=config, seed=seed, step=step, label_smoothing=smoothing)


def draws(config: AugmentConfig, count: int = 2000) -> list[Mix | None]:
    return [draw_mix(config, 16, 20, np.random.default_rng(seed)) for seed in range(count)]


def test_off_gives_the_clips_and_smoothed_labels() -> None:
    clip_BCTHW, target_BK = mixed(AugmentConfig())
    expected_BCTHW, label_B, _, _ = make_batch()
    assert torch.equal(clip_BCTHW, expected_BCTHW)
    assert target_BK.dtype == torch.float32
    smooth = torch.nn.functional.one_hot(label_B, NUM_CLASSES) * 0.9 + 0.1 / NUM_CLASSES
    torch.testing.assert_close(target_BK, smooth)
    plain = mixed(AugmentConfig(), smoothing=0.0)[1]
    assert torch.equal(plain, torch.nn.functional.one_hot(label_B, NUM_CLASSES).float())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000), st.data())
def test_ranks_and_micro_batches_change_nothing(ranks: int, seed: int, data: st.DataObject) -> None:
    whole = mixed(seed=seed)
    cuts = {0, GLOBAL_BATCH, *(rank * GLOBAL_BATCH // ranks for rank in range(ranks))}
    cuts |= {2 * cut for cut in data.draw(st.sets(st.integers(0, GLOBAL_BATCH // 2)))}
    places = sorted(cuts)
    parts = [mixed(part=slice(low, high), seed=seed) for low, high in pairwise(places)]
    assert torch.equal(torch.cat([clip for clip, _ in parts]), whole[0])
    assert torch.equal(torch.cat([target for _, target in parts]), whole[1])


def test_mixup_blends_a_pair_and_its_labels_alike() -> None:
    clip_BCTHW, target_BK = mixed(AugmentConfig(mixup_alpha=0.8), smoothing=0.0)
    _, label_B, _, position_B = make_batch()
    for place in position_B.tolist():
        share = target_BK[place, label_B[place]].item()
        expected = share * place + (1 - share) * (place ^ 1)
        torch.testing.assert_close(clip_BCTHW[place], torch.full_like(clip_BCTHW[place], expected), atol=1e-5, rtol=0)
        assert target_BK[place, label_B[place ^ 1]].item() == pytest.approx(1 - share, abs=1e-6)


def test_cutmix_swaps_one_box_in_all_frames_and_counts_its_area() -> None:
    clip_BCTHW, target_BK = mixed(AugmentConfig(cutmix_alpha=1.0), smoothing=0.0)
    _, label_B, _, position_B = make_batch()
    assert torch.equal(clip_BCTHW, clip_BCTHW[:, :1, :1].expand_as(clip_BCTHW))
    for place in position_B.tolist():
        frame_HW = clip_BCTHW[place, 0, 0]
        own_HW = frame_HW == place
        assert torch.equal(frame_HW[~own_HW], torch.full_like(frame_HW[~own_HW], place ^ 1))
        rows, columns = (~own_HW).any(1).sum(), (~own_HW).any(0).sum()
        assert (~own_HW).sum() == rows * columns, "the pixels of the other make one box"
        assert target_BK[place, label_B[place]].item() == pytest.approx(own_HW.float().mean().item(), abs=1e-6)
        assert torch.equal(own_HW, clip_BCTHW[place ^ 1, 0, 0] == place ^ 1)


@given(st.sampled_from([BOTH, AugmentConfig(mixup_alpha=0.2), AugmentConfig(cutmix_alpha=3.0)]), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_a_pair_keeps_its_labels_and_its_values_between_them(config: AugmentConfig, seed: int) -> None:
    clip_BCTHW, target_BK = mixed(config, seed=seed)
    before_BCTHW, label_B, _, _ = make_batch()
    torch.testing.assert_close(target_BK.sum(1), torch.ones(GLOBAL_BATCH))
    one_hot_BK = torch.nn.functional.one_hot(label_B, NUM_CLASSES) * 0.9 + 0.1 / NUM_CLASSES
    pairs = target_BK.view(-1, 2, NUM_CLASSES).sum(1)
    torch.testing.assert_close(pairs, one_hot_BK.view(-1, 2, NUM_CLASSES).sum(1))
    sums = clip_BCTHW.view(-1, 2, *clip_BCTHW.shape[1:]).sum(1)
    torch.testing.assert_close(sums, before_BCTHW.view(-1, 2, *clip_BCTHW.shape[1:]).sum(1))


def test_a_pair_with_a_skipped_sample_is_not_mixed() -> None:
    clip_BCTHW, label_B, weight_B, position_B = make_batch()
    weight_B[5] = 0
    clip_BCTHW[5] = 0
    before = clip_BCTHW.clone()
    out, target_BK = mix(
        clip_BCTHW, label_B, weight_B, position_B,
        num_classes=NUM_CLASSES, config=AugmentConfig(mixup_alpha=0.8), seed=1, step=5, label_smoothing=0.0,
    )  # fmt: skip
    assert torch.equal(out[4:6], before[4:6])
    assert target_BK[4].max() == 1
    others = [place for place in range(GLOBAL_BATCH) if place not in (4, 5)]
    whole = mixed(AugmentConfig(mixup_alpha=0.8), smoothing=0.0)
    assert torch.equal(out[others], whole[0][others])
    assert torch.equal(target_BK[others], whole[1][others])


def test_steps_seeds_and_pairs_are_mixed_differently() -> None:
    found = [mixed(seed=seed, step=step)[1] for seed, step in ((1, 5), (1, 6), (2, 5))]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    shares = mixed(AugmentConfig(mixup_alpha=0.8), smoothing=0.0)[1].amax(1)[::2]
    assert len(shares.unique()) == GLOBAL_BATCH // 2
    assert torch.equal(mixed()[0], mixed()[0])


@pytest.mark.parametrize("part", [slice(0, 3), slice(1, 5), slice(0, 8, 2)])
def test_broken_pairs_are_refused(part: slice) -> None:
    with pytest.raises(ValueError, match="whole pairs of neighbours"):
        mixed(part=part)
    assert len(mixed(AugmentConfig(), part=part)[0]) in (3, 4)


def test_shares_of_mixup_and_cutmix() -> None:
    config = AugmentConfig(mixup_alpha=0.8, cutmix_alpha=1.0, mix_prob=0.8, switch_prob=0.25)
    drawn = draws(config)
    assert np.mean([one is None for one in drawn]) == pytest.approx(0.2, abs=0.04)
    assert np.mean([one.box is not None for one in drawn if one]) == pytest.approx(0.25, abs=0.04)
    assert all(one is None or one.box is None for one in draws(AugmentConfig(mixup_alpha=0.8), 50))
    assert all(one is None or one.box for one in draws(AugmentConfig(cutmix_alpha=0.8), 50))


def test_mixup_shares_follow_the_beta_distribution() -> None:
    shares = np.array([one.share for one in draws(AugmentConfig(mixup_alpha=0.8)) if one])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)


def test_cutmix_boxes_are_clipped_at_the_border() -> None:
    for one in draws(AugmentConfig(cutmix_alpha=1.0)):
        assert one is not None
        assert one.box is not None
        top, bottom, left, right = one.box
        assert 0 <= top <= bottom <= 16
        assert 0 <= left <= right <= 20
        assert one.share == pytest.approx(1 - (bottom - top) * (right - left) / 320)
