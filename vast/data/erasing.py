"""Random erasing: boxes of a normalised clip are filled, the same boxes in all its frames.

Zhong et al., https://arxiv.org/abs/1708.04896, as timm draws the boxes and as SlowFast carries them through the frames.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vast.data.config import AugmentConfig

_BOX_TRIES = 10


class Erasure(NamedTuple):
    """A box of pixels, and what fills it."""

    top: int
    left: int
    height: int
    width: int
    mode: str
    """pixel: normal noise; rand: one colour of normal values; const: 0."""
    seed: int
    """Seeds the noise."""


def draw_erasures(config: AugmentConfig, size: int, rng: np.random.Generator) -> tuple[Erasure, ...]:
    """Draw one clip's boxes: areas uniform, shapes log-uniform; ten shapes that do not fit are one box less.

    Args:
        config: The fields that begin with `erase_` count.
        size: Side of the clip, pixels.
        rng: Where all randomness comes from.
    """
    if not config.erase_prob or rng.random() >= config.erase_prob:
        return ()
    boxes = (_draw_box(config, size, rng) for _ in range(config.erase_count))
    return tuple(box for box in boxes if box is not None)


def _draw_box(config: AugmentConfig, size: int, rng: np.random.Generator) -> Erasure | None:
    for _ in range(_BOX_TRIES):
        area = size * size * rng.uniform(*config.erase_area) / config.erase_count
        aspect = math.exp(rng.uniform(*np.log(config.erase_aspect)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size and 0 < width < size:
            top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
            return Erasure(int(top), int(left), height, width, config.erase_mode, int(rng.integers(2**32)))
    return None


def erase(clip_CTHW: Tensor, erasure: Erasure) -> None:
    """Fill a box of a normalised clip, in place."""
    rows = slice(erasure.top, erasure.top + erasure.height)
    columns = slice(erasure.left, erasure.left + erasure.width)
    box_CTHW = clip_CTHW[:, :, rows, columns]
    if erasure.mode == "const":
        box_CTHW.zero_()
    elif erasure.mode == "rand":
        box_CTHW.copy_(_noise(len(clip_CTHW), erasure.seed, clip_CTHW.device)[:, None, None, None])
    else:
        box_CTHW.copy_(_noise(box_CTHW.numel(), erasure.seed, clip_CTHW.device).view_as(box_CTHW))


def _noise(count: int, seed: int, device: torch.device) -> Tensor:
    """Return `count` standard normal numbers that depend on nothing but the seed, the same on any device.

    A hash of (seed, number) picks one of 65536 quantiles: torch's generators differ between devices, and are global.
    The hash is a 32-bit mixer of Chris Wellons' search, https://github.com/skeeto/hash-prospector; its factors are
    below 2^31, so that no product leaves int64.
    """
    word = torch.arange(count, device=device).mul_(0x1E3779B9).add_(seed).bitwise_and_(0xFFFFFFFF)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        word = word.bitwise_xor_(word >> shift).mul_(factor).bitwise_and_(0xFFFFFFFF)
    quantile = word.bitwise_xor_(word >> 15) >> 16
    return torch.take(_quantiles(device), quantile)


@lru_cache(maxsize=8)
def _quantiles(device: torch.device) -> Tensor:
    share = torch.arange(65536, dtype=torch.float64).add_(0.5).div_(65536)
    quantile: Tensor = torch.special.ndtri(share)
    return quantile.float().to(device)
