"""Depth-wise 3x3 and 3x3x3 convolution of tokens that lie channels-last, without a layout copy.

Dimensions: B clips · T frames · H rows · W columns · C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv_frames(x_BTHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    B, T, H, W, C = x_BTHWC.shape
    # Frames become the batch; the permuted view is what torch calls channels_last, so nothing is copied.
    frames = x_BTHWC.reshape(B * T, H, W, C).permute(0, 3, 1, 2)
    out = F.conv2d(frames, weight, bias, padding=1, groups=C)
    return out.permute(0, 2, 3, 1).reshape(B, T, H, W, C)


class DepthwiseConv(nn.Module):
    """A zero-padded 3x3 (within frames) or 3x3x3 (over neighbouring frames too) depth-wise convolution of x_BTHWC.

    The temporal kernel runs as three convolutions of frames whose results are added one frame apart: conv3d's own
    depth-wise backward is slow. Weights have torch's shapes, [C, 1, 3, 3] or [C, 1, 3, 3, 3].
    """

    def __init__(self, dim: int, temporal: bool = False) -> None:
        super().__init__()
        self.temporal = temporal
        self.weight = nn.Parameter(torch.empty(dim, 1, *([3, 3, 3] if temporal else [3, 3])))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Convolve each channel by itself; the shape stays."""
        if not self.temporal:
            return _conv_frames(x_BTHWC, self.weight, self.bias)
        before, here, after = self.weight.unbind(2)
        out_BTHWC = _conv_frames(x_BTHWC, here, self.bias)
        if x_BTHWC.shape[1] == 1:
            return out_BTHWC + 0.0 * (before.sum() + after.sum())  # one frame has no neighbours; keep their gradient: 0
        from_before_BTHWC = F.pad(_conv_frames(x_BTHWC[:, :-1], before, None), (0, 0, 0, 0, 0, 0, 1, 0))
        from_after_BTHWC = F.pad(_conv_frames(x_BTHWC[:, 1:], after, None), (0, 0, 0, 0, 0, 0, 0, 1))
        return out_BTHWC + from_before_BTHWC + from_after_BTHWC
