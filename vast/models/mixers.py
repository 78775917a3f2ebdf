"""Token mixers of the peers in the same skeleton: `model.mixer` chooses what stands between norm and residual.

    affine_shift       ours, see `affine_shift`
    joint_attention    every token attends to every token of the clip
    divided_attention  over time at its own place, then over space in its own frame (TimeSformer, arXiv 2102.05095)
    window_attention   inside windows of the token grid, moved by half a window in every second block (Video Swin,
                       arXiv 2106.13230)
    tsm                two channel groups move one frame, nothing else (TSM, arXiv 1811.08383)
    pooling            the average of the 3x3x3 neighbourhood minus the token (PoolFormer, arXiv 2111.11418, in 3D)
    conv3d             a depth-wise 3x3x3 convolution

All but attention work between the value and output projections that Affine-Shift has, so that only the mixing differs
(PoolFormer itself has no projections, TSM a convolution). Attention adds the projection of queries and keys, and the
divided one has all of them twice. On single frames divided attention is its spatial half, and tsm moves nothing.

Where tokens are, attention learns from sines of frame, row and column added to what queries and keys are made of: these
fit any grid and leave the fused attention kernels usable, unlike the learned absolute embedding of TimeSformer and the
relative bias of Video Swin. Without them no attention here could tell the order of frames.

Dimensions: B clips or windows · T frames · H rows · W columns · N tokens · C channels · G heads · D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from vast.models.affine_shift import AffineShift
from vast.models.depthwise import DepthwiseConv
from vast.models.embed import LAYER_NORM_EPS
from vast.models.shift import T_AXIS, ShiftGroup, group_width, shift
from vast.models.variants import ModelConfig

HEAD_DIM = 32
"""Channels of one attention head; divides the widths of all sizes (as in Swin)."""
_LONGEST_WAVE = 100.0
"""Positions in the longest sine, over 2 pi; grids of tokens are small."""


def make_mixer(dim: int, config: ModelConfig, index: int) -> nn.Module:
    """The mixer that `config` names, for block number `index` of its stage."""
    if config.mixer == "affine_shift":
        return AffineShift(dim, config)
    if config.mixer == "joint_attention":
        return JointAttention(dim, config)
    if config.mixer == "divided_attention":
        return DividedAttention(dim, config)
    if config.mixer == "window_attention":
        return WindowAttention(dim, config, shifted=index % 2 == 1)
    return LocalMixer(dim, config)


class LocalMixer(nn.Module):
    """tsm, pooling or conv3d between two projections; keeps the shape x_BTHWC."""

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mixer
        width = group_width(dim, config.shift_fraction)
        # As in TSM: the first group comes from the next frame, the second from the one before.
        self.groups = (ShiftGroup(0, width, T_AXIS, -1), ShiftGroup(width, 2 * width, T_AXIS, 1)) if width else ()
        self.value = nn.Linear(dim, dim)
        self.conv = DepthwiseConv(dim, temporal=not config.is_image_model) if self.kind == "conv3d" else None
        self.output = nn.Linear(dim, dim) if config.output_projection else None

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Mix normed tokens; the caller adds the residual."""
        v_BTHWC: Tensor = self.value(x_BTHWC)
        if self.conv is not None:
            y_BTHWC: Tensor = self.conv(v_BTHWC)
        elif self.kind == "tsm":
            y_BTHWC = shift(v_BTHWC, self.groups)
        else:
            y_BTHWC = average_neighbours(v_BTHWC) - v_BTHWC
        return y_BTHWC if self.output is None else self.output(y_BTHWC)


