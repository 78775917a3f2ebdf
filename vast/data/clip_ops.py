"""Picture operations on batches of clips on their device, with Pillow's formulas; the same for all frames of a clip.

Pillow's formulas, down to where it truncates, because every published recipe was tuned with them. They are our own:
kornia refuses RandAugment for video and draws from torch's global generator, torchvision draws once for a whole batch,
and here a clip's result must depend on nothing but the clip and its own parameters.

Clips are uint8, N clips of C = 3 channels (red, green, blue), T frames, H rows and W columns. Statistics (histogram,
mean) are each frame's own, as in the recipes, which pass every frame through Pillow.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FILL = 128
# A weighted mean of equal values may come out just below them, and 99.99999 must not be truncated to 99.
_TRUNCATION_SLACK = 1 / 1024


class ClipOp(NamedTuple):
    """One operation on one clip."""

    kind: str
    """A key of KERNELS."""
    args: tuple[float, ...] = ()
    """What its kernel takes; every operation of a kind has as many."""


AUTOCONTRAST = ClipOp("autocontrast")
EQUALIZE = ClipOp("equalize")


def rotate(degrees: float, size: int) -> ClipOp:
    """Turn the picture anticlockwise about its centre; what comes in from outside is grey."""
    cos, sin, centre = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), size / 2
    return ClipOp("affine", (cos, -sin, centre * (1 - cos + sin), sin, cos, centre * (1 - sin - cos)))


def shear_x(factor: float) -> ClipOp:
    """Take each pixel from `factor * row` columns to its right."""
    return ClipOp("affine", (1, factor, 0, 0, 1, 0))


def shear_y(factor: float) -> ClipOp:
    """Take each pixel from `factor * column` rows below it."""
    return ClipOp("affine", (1, 0, 0, factor, 1, 0))


def translate(right: float, down: float) -> ClipOp:
    """Take each pixel from that many pixels to its right and below it."""
    return ClipOp("affine", (1, 0, right, 0, 1, down))


def _table(values: Iterable[float]) -> ClipOp:
    """Replace each of the 256 values by the one in its place, cut off at 0 and 255 and truncated."""
    return ClipOp("table", tuple(int(min(max(value, 0), 255)) for value in values))


def invert() -> ClipOp:
    """Replace each value by 255 minus it."""
    return _table(255 - value for value in range(256))


def posterize(bits: int) -> ClipOp:
    """Keep the upper bits of each value."""
    return _table(value - value % 2 ** (8 - bits) for value in range(256))


def solarize(threshold: int) -> ClipOp:
    """Invert the values from `threshold` on."""
    return _table(value if value < threshold else 255 - value for value in range(256))


def solarize_add(amount: int) -> ClipOp:
    """Add to the values below 128."""
    return _table(value + amount if value < 128 else value for value in range(256))


def brightness(factor: float) -> ClipOp:
    """Multiply each value."""
    return _table(np.arange(256, dtype=np.float32) * np.float32(factor))


def contrast(factor: float) -> ClipOp:
    """Multiply the distance of each value from its frame's mean grey."""
    return ClipOp("contrast", (factor,))


def color(factor: float) -> ClipOp:
    """Multiply the distance of each value from its pixel's grey; 0 makes a clip grey."""
    return ClipOp("color", (factor,))


def sharpness(factor: float) -> ClipOp:
    """Multiply the distance of each value from a smoothed picture's."""
    return ClipOp("sharpness", (factor,))


def hue(turn: float) -> ClipOp:
    """Turn the hue by a share of the colour circle."""
    return ClipOp("hue", (turn,))


