import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vast.data.augment import AugmentParams, apply_augment, collate_augment, draw_augment, normalise
from vast.data.clip_ops import KERNELS
from vast.data.config import AugmentConfig

SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERYTHING = AugmentConfig(
    rand_num_layers=6,
    rand_prob=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale_prob=0.2,
    erase_prob=0.5,
    erase_count=2,
)


def make_clips(count: int, frames: int = 3) -> Tensor:
    clip_BCTHW = np.random.default_rng(0).integers(0, 256, (count, 3, frames, SIZE, SIZE), dtype=np.uint8)
    clip_BCTHW[:, :, :, 8:20, 8:20] //= 4
    return torch.from_numpy(clip_BCTHW)


def draw(seed: int, config: AugmentConfig = EVERYTHING) -> AugmentParams:
    return draw_augment(config, SIZE, np.random.default_rng(seed))


def augmented(clip_BCTHW: Tensor, params: list[AugmentParams]) -> Tensor:
    return apply_augment(clip_BCTHW, collate_augment(params), MEAN, STD)


def test_normalise() -> None:
    clip_BCTHW = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out_BCTHW = normalise(clip_BCTHW, mean, std)
    assert out_BCTHW.dtype == torch.float32
    for channel in range(3):
        expected = (clip_BCTHW[:, channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(out_BCTHW[:, channel], expected)
    views_BVCTHW = clip_BCTHW.unsqueeze(1)
    assert torch.equal(normalise(views_BVCTHW, mean, std).squeeze(1), out_BCTHW)
    as_read_BCTHW = clip_BCTHW.contiguous(memory_format=torch.channels_last_3d)  # the layout of the loader's batches
    assert torch.equal(normalise(as_read_BCTHW, mean, std), out_BCTHW)
    assert normalise(as_read_BCTHW, mean, std).stride() == as_read_BCTHW.stride()


def test_off_means_off() -> None:
    clip_BCTHW = make_clips(4)
    params = [draw(seed, AugmentConfig()) for seed in range(4)]
    assert params == [AugmentParams()] * 4
    expected = normalise(clip_BCTHW, MEAN, STD)
    assert torch.equal(augmented(clip_BCTHW, params), expected)
    assert torch.equal(apply_augment(clip_BCTHW, None, MEAN, STD), expected)


def test_a_seed_always_gives_the_same_and_another_seed_another_clip() -> None:
    clip_BCTHW = make_clips(1).expand(40, -1, -1, -1, -1).contiguous()
    before = clip_BCTHW.clone()
    first = augmented(clip_BCTHW, [draw(seed) for seed in range(40)])
    again = augmented(clip_BCTHW, [draw(seed) for seed in range(40)])
    assert torch.equal(first, again)
    assert torch.equal(clip_BCTHW, before)
    assert len({clip.numpy().tobytes() for clip in first}) == 40


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True))
def test_a_clip_does_not_depend_on_its_neighbours(places: list[int]) -> None:
    clip_BCTHW = make_clips(12)
    params = [draw(seed) for seed in range(12)]
    alone = torch.cat([augmented(clip_BCTHW[[place]], [params[place]]) for place in places])
    assert torch.equal(augmented(clip_BCTHW[places], [params[place] for place in places]), alone)


def test_operations_keep_each_clips_own_order() -> None:
    clip_BCTHW = make_clips(30)
    params = [AugmentParams(draw(seed).ops) for seed in range(30)]
    assert {op.kind for clip in params for op in clip.ops} == set(KERNELS)
    one_by_one = clip_BCTHW.clone()
    for place, clip in enumerate(params):
        for op in clip.ops:
            args_NK = torch.tensor([op.args], dtype=torch.float32)
            one_by_one[place] = KERNELS[op.kind](one_by_one[[place]], args_NK)[0]
    assert torch.equal(augmented(clip_BCTHW, params), normalise(one_by_one, MEAN, STD))
    assert len(collate_augment(params).rounds) < sum(len(clip.ops) for clip in params) / 3


def test_equal_frames_stay_equal_but_for_the_erased_noise() -> None:
    still_BCTHW = make_clips(30, frames=1).expand(-1, -1, 4, -1, -1).contiguous()
    params = [draw(seed) for seed in range(30)]
    for out_CTHW, clip in zip(augmented(still_BCTHW, params), params, strict=True):
        rest_HW = torch.ones(SIZE, SIZE, dtype=torch.bool)
        for box in clip.erasures:
            rest_HW[box.top : box.top + box.height, box.left : box.left + box.width] = False
            inside = out_CTHW[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
            assert not torch.equal(inside[:, 0], inside[:, 1])
        assert torch.equal(out_CTHW[..., rest_HW], out_CTHW[:, :1, rest_HW].expand(-1, 4, -1))


def test_a_plan_survives_the_way_from_a_reader() -> None:
    clip_BCTHW = make_clips(8)
    plan = collate_augment([draw(seed) for seed in range(8)])
    arrived = pickle.loads(pickle.dumps(plan)).to(torch.device("cpu"))
    assert torch.equal(apply_augment(clip_BCTHW, arrived, MEAN, STD), apply_augment(clip_BCTHW, plan, MEAN, STD))


def test_autocast_changes_nothing() -> None:
    clip_BCTHW = make_clips(8)
    params = [draw(seed) for seed in range(8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmented(clip_BCTHW, params), augmented(clip_BCTHW, params))
        inside = augmented(clip_BCTHW, params)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, augmented(clip_BCTHW, params))


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_shares_of_greyed_and_erased_clips(prob: float) -> None:
    config = AugmentConfig(grayscale_prob=prob, erase_prob=prob)
    drawn = [draw(seed, config) for seed in range(1000)]
    assert np.mean([bool(clip.ops) for clip in drawn]) == pytest.approx(prob, abs=0.05)
    assert np.mean([bool(clip.erasures) for clip in drawn]) == pytest.approx(prob, abs=0.05)
