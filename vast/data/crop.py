"""Crops of uint8 clips, drawn from a given generator.

Every crop is a box of source pixels that is cut out first and then resized: for "scale the short side, then crop" that
is the same picture, except that a box has whole source pixels, and it touches far fewer of them.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_BOX_TRIES = 10


class Box(NamedTuple):
    """A rectangle of source pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized_box(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw a box whose share of the area is uniform in `area` and whose width / height is log-uniform in `aspect`.

    After ten shapes that do not fit it takes the largest central box of an allowed shape, as torchvision does.
    """
    for _ in range(_BOX_TRIES):
        pixels = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return Box(int(top), int(left), box_height, box_width)
    shape = min(max(width / height, aspect[0]), aspect[1])
    box_width = max(1, min(width, round(height * shape)))
    box_height = max(1, min(height, round(width / shape)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def jittered_box(height: int, width: int, crop_size: int, short_side: tuple[int, int], rng: np.random.Generator) -> Box:
    """Draw a square that is `crop_size` wide after the short side was scaled to a random length in `short_side`."""
    scaled = int(rng.integers(short_side[0], short_side[1] + 1))
    side = _square(height, width, crop_size, scaled)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return Box(int(top), int(left), side, side)


def view_box(height: int, width: int, crop_size: int, short_side: int, view: int = 0, num_views: int = 1) -> Box:
    """Return the square of one spatial view: the centre, or one of several spread over the longer side, first to last.

    Args:
        height: Rows of the source.
        width: Columns of the source.
        crop_size: Side of the crop after scaling.
        short_side: Length to which the short side is scaled.
        view: Number of the spatial view; 0 is the left or upper end.
        num_views: Number of spatial views.
    """
    side = _square(height, width, crop_size, short_side)
    top, left = (height - side) // 2, (width - side) // 2
    if num_views > 1:
        if width >= height:
            left = (width - side) * view // (num_views - 1)
        else:
            top = (height - side) * view // (num_views - 1)
    return Box(top, left, side, side)


def _square(height: int, width: int, crop_size: int, short_side: int) -> int:
    return max(1, round(min(height, width) * crop_size / short_side))


def crop_resize(frames_TCHW: Tensor, box: Box, out_THWC: Tensor) -> None:
    """Cut the same box out of all frames and resize it: bilinear, with antialiasing.

    Stays in uint8 and channels_last, where torch has vector code: about 8 times as fast as through float, and within
    one grey level of it. It is F.interpolate's own kernel, which takes no place to write to: a copy from there to the
    batch would cost as much as the resize.

    Args:
        frames_TCHW: uint8, in channels_last layout.
        box: What is cut out.
        out_THWC: Where it goes, contiguous; its H and W are the new size.
    """
    cut_TCHW = frames_TCHW[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    torch.ops.aten._upsample_bilinear2d_aa.out(
        cut_TCHW, list(out_THWC.shape[1:3]), False, None, None, out=out_THWC.permute(0, 3, 1, 2)
    )
