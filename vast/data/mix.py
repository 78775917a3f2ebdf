"""Mixup and cutmix in pairs, and the smoothed targets of both.

Mixup: Zhang et al., https://arxiv.org/abs/1710.09412; cutmix: Yun et al., https://arxiv.org/abs/1905.04899; shares,
boxes and their combination as timm's `Mixup` in its pair mode. A pair is two neighbours of the step's global batch, and
its randomness depends on their place in it alone, so ranks and micro-batches can cut the global batch anywhere between
pairs without changing one value.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vast.data.config import AugmentConfig
from vast.data.order import pair_rng


class Mix(NamedTuple):
    """What happens to a pair."""

    share: float
    """Of each clip's own label in its target."""
    box: tuple[int, int, int, int] | None = None
    """Top, bottom, left and right of the pixels that the two swap, in all frames; None blends whole clips."""


def draw_mix(config: AugmentConfig, height: int, width: int, rng: np.random.Generator) -> Mix | None:
    """Draw what happens to one pair; None: nothing.

    Args:
        config: The fields about mixing count.
        height: Rows of the clips.
        width: Columns of the clips.
        rng: Where all randomness comes from.
    """
    if not config.mixes or rng.random() >= config.mix_prob:
        return None
    cuts = config.cutmix_alpha > 0 and (config.mixup_alpha == 0 or rng.random() < config.switch_prob)
    alpha = config.cutmix_alpha if cuts else config.mixup_alpha
    share = float(rng.beta(alpha, alpha))
    if not cuts:
        return Mix(share)
    # The box keeps the picture's shape; its centre is anywhere, so the border may cut it, and only then the share is
    # known.
    half_height, half_width = (int(side * math.sqrt(1 - share)) // 2 for side in (height, width))
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix(
    clip_BCTHW: Tensor,
    label_B: Tensor,
    weight_B: Tensor,
    position_B: Tensor,
    *,
    num_classes: int,
    config: AugmentConfig,
    seed: int,
    step: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Mix a micro-batch pair by pair and make its targets.

    Args:
        clip_BCTHW: Floating point; changed in place where pairs are mixed.
        label_B: Label ids, int64, on the clips' device.
        weight_B: 0 for a skipped sample, whose pair stays unmixed. On the host, or reading it waits for the device.
        position_B: Place of each clip in the step's global batch, int64; on the host likewise.
        num_classes: K.
        config: The fields about mixing count.
        seed: The run's seed.
        step: The step that the clips belong to.
        label_smoothing: Share of each target that is spread evenly over all classes.

    Returns:
        The clips and their float32 targets, target_BK, which sum to 1.

    Raises:
        ValueError: Clips are to be mixed, but the micro-batch does not consist of whole pairs.
    """
    target_BK = torch.full((len(label_B), num_classes), label_smoothing / num_classes, device=label_B.device)
    target_BK.scatter_(1, label_B[:, None], 1 - label_smoothing + label_smoothing / num_classes)
    if not config.mixes:
        return clip_BCTHW, target_BK
    positions = position_B.tolist()
    if positions[1::2] != [position ^ 1 for position in positions[::2]]:
        raise ValueError(f"mixing takes whole pairs of neighbours, positions 2n and 2n + 1, but found {positions}")
    whole = weight_B.view(-1, 2).ne(0).all(1).tolist()
    height, width = clip_BCTHW.shape[3:]
    for one in range(0, len(positions), 2):
        drawn = draw_mix(config, height, width, pair_rng(seed, step, positions[one] // 2))
        if drawn is not None and whole[one // 2]:
            _mix_clips(clip_BCTHW[one], clip_BCTHW[one + 1], drawn)
            _blend(target_BK[one], target_BK[one + 1], drawn.share)
    return clip_BCTHW, target_BK


def _mix_clips(one_CTHW: Tensor, other_CTHW: Tensor, drawn: Mix) -> None:
    if drawn.box is None:
        _blend(one_CTHW, other_CTHW, drawn.share)
        return
    top, bottom, left, right = drawn.box
    box_of_one, box_of_other = (clip[..., top:bottom, left:right] for clip in (one_CTHW, other_CTHW))
    kept = box_of_one.clone()
    box_of_one.copy_(box_of_other)
    box_of_other.copy_(kept)


def _blend(one: Tensor, other: Tensor, share: float) -> None:
    """Make both `share` of themselves and the rest of the other, in place."""
    passed = (one - other).mul_(1 - share)
    one.sub_(passed)
    other.add_(passed)