def average_neighbours(x_BTHWC: Tensor) -> Tensor:
    """Average of the 3x3x3 neighbours that lie inside the clip, the token itself among them."""
    B, T, H, W, C = x_BTHWC.shape
    frames = x_BTHWC.reshape(B * T, H, W, C).permute(0, 3, 1, 2)  # channels_last, nothing is copied
    frames = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    x_BTHWC = frames.permute(0, 2, 3, 1).reshape(B, T, H, W, C)
    if T == 1:
        return x_BTHWC
    num_frames = torch.full((T,), 3.0, dtype=x_BTHWC.dtype, device=x_BTHWC.device)
    num_frames[0] -= 1
    num_frames[-1] -= 1
    padded = F.pad(x_BTHWC, (0, 0, 0, 0, 0, 0, 1, 1))
    return (padded[:, :-2] + x_BTHWC + padded[:, 2:]) / num_frames.view(T, 1, 1, 1)


class Attention(nn.Module):
    """Multi-head attention among the N tokens of each sequence x_BNC, with the projections of its own."""

    def __init__(self, dim: int, output: bool) -> None:
        super().__init__()
        self.query_key = nn.Linear(dim, 2 * dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim) if output else None

    def forward(self, x_BNC: Tensor, where_BNC: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; `where` is x with its position added, `mask` is true where attention is allowed."""
        query, key = self.query_key(where_BNC).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(_heads(query), _heads(key), _heads(self.value(x_BNC)), attn_mask=mask)
        y_BNC = mixed.transpose(1, 2).flatten(2)
        return y_BNC if self.output is None else cast(Tensor, self.output(y_BNC))


class JointAttention(nn.Module):
    """Attention among all tokens of a clip."""

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(dim, config.output_projection)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Mix normed tokens; the caller adds the residual."""
        where_BTHWC = x_BTHWC + positions_like(x_BTHWC)
        y_BNC: Tensor = self.attention(x_BTHWC.flatten(1, 3), where_BTHWC.flatten(1, 3))
        return y_BNC.view(x_BTHWC.shape)


class DividedAttention(nn.Module):
    """Attention over time, a residual and a norm, then attention over space; each with its own projections."""

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.time = None if config.is_image_model else Attention(dim, config.output_projection)
        self.norm = None if config.is_image_model else nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.space = Attention(dim, config.output_projection)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Mix normed tokens; the caller adds the residual."""
        if self.time is None or self.norm is None:
            return self._over_space(x_BTHWC)
        B, T, H, W, C = x_BTHWC.shape
        x_BHWTC = x_BTHWC.permute(0, 2, 3, 1, 4)
        where_BHWTC = (x_BTHWC + positions_like(x_BTHWC)).permute(0, 2, 3, 1, 4)
        y: Tensor = self.time(x_BHWTC.reshape(B * H * W, T, C), where_BHWTC.reshape(B * H * W, T, C))
        y_BTHWC = y.view(B, H, W, T, C).permute(0, 3, 1, 2, 4)
        return y_BTHWC + self._over_space(self.norm(x_BTHWC + y_BTHWC))

    def _over_space(self, x_BTHWC: Tensor) -> Tensor:
        where_BTHWC = x_BTHWC + positions_like(x_BTHWC)
        y_BNC: Tensor = self.space(x_BTHWC.flatten(0, 1).flatten(1, 2), where_BTHWC.flatten(0, 1).flatten(1, 2))
        return y_BNC.view(x_BTHWC.shape)


class WindowAttention(nn.Module):
    """Attention inside windows of the token grid; the grid is padded to whole windows, which costs work but no meaning.

    A window is cut to the clip where the clip is smaller. Moved windows wrap around the grid, and the parts that only
    so became neighbours do not attend to each other.
    """

    def __init__(self, dim: int, config: ModelConfig, shifted: bool) -> None:
        super().__init__()
        self.window_size = config.window_size
        self.shifted = shifted
        self.attention = Attention(dim, config.output_projection)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Mix normed tokens; the caller adds the residual."""
        B, T, H, W, C = x_BTHWC.shape
        grid = (T, H, W)
        window = tuple(min(length, size) for length, size in zip(grid, self.window_size, strict=True))
        moved = tuple(
            size // 2 if self.shifted and length > size else 0 for length, size in zip(grid, window, strict=True)
        )
        padded = tuple(-(-length // size) * size for length, size in zip(grid, window, strict=True))
        where_BTHWC = x_BTHWC + positions_like(x_BTHWC)
        mask = None
        if any(moved) or padded != grid:
            mask = _kept(_window_mask, grid, padded, window, moved, x_BTHWC.device).repeat(B, 1, 1, 1)
        y: Tensor = self.attention(
            _to_windows(x_BTHWC, padded, window, moved), _to_windows(where_BTHWC, padded, window, moved), mask
        )
        counts = [length // size for length, size in zip(padded, window, strict=True)]
        y_BTHWC = y.view(B, *counts, *window, C).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, *padded, C)
        return y_BTHWC.roll(moved, (1, 2, 3))[:, :T, :H, :W]


def _to_windows(x_BTHWC: Tensor, padded: tuple[int, ...], window: tuple[int, ...], moved: tuple[int, ...]) -> Tensor:
    """One row a window: x_BNC with the windows of a clip after each other."""
    B, T, H, W, C = x_BTHWC.shape
    x_BTHWC = F.pad(x_BTHWC, (0, 0, 0, padded[2] - W, 0, padded[1] - H, 0, padded[0] - T))
    x_BTHWC = x_BTHWC.roll([-step for step in moved], (1, 2, 3))
    split = [part for length, size in zip(padded, window, strict=True) for part in (length // size, size)]
    return (
        x_BTHWC.reshape(B, *split, C).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window[0] * window[1] * window[2], C)
    )


def _window_mask(
    grid: tuple[int, ...],
    padded: tuple[int, ...],
    window: tuple[int, ...],
    moved: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Which tokens of each window may attend to which: [windows, 1, N, N], true for the same region."""
    regions = torch.zeros(padded, device=device)
    edges = [
        (slice(0, step), slice(step, length), slice(length, full))
        for step, length, full in zip(moved, grid, padded, strict=True)
    ]
    for number, (t, h, w) in enumerate(product(*edges)):
        regions[t, h, w] = number
    rows = _to_windows(regions[None, ..., None], padded, window, moved).squeeze(-1)
    return (rows.unsqueeze(1) == rows.unsqueeze(2)).unsqueeze(1)


def positions_like(x_BTHWC: Tensor) -> Tensor:
    """Sines and cosines of frame, row and column, a third of the channels each; [T, H, W, C]."""
    _, T, H, W, C = x_BTHWC.shape
    return _kept(_positions, (T, H, W), C, x_BTHWC.dtype, x_BTHWC.device)


def _positions(grid: tuple[int, ...], num_channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    num_waves = num_channels // 6
    rates = _LONGEST_WAVE ** -(torch.arange(num_waves, device=device) / num_waves)
    table = torch.zeros(*grid, num_channels, device=device)
    for axis, length in enumerate(grid):
        angles = torch.outer(torch.arange(length, device=device), rates)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        shape = [length if i == axis else 1 for i in range(3)]
        table[..., axis * 2 * num_waves : (axis + 1) * 2 * num_waves] = waves.view(*shape, 2 * num_waves)
    return table.to(dtype)


def _kept(make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The tensor made before for the same arguments; a compiler must not see, or leave behind, one of another trace.

    Nor must torch's fake mode, in which tensors have no data.
    """
    tracing = torch.compiler.is_compiling() or detect_fake_mode() is not None
    return make(*arguments) if tracing else _made(make, *arguments)


@lru_cache(maxsize=64)
def _made(make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    with torch.inference_mode(False):  # what inference makes could not be used in training later
        return make(*arguments)


def _heads(x_BNC: Tensor) -> Tensor:
    """x_BGND: one head of `HEAD_DIM` channels after another."""
    B, N, C = x_BNC.shape
    return x_BNC.view(B, N, C // HEAD_DIM, HEAD_DIM).transpose(1, 2)
