"""On a real GPU: augmentation gives what it gives on the CPU, and never waits for the device."""

import numpy as np
import pytest
import torch

from vast.data.augment import apply_augment, collate_augment, draw_augment
from vast.data.config import AugmentConfig
from vast.data.mix import mix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIZE, MEAN, STD = 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POINTWISE = ("AutoContrast", "Equalize", "Invert", "Solarize", "SolarizeAdd", "Color", "Contrast", "Sharpness")
ALL = AugmentConfig(rand_num_layers=6, hue=0.1, erase_prob=0.5, mixup_alpha=0.8, cutmix_alpha=1.0)


def make(config, count=24):
    clip_BCTHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 4, SIZE, SIZE), dtype=np.uint8))
    return clip_BCTHW, collate_augment([draw_augment(config, SIZE, np.random.default_rng(b)) for b in range(count)])


def test_values_are_the_cpus():
    clip_BCTHW, plan = make(AugmentConfig(rand_num_layers=6, rand_ops=POINTWISE, erase_prob=0.5))
    on_gpu = apply_augment(clip_BCTHW.cuda(), plan, MEAN, STD).cpu()
    torch.testing.assert_close(on_gpu, apply_augment(clip_BCTHW, plan, MEAN, STD), atol=1e-5, rtol=1e-5)


def test_moves_are_the_cpus_but_for_pixels_at_a_level_s_edge():
    clip_BCTHW, plan = make(AugmentConfig(rand_num_layers=2, rand_ops=("Rotate", "ShearX", "TranslateYRel")))
    on_gpu = apply_augment(clip_BCTHW.cuda(), plan, (0, 0, 0), (1, 1, 1)).cpu() * 255
    difference = (on_gpu - apply_augment(clip_BCTHW, plan, (0, 0, 0), (1, 1, 1)) * 255).abs()
    assert (difference > 0.5).float().mean() < 0.01
    assert (difference > 2.5).float().mean() < 0.001


def test_nothing_waits_for_the_device():
    clip_BCTHW, plan = make(ALL)
    count = len(clip_BCTHW)
    clip_BCTHW, label_B = clip_BCTHW.cuda(), torch.zeros(count, dtype=torch.int64, device="cuda")

    def step():
        normal_BCTHW = apply_augment(clip_BCTHW, plan, MEAN, STD)
        mix(normal_BCTHW, label_B, torch.ones(count), torch.arange(count),
            num_classes=5, config=ALL, seed=0, step=0, label_smoothing=0.1)  # fmt: skip

    step()  # tables that stay on the device are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