def _affine(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    N, C, T, H, W = clip_NCTHW.shape
    row_H1 = torch.arange(H, dtype=torch.float32, device=clip_NCTHW.device).add_(0.5)[:, None]
    column_W = torch.arange(W, dtype=torch.float32, device=clip_NCTHW.device).add_(0.5)
    # Where each pixel's centre comes from, in source pixels.
    a, b, c, d, e, f = args_NK[:, :, None, None].unbind(1)
    from_column_NHW = a * column_W + b * row_H1 + c
    from_row_NHW = d * column_W + e * row_H1 + f
    inside_NHW: Tensor = (from_column_NHW >= 0) & (from_column_NHW < W) & (from_row_NHW >= 0) & (from_row_NHW < H)
    grid_NHW2 = torch.stack((from_column_NHW * (2 / W) - 1, from_row_NHW * (2 / H) - 1), 3)
    planes_NPHW = clip_NCTHW.reshape(N, C * T, H, W).to(torch.float32)
    moved_NPHW = F.grid_sample(planes_NPHW, grid_NHW2, mode="bilinear", padding_mode="border", align_corners=False)
    moved_NPHW = moved_NPHW.add_(_TRUNCATION_SLACK).clamp_(max=255).to(torch.uint8)
    inside_N1HW = inside_NHW[:, None].to(torch.uint8)  # arithmetic: masked_fill_ of uint8 has no vector code
    return moved_NPHW.mul_(inside_N1HW).add_(_FILL - _FILL * inside_N1HW).view_as(clip_NCTHW)


def _look_up(clip_NCTHW: Tensor, table_NCT256: Tensor) -> Tensor:
    """Replace each value by what the table of its clip, channel and frame says."""
    table_RV = table_NCT256.to(torch.uint8).reshape(-1, 256)
    return table_RV.gather(1, clip_NCTHW.reshape(len(table_RV), -1).long()).view_as(clip_NCTHW)


def _fixed_table(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    return _look_up(clip_NCTHW, args_NK[:, None, None].expand(-1, *clip_NCTHW.shape[1:3], -1))


def _autocontrast(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    lowest_NCT1 = clip_NCTHW.amin((3, 4))[..., None].double()
    highest_NCT1 = clip_NCTHW.amax((3, 4))[..., None].double()
    level_V = torch.arange(256, dtype=torch.float64, device=clip_NCTHW.device)
    # Of a plain 255 torch would make a product with the reciprocal, which is not the same to the last bit.
    scale_NCT1 = torch.tensor(255.0, dtype=torch.float64) / (highest_NCT1 - lowest_NCT1)
    table_NCTV = (level_V * scale_NCT1 - lowest_NCT1 * scale_NCT1).clamp(0, 255)
    return _look_up(clip_NCTHW, torch.where(highest_NCT1 > lowest_NCT1, table_NCTV, level_V))


def _equalize(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    shape_NCT = clip_NCTHW.shape[:3]
    rows, pixels = shape_NCT.numel(), clip_NCTHW.shape[3:].numel()
    # One long row, as scatter_add_ has a deterministic form only for these.
    first_R1 = torch.arange(0, rows * 256, 256, device=clip_NCTHW.device)[:, None]
    bins = clip_NCTHW.reshape(rows, pixels).long().add_(first_R1).flatten()
    count = torch.zeros(rows * 256, dtype=torch.int64, device=clip_NCTHW.device)
    count_RV = count.scatter_add_(0, bins, count.new_ones(()).expand_as(bins)).view(rows, 256)
    level_V = torch.arange(256, device=clip_NCTHW.device)
    highest_R1 = torch.where(count_RV > 0, level_V, 0).amax(1, keepdim=True)
    step_R1 = (pixels - count_RV.gather(1, highest_R1)) // 255
    below_RV = count_RV.cumsum(1) - count_RV
    table_RV = ((below_RV + step_R1 // 2) // step_R1.clamp(min=1)).clamp(max=255)
    return _look_up(clip_NCTHW, torch.where(step_R1 > 0, table_RV, level_V).view(*shape_NCT, 256))


def _grey(clip_NCTHW: Tensor) -> Tensor:
    """Each pixel's grey, int32, with ITU-R 601-2's weights."""
    red_NTHW, green_NTHW, blue_NTHW = clip_NCTHW.to(torch.int32).unbind(1)
    return (red_NTHW * 19595 + green_NTHW * 38470 + blue_NTHW * 7471 + 0x8000) >> 16


def _blend(from_: Tensor, to: Tensor, factor: Tensor) -> Tensor:
    """Go from one float32 picture towards another, and past it if the factor is above 1; uint8."""
    return (to - from_).mul_(factor).add_(from_).clamp_(0, 255).to(torch.uint8)


def _contrast(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    mean_NT = _grey(clip_NCTHW).sum((2, 3)).double().div_(clip_NCTHW.shape[3:].numel()).add_(0.5).floor_().float()
    level_V = torch.arange(256, dtype=torch.float32, device=clip_NCTHW.device)
    table_NTV = _blend(mean_NT[..., None], level_V, args_NK[..., None])
    return _look_up(clip_NCTHW, table_NTV[:, None].expand(-1, clip_NCTHW.shape[1], -1, -1))


def _color(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    grey_N1THW = _grey(clip_NCTHW).float()[:, None]
    return _blend(grey_N1THW, clip_NCTHW.float(), args_NK[..., None, None, None])


def _sharpness(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    sharp_NCTHW = clip_NCTHW.float()
    inner = sharp_NCTHW[..., 1:-1, 1:-1]
    three = sharp_NCTHW[..., :-2, :] + sharp_NCTHW[..., 1:-1, :] + sharp_NCTHW[..., 2:, :]
    nine = three[..., :-2] + three[..., 1:-1] + three[..., 2:]
    smooth = nine.add_(inner, alpha=4).div_(13).add_(0.5).floor_()
    out_NCTHW = clip_NCTHW.clone()  # the border stays
    out_NCTHW[..., 1:-1, 1:-1] = _blend(smooth, inner, args_NK[..., None, None, None])
    return out_NCTHW


def _hue(clip_NCTHW: Tensor, args_NK: Tensor) -> Tensor:
    red, green, blue = clip_NCTHW.float().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    some = chroma.clamp(min=1)  # grey has no hue; any will do
    sixth = torch.where(
        value == red,
        (green - blue) / some,
        torch.where(value == green, (blue - red) / some + 2, (red - green) / some + 4),
    )
    sixth = sixth + 6 * args_NK[..., None, None]
    channels = []
    for corner in (5, 3, 1):
        place = (sixth + corner).remainder_(6)
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        channels.append((value - chroma * share).round_().to(torch.uint8))
    return torch.stack(channels, 1)


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "affine": _affine,
    "table": _fixed_table,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "contrast": _contrast,
    "color": _color,
    "sharpness": _sharpness,
    "hue": _hue,
}
"""Operation of each kind: clips (N, C, T, H, W), uint8, and float32 arguments (N, K) to new clips of that shape."""
